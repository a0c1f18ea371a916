"""The map of the heads on a page, from what `hf-heads importance --output` wrote."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hf_heads.core.errors import HeadsError
from hf_heads.core.vocabulary import RULES
from hf_heads.io.checkpoints.json_files import as_record, read_json
from hf_heads.jobs.reporting.figures.heads import draw_heads
from hf_heads.jobs.reporting.figures.style import block_label
from hf_heads.jobs.reporting.pieces import Cell, Picture, Table, cells, picture


@dataclass(frozen=True)
class Importance:
    """What a page reads of the scores of heads: the rule, scores by block, and what they were measured on."""

    rule: str
    importance: Mapping[str, tuple[float, ...]]
    data: str = ""

    @property
    def about(self) -> str:
        """The rule in words."""
        return f"by {self.rule}: {RULES[self.rule]}" if self.rule in RULES else f"by {self.rule}"


def read_scores(path: str | Path) -> Importance:
    """Read what `hf-heads importance --output` wrote.

    Raises:
        HeadsError: the file cannot be read, is something else or holds no scores.
    """
    refusal = f"'{path}' does not hold scores of heads as `hf-heads importance` writes them"
    found = as_record(Importance, read_json(path, "scores"), refusal)
    if not any(found.importance.values()):
        raise HeadsError(f"{refusal}: there are none")
    return found


@dataclass(frozen=True)
class HeadsMap:
    """A map of the heads, and its numbers."""

    figure: Picture
    table: Table


def heads_map(folder: Path, found: Importance) -> HeadsMap:
    """Draw `importance.png` into a folder."""
    path = folder / "importance.png"
    draw_heads(path, found.importance, "Importance of heads", "score", numbers=False)
    flat = [
        (score, block_label(name), head) for name, row in found.importance.items() for head, score in enumerate(row)
    ]
    most, least = max(flat), min(flat)
    ends = (
        f"Head {most[2]} of {most[1]} matters most ({most[0]:.2g}), "
        f"head {least[2]} of {least[1]} least ({least[0]:.2g})."
    )
    measured = f" Measured on {found.data}." if found.data else ""
    figure = picture(
        path,
        f"Map of the importance of every head, a row for each attention block. {ends}",
        "Importance of heads.",
        f"B{found.about[1:]}.{measured} {ends}",
    )
    heads = max(map(len, found.importance.values()))
    rows = tuple(
        (Cell(block_label(name), title=name), *cells([*(f"{score:.3g}" for score in row), *[""] * (heads - len(row))]))
        for name, row in found.importance.items()
    )
    return HeadsMap(figure, Table(cells(["Block", *map(str, range(heads))]), rows))
