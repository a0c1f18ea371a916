"""A page for people from records of comparisons: one HTML file that needs nothing else, and its figures as PNG."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from hf_heads.core.errors import HeadsError
from hf_heads.io.checkpoints.files import check_output, finished_folder, write_file
from hf_heads.jobs.evaluation.record import Comparison, read_comparison
from hf_heads.jobs.reporting.figures.style import block_label
from hf_heads.jobs.reporting.importance import heads_map, read_scores
from hf_heads.jobs.reporting.section import section
from hf_heads.jobs.reporting.words import definitions, summary

PAGE = "index.html"
_FIGURE = re.compile(r"(importance|(quality|layers|speed|healing)(-\d+)?)\.png")


@dataclass(frozen=True)
class WrittenReport:
    """What was written.

    Attributes:
        page: the HTML file.
        figures: the PNG files beside it.
        summary: for each comparison the sentences that open its section.
    """

    page: Path
    figures: tuple[Path, ...]
    summary: tuple[tuple[str, ...], ...]


def write_report(
    comparisons: Sequence[str | Path],
    output: str | Path,
    *,
    importance: str | Path | None = None,
    title: str | None = None,
    overwrite: bool = False,
) -> WrittenReport:
    """Write `index.html` and its figures; all or nothing.

    Args:
        comparisons: files that `hf-heads compare --output` wrote, a section each.
        output: the folder to make.
        importance: a file that `hf-heads importance --output` wrote, for a map of the heads.
        title: of the page; by default it says what was compared.
        overwrite: replace the folder if it is an earlier report.

    Raises:
        HeadsError: a file cannot be read or is something else, the folder cannot be written, is there without
            `overwrite` or holds other things than a report, or matplotlib is missing.
    """
    folder = Path(output)
    place = check_output(folder, overwrite, _no_report)
    found = [read_comparison(path) for path in comparisons]
    scores = read_scores(importance) if importance else None
    if scores:
        _check_scores(importance, scores.importance, found)
    title = title or "Attention heads of " + " and ".join(dict.fromkeys(one.reference.name for one in found))
    command = ["hf-heads", "report", *map(str, comparisons)]
    command += ["--importance", str(importance)] if importance else []
    with finished_folder(place) as partial:
        html = _template().render(
            title=title,
            sections=[section(partial, one, place, len(found) > 1) for place, one in enumerate(found, 1)],
            importance=heads_map(partial, scores) if scores else None,
            definitions=definitions(found, scores.about if scores else None),
            commands=_commands(command, folder, found),
        )
        write_file(partial / PAGE, html)
        figures = sorted(path.name for path in partial.glob("*.png"))
    sentences = tuple(tuple(summary(one)) for one in found)
    return WrittenReport(folder / PAGE, tuple(folder / name for name in figures), sentences)


@cache
def _template() -> Template:
    """The template of a page, compiled once; all that is put into it is escaped."""
    environment = Environment(
        loader=PackageLoader("hf_heads.jobs.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.jinja")


def _no_report(folder: Path) -> str | None:
    """The first name in a folder that is not part of a report; None of a report, or where nothing is."""
    names = sorted(path.name for path in folder.iterdir())
    strange = [name for name in names if name != PAGE and not _FIGURE.fullmatch(name)]
    return next(iter(strange), None if PAGE in names or not names else names[0])


def _check_scores(path: object, scores: Mapping[str, object], found: Sequence[Comparison]) -> None:
    blocks = {block_label(block.name) for one in found for model in one.models for block in model.blocks}
    if blocks and not blocks & {block_label(name) for name in scores}:
        raise HeadsError(
            f"the scores '{path}' are of blocks such as '{next(iter(scores))}', which no comparison has; "
            "give scores of the model that was compared"
        )


def _commands(command: Sequence[str], folder: Path, found: Sequence[Comparison]) -> list[list[str]]:
    """The commands that lead to a page, in words for a shell: its own, then a comparison each."""
    lines = [[*command, "--output", str(folder)]]
    for one, record in zip(found, command[2:], strict=False):
        sources = [model.source or model.name for model in one.models if model.role == "converted"]
        metric = one.metric.name if one.metric else "none"
        lines.append(["hf-heads", "compare", one.original, *sources, "--metric", metric, "--output", record])
    return [[shlex.quote(_place(part)) for part in line] for line in lines]


def _place(part: str) -> str:
    """A part of a command; a path that says where somebody keeps files is its last part."""
    return f"./{Path(part).name}" if part.startswith(("/", "~", "../")) else part
