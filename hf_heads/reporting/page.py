"""A page for people from records of comparisons: one HTML file that needs nothing else, and its figures as PNG."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hf_heads.checkpoints.files import check_output, finished_folder
from hf_heads.checkpoints.json_files import as_record, read_json
from hf_heads.errors import HeadsError
from hf_heads.evaluation.record import Comparison, read_comparison
from hf_heads.reporting.figures.heads import draw_heads
from hf_heads.reporting.figures.style import block_label
from hf_heads.reporting.pieces import element, image, page, pairs, table, text, unbroken
from hf_heads.reporting.section import heading, section
from hf_heads.reporting.words import definitions, summary
from hf_heads.vocabulary import RULES

PAGE = "index.html"


@dataclass(frozen=True)
class Importance:
    """What a page reads of the scores of heads: the rule, scores by block, and what they were measured on."""

    rule: str
    importance: Mapping[str, tuple[float, ...]]
    data: str = ""


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
    _check_folder(folder, overwrite)
    found = [read_comparison(path) for path in comparisons]
    scores = read_scores(importance) if importance else None
    if scores:
        _check_scores(importance, scores.importance, found)
    title = title or "Attention heads of " + " and ".join(dict.fromkeys(one.reference.name for one in found))
    command = ["hf-heads", "report", *map(str, comparisons)]
    command += ["--importance", str(importance)] if importance else []
    with finished_folder(folder, overwrite) as partial:
        parts = ["".join(section(partial, one, place, len(found) > 1)) for place, one in enumerate(found, 1)]
        parts += [_importance(partial, scores.importance, scores.rule, scores.data)] if scores else []
        parts += ['<h2 id="meaning">What the numbers mean</h2>\n', _meaning(found, scores.rule if scores else None)]
        body = element("h1", text(title)) + "\n" + _contents(found) + "".join(parts)
        (partial / PAGE).write_text(page(title, body, _foot(command, folder, found)), encoding="utf-8")
        figures = sorted(path.name for path in partial.glob("*.png"))
    sentences = tuple(tuple(summary(one)) for one in found)
    return WrittenReport(folder / PAGE, tuple(folder / name for name in figures), sentences)


def _check_folder(folder: Path, overwrite: bool) -> None:
    check_output(folder, overwrite)
    if folder.is_dir():
        others = sorted(path.name for path in folder.iterdir() if path.name != PAGE and path.suffix != ".png")
        if others:
            raise HeadsError(f"'{folder}' holds '{others[0]}', which is no part of a report; choose another --output")


def _check_scores(path: object, scores: Mapping[str, object], found: Sequence[Comparison]) -> None:
    blocks = {block_label(block.name) for one in found for model in one.models for block in model.blocks}
    if blocks and not blocks & {block_label(name) for name in scores}:
        raise HeadsError(
            f"the scores '{path}' are of blocks such as '{next(iter(scores))}', which no comparison has; "
            "give scores of the model that was compared"
        )


def _contents(found: Sequence[Comparison]) -> str:
    """Links to the sections of several comparisons."""
    if len(found) == 1:
        return ""
    links = ""
    for place, one in enumerate(found, 1):
        name, data = heading(one)
        links += element("li", element("a", name, href=f"#c{place}") + data)
    return element("nav", element("ul", links), aria_label="Contents") + "\n"


def _importance(folder: Path, values: Mapping[str, Sequence[float]], rule: str, data: str) -> str:
    path = folder / "importance.png"
    draw_heads(path, values, "Importance of heads", "score", numbers=False)
    flat = [(score, name, head) for name, row in values.items() for head, score in enumerate(row)]
    most, least = max(flat), min(flat)
    ends = (
        f"Head {most[2]} of {block_label(most[1])} matters most ({most[0]:.2g}), "
        f"head {least[2]} of {block_label(least[1])} least ({least[0]:.2g})."
    )
    about = f"By {rule}: {RULES[rule]}." if rule in RULES else f"By {rule}."
    measured = f" Measured on {data}." if data else ""
    figure = image(
        path,
        f"Map of the importance of every head, a row for each attention block. {ends}",
        f"<b>Importance of heads.</b> {text(about + measured)} {text(ends)}",
    )
    heads = max(map(len, values.values()))
    rows = [
        [element("span", text(block_label(name)), title=name), *(f"{score:.3g}" for score in row)]
        + [""] * (heads - len(row))
        for name, row in values.items()
    ]
    numbers = table(["Block", *(str(head) for head in range(heads))], rows)
    return (
        '<h2 id="importance">Which heads matter</h2>\n'
        + element("div", "\n" + figure, class_="figures")
        + "\n"
        + element("details", element("summary", "The scores as numbers") + "\n" + numbers)
        + "\n"
    )


def _meaning(found: Sequence[Comparison], rule: str | None) -> str:
    about = None if rule is None else f"by {rule}: {RULES[rule]}" if rule in RULES else f"by {rule}"
    rows = definitions(found, about)
    return pairs(((text(term), text(meaning)) for term, meaning in rows), class_="meaning")


def _foot(command: Sequence[str], folder: Path, found: Sequence[Comparison]) -> str:
    """The commands that lead here."""
    lines = [[*command, "--output", str(folder)]]
    for one, record in zip(found, command[2:], strict=False):
        sources = [model.source or model.name for model in one.models if model.role == "converted"]
        metric = one.metric.name if one.metric else "none"
        lines.append(["hf-heads", "compare", one.original, *sources, "--metric", metric, "--output", record])
    shown = [element("code", " ".join(unbroken(shlex.quote(word)) for word in line)) for line in lines]
    records = "its record" if len(found) == 1 else "their records"
    return (
        element("p", "This page was made by")
        + shown[0]
        + element("p", f"and {records}, on the data named above and with further options as they were, by")
        + "".join(shown[1:])
    )
