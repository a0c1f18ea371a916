"""Tables of Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

Row = dict[str, Any]


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    """Markdown, the first column to the left and the others to the right."""
    header = list(header)
    lines = ["| " + " | ".join(header) + " |", "|---" + "|---:" * (len(header) - 1) + "|"]
    return [*lines, *("| " + " | ".join(row) + " |" for row in rows)]


def grid(
    rows: Sequence[Row], down: str, across: Sequence[str], corner: str, head: str, cell: Callable[[Row], str]
) -> list[str]:
    """A line for every value of column `down`, and a column for every value of the columns `across`.

    Args:
        rows: of a study's results; values stand in the order in which they appear there.
        down: what a line is for.
        across: what a column is for, of one row or several.
        corner: the first word of the header.
        head: `{}` for each of `across`, formatted with their values.
        cell: what stands where a row has its place; empty where none has.
    """
    found = {(row[down], *(row[name] for name in across)): cell(row) for row in rows}
    columns = list(dict.fromkeys(tuple(row[name] for name in across) for row in rows))
    labels = dict.fromkeys(row[down] for row in rows)
    body = ([label, *(found.get((label, *column), "") for column in columns)] for label in labels)
    return table([corner, *(head.format(*column) for column in columns)], body)
