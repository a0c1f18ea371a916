"""The section of a report about one comparison, as data for the templates: summary, table, figures, each model."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from hf_heads.jobs.evaluation.record import Comparison, ModelRow
from hf_heads.jobs.reporting.figures.comparison import draw_healing, draw_layers, draw_speed, healing_curves
from hf_heads.jobs.reporting.figures.quality import draw_quality
from hf_heads.jobs.reporting.figures.style import block_label
from hf_heads.jobs.reporting.pieces import Cell, Picture, Spot, Table, cells, picture
from hf_heads.jobs.reporting.words import (
    DRIFTS,
    NAME_BEGINS,
    NAME_ENDS,
    NONE,
    big,
    change,
    difference_text,
    duration,
    interval,
    marked_summary,
    quality_name,
    quality_text,
    summary,
)


@dataclass(frozen=True)
class Details:
    """What is recorded of one model, folded away.

    Attributes:
        anchor: links lead there.
        label, aside: what is shown while it is folded.
        source: of the model.
        command: that made it; empty where none is recorded.
        facts: terms with what belongs to them.
        tables: what was timed, and the blocks.
    """

    anchor: str
    label: str
    aside: str
    source: str
    command: str
    facts: tuple[tuple[str, str], ...]
    tables: tuple[Table, ...]


@dataclass(frozen=True)
class Section:
    """All of one comparison.

    Attributes:
        anchor: links lead there.
        name, data: what was compared, and on what.
        facts: what was compared, on what, when and where.
        summary: sentences, each in pieces: every second one is the name of a model.
        caption, table: the main table and what is said above it.
        figures: those that there is something for.
        models: each in detail.
    """

    anchor: str
    name: str
    data: str
    facts: tuple[str, ...]
    summary: tuple[tuple[str, ...], ...]
    caption: str
    table: Table
    figures: tuple[Picture, ...]
    models: tuple[Details, ...]


def section(folder: Path, found: Comparison, place: int, several: bool) -> Section:
    """The section of a comparison, whose figures are drawn into a folder.

    Args:
        folder: where to.
        found: the comparison.
        place: of the section on the page, from 1.
        several: whether there are other sections.
    """
    return Section(
        anchor=f"c{place}",
        name=found.reference.name,
        data=found.data,
        facts=tuple(_facts(found)),
        summary=tuple(_pieces(sentence) for sentence in marked_summary(found)),
        caption=_caption(found),
        table=_main_table(found, place),
        figures=tuple(_figures(folder, found, place, several)),
        models=tuple(_details(number, model, f"c{place}-m{number}") for number, model in enumerate(found.models)),
    )


def _pieces(sentence: str) -> tuple[str, ...]:
    """A sentence of `marked_summary`, split at its names."""
    whole = sentence.replace(" %", "\N{NO-BREAK SPACE}%")
    return tuple(re.split(f"{NAME_BEGINS}(.*?){NAME_ENDS}", whole, flags=re.S))


def _facts(found: Comparison) -> Iterator[str]:
    """What was compared, on what, when and where."""
    count = len(found.models) - 1
    yield f"{found.reference.name} and {count} {'model' if count == 1 else 'models'} made from it"
    if found.data:
        yield f"outputs compared on {found.data}"
    if found.metric and found.metric.examples:
        yield f"{found.metric.name} over {found.metric.examples:,} examples"
    if found.date:
        yield found.date
    if found.versions:
        yield ", ".join(f"{name} {version}" for name, version in found.versions.items())
    if found.machine:
        yield found.machine
    threads = f"{found.threads} thread{'s' if found.threads != 1 else ''}" if found.threads else ""
    if where := ", ".join(part for part in (found.device, threads) if part):
        yield where


def _caption(found: Comparison) -> str:
    text = "Numbers before the names are those in the figures."
    if any(model.score and model.score.clear is False for model in found.models[1:]):
        text += " A grey difference is one whose 95 % interval includes zero."
    return text


def _main_table(found: Comparison, place: int) -> Table:
    """A row for each model; columns for what was measured of any."""
    reference, front = found.reference, found.front()
    length = max(set.intersection(*(set(model.multiply_adds) for model in found.models)), default=None)
    has_cache = any(model.cache_per_token for model in found.models)
    has_speed = any(model.speed is not None for model in found.models)
    has_cosine = any("cosine" in (model.drift or {}) for model in found.models)
    head = [*cells(("Model", "Settings", "Attention parameters", "Change"))]
    head += [Cell("Cache per token")] if has_cache else []
    head += [] if length is None else [Cell("Multiply-adds", small=f"length {length}")]
    generates = any(model.generation for model in found.models)
    head += [Cell("Speed", small="generating" if generates else "")] if has_speed else []
    head += [Cell("Cosine")] if has_cosine else []
    head += [Cell(found.metric.name), Cell("Difference")] if found.metric else []
    rows = []
    for number, model in enumerate(found.models):
        smaller = change(reference.attention_parameters, model.attention_parameters) if number else ""
        row = [_name(number, model, number in front, f"#c{place}-m{number}")]
        row += cells((model.settings, big(model.attention_parameters), smaller))
        row += [Cell(big(model.cache_per_token))] if has_cache else []
        row += [] if length is None else [Cell(big(model.multiply_adds[length]))]
        row += [Cell(_speed(model))] if has_speed else []
        row += [Cell(_cosine(model))] if has_cosine else []
        row += _score(model) if found.metric else []
        rows.append(tuple(row))
    return Table(tuple(head), tuple(rows), words=2, wide=True)


def _name(number: int, model: ModelRow, on_front: bool, href: str) -> Cell:
    notes = [] if model.role == "converted" else [str(model.role)]
    notes += ["healed"] if model.healed else []
    notes += ["on the front"] if on_front and model.role == "converted" else []
    return Cell(model.name, small=", ".join(notes), before=f"{number}. " if number else "", href=href)


def _speed(model: ModelRow) -> str:
    if model.role == "original":
        return "1"
    return NONE if model.speed is None else f"{model.speed:.2f}"


def _cosine(model: ModelRow) -> str:
    return "1" if model.role == "original" else quality_text((model.drift or {}).get("cosine"))


def _score(model: ModelRow) -> list[Cell]:
    """The cells of the task score and of its difference."""
    if (score := model.score) is None:
        return [Cell(NONE), Cell(NONE)]
    digits = 3 if abs(score.value) < 10 else 2
    value = Cell(quality_text(score.value), small=interval(score.low, score.high, digits=digits))
    if model.role == "original":
        return [value, Cell("")]
    difference, ends = difference_text(score)
    return [value, Cell(difference or NONE, small=ends, unsure=score.clear is False)]


def _figures(folder: Path, found: Comparison, place: int, several: bool) -> Iterator[Picture]:
    """The figures that there is something for."""
    ending = f"-{place}" if several else ""
    original = found.reference.name
    others = f"{len(found.models) - 1} models" if len(found.models) > 2 else "one model"
    said = summary(found)
    path = folder / f"quality{ending}.png"
    if points := draw_quality(path, found):
        made = picture(
            path,
            f"Scatter plot of {quality_name(found)} against attention parameters of {original} and {others}. "
            + said[0],
            "Quality against size.",
            _quality_caption(found),
        )
        yield replace(made, spots=_spots(made, found, points, place))
    path = folder / f"layers{ending}.png"
    if draw_layers(path, found):
        worst = _worst_block(found)
        yield picture(
            path,
            f"The error of each attention block of the models made from {original}. {worst}",
            "Error of each attention block.",
            "Squared difference of what a block adds to the residual stream, as a share of the original's squares. "
            + worst,
        )
    path = folder / f"speed{ending}.png"
    if draw_speed(path, found):
        yield picture(
            path,
            f"Bars of the speed of {others} relative to {original}. {said[-1]}",
            "Speed relative to the original.",
            "The original's time over the model's, medians of repeated runs, for each batch and length. Bars to the "
            "right of 1 are faster; thin lines are the middle half of the rounds.",
        )
    path = folder / f"healing{ending}.png"
    if draw_healing(path, found):
        figure, ends = _healing_ends(found)
        yield picture(
            path,
            f"Curves of the {figure} over the time of training: {ends}.",
            "Healing.",
            "What was measured on held-out examples while the converted model was trained towards the original: the "
            f"{figure}.",
        )


def _spots(made: Picture, found: Comparison, points: Mapping[int, tuple[float, float]], place: int) -> tuple[Spot, ...]:
    """Each model's point as a link to what is known of the model, and the command that made it."""
    return tuple(
        Spot(round(x * made.width), round(y * made.height), f"#c{place}-m{number}", found.models[number].name)
        for number, (x, y) in points.items()
    )


def _quality_caption(found: Comparison) -> str:
    text = f"{'Up' if found.sign > 0 else 'Down'} and to the left is better."
    if any(model.score and model.score.low is not None for model in found.models):
        text += " Vertical lines are 95 % intervals of each score; those of the differences are in the table."
    if any(found.before_healing(model) is not None for model in found.models):
        text += " An arrow leads from a model to itself after healing."
    return text + " The grey steps are the Pareto front; numbers are those of the table. A point leads to its model."


def _healing_ends(found: Comparison) -> tuple[str, str]:
    """The name of the figure that curves of healing show, and where each curve begins and what is best on it."""
    figure, curves = healing_curves(found)
    best = max if figure == "cosine" else min
    texts = (
        f"{found.models[number].name} from {quality_text(points[0][1])} to at best "
        + quality_text(best(y for _, y in points))
        for number, points in curves.items()
    )
    return figure, "; ".join(texts)


def _worst_block(found: Comparison) -> str:
    """The block with the largest error over all converted models."""
    drifts = [
        (block.drift, block_label(block.name), model.name)
        for model in found.models
        for block in model.blocks
        if block.drift is not None and model.role == "converted"
    ]
    if not drifts:
        return ""
    drift, block, name = max(drifts)
    return f"Of the converted models the largest is {drift:.2g}, of {block} in {name}."


def _details(number: int, model: ModelRow, anchor: str) -> Details:
    """What is recorded of one model."""
    facts = [
        ("role", model.role),
        ("settings", model.settings),
        ("calibration", model.calibration or ""),
        ("healing", _healed(model)),
        ("attention parameters", f"{model.attention_parameters:,}"),
        ("model parameters", f"{model.model_parameters:,}" if model.model_parameters else ""),
        ("cache per token", f"{model.cache_per_token:,}" if model.cache_per_token else ""),
        *((f"multiply-adds at length {length}", f"{count:,}") for length, count in sorted(model.multiply_adds.items())),
        *((DRIFTS[name][0] if name in DRIFTS else name, f"{one:.6g}") for name, one in (model.drift or {}).items()),
    ]
    return Details(
        anchor=anchor,
        label=f"{number}. {model.name}" if number else model.name,
        aside=model.settings if number else model.role,
        source=model.source,
        command=model.command or "",
        facts=tuple((term, found) for term, found in facts if found),
        tables=tuple(table for table in (_times(model), _blocks(model)) if table.rows),
    )


def _times(model: ModelRow) -> Table:
    """What was timed, and the memory of forward passes."""
    memory = {(row.batch, row.length): f"{row.bytes / 2**20:,.1f}" for row in model.peak_memory}
    rows = [
        (
            row.setting,
            f"{row.milliseconds:,.1f}",
            f"{row.tokens_per_second:,.0f}",
            f"{row.ratio:.3f}",
            memory.get((row.batch, row.length), NONE),
        )
        for row in model.latency
    ]
    rows += [(one.setting, NONE, f"{one.tokens_per_second:,.0f}", f"{one.ratio:.3f}", NONE) for one in model.generation]
    head = cells(("Timed", "Milliseconds", "Tokens per second", "Speed", "Peak memory, MiB"))
    return Table(head, tuple(map(cells, rows)))


def _blocks(model: ModelRow) -> Table:
    rows = (
        (
            Cell(block_label(block.name), title=block.name),
            Cell(block.settings),
            *(
                Cell(f"{one:,}")
                for one in (block.heads, block.parameters, block.parameters_before, block.cache, block.cache_before)
            ),
            Cell(NONE if block.drift is None else f"{block.drift:.3g}"),
        )
        for block in model.blocks
    )
    head = cells(("Block", "Settings", "Heads", "Parameters", "before", "Cache", "before", "Error"))
    return Table(head, tuple(rows), words=2)


def _healed(model: ModelRow) -> str:
    """What is recorded of the healing, in a line."""
    if model.healed is None:
        return ""
    parts = []
    seconds, steps, data = (model.healed.get(name) for name in ("seconds", "steps", "data"))
    if isinstance(seconds, (int, float)):
        parts.append(duration(seconds))
    if isinstance(steps, (int, float)):
        parts.append(f"{steps:,.0f} steps")
    parts += [f"on {data}"] if data else []
    return ", ".join(parts) or "yes"
