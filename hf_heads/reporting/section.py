"""The section of a report about one comparison: summary, table, figures, and each model folded away."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from hf_heads.evaluation.record import Comparison, ModelRow
from hf_heads.reporting.figures.comparison import draw_healing, draw_layers, draw_speed, healing_curves
from hf_heads.reporting.figures.quality import draw_quality
from hf_heads.reporting.figures.style import block_label
from hf_heads.reporting.pieces import element, image, pairs, table, text, unbroken
from hf_heads.reporting.words import (
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


def section(folder: Path, found: Comparison, place: int, several: bool) -> Iterator[str]:
    """All of one comparison."""
    if several:
        name, data = heading(found)
        yield element("h2", name + data, id=f"c{place}") + "\n"
    yield element("p", _facts(found), class_="facts") + "\n"
    points = "".join(element("li", _named(sentence)) + "\n" for sentence in marked_summary(found))
    yield element("ul", points, class_="summary") + "\n"
    yield _main_table(found, place)
    figures = "".join(_figures(folder, found, f"-{place}" if several else ""))
    if figures:
        yield element("div", "\n" + figures, class_="figures") + "\n"
    level = "h3" if several else "h2"
    yield element(level, "Each model") + "\n"
    for number, model in enumerate(found.models):
        yield _details(found, number, model, f"c{place}-m{number}")


def heading(found: Comparison) -> tuple[str, str]:
    """What was compared, and on what; markup."""
    return text(found.reference.name), element("small", text(f"on {found.data}")) if found.data else ""


def _named(sentence: str) -> str:
    """A sentence of `marked_summary` with its names set off."""
    pieces = re.split(f"{NAME_BEGINS}(.*?){NAME_ENDS}", sentence, flags=re.S)
    made = (element("b", unbroken(piece)) if place % 2 else text(piece) for place, piece in enumerate(pieces))
    return "".join(made).replace(" %", "&nbsp;%")


def _facts(found: Comparison) -> str:
    """What was compared, on what, when and where."""
    count = sum(model.role != "original" for model in found.models)
    parts = [f"{found.reference.name} and {count} {'model' if count == 1 else 'models'} made from it"]
    if found.data:
        parts.append(f"outputs compared on {found.data}")
    if found.metric and found.metric.examples:
        parts.append(f"{found.metric.name} over {found.metric.examples:,} examples")
    if found.date:
        parts.append(found.date)
    if found.versions:
        parts.append(", ".join(f"{name} {version}" for name, version in found.versions.items()))
    if found.machine:
        parts.append(found.machine)
    if found.device or found.threads:
        threads = f"{found.threads} thread{'s' if found.threads != 1 else ''}" if found.threads else ""
        parts.append(", ".join(part for part in (found.device, threads) if part))
    return " \N{MIDDLE DOT} ".join(unbroken(part) for part in parts)


def _main_table(found: Comparison, place: int) -> str:
    reference, front = found.reference, found.front()
    lengths = sorted(set.intersection(*(set(model.multiply_adds) for model in found.models)))
    length = lengths[-1] if lengths else None
    has_cache = any(model.cache_per_token for model in found.models)
    has_speed = any(model.speed is not None for model in found.models)
    has_cosine = any("cosine" in (model.drift or {}) for model in found.models)
    head = ["Model", "Settings", "Attention parameters", "Change"]
    head += ["Cache per token"] if has_cache else []
    head += [f"Multiply-adds <small>length {length}</small>"] if length is not None else []
    head += ["Speed"] if has_speed else []
    head += ["Cosine"] if has_cosine else []
    head += [text(found.metric.name), "Difference"] if found.metric else []
    rows = []
    for number, model in enumerate(found.models):
        notes: list[str] = [] if model.role == "converted" else [model.role]
        notes += ["healed"] if model.healed else []
        notes += ["on the front"] if number in front and model.role == "converted" else []
        link = element("a", text(model.name), href=f"#c{place}-m{number}")
        label = f"{number}. " if number else ""
        row = [label + link + (element("small", ", ".join(notes)) if notes else "")]
        row += [text(model.settings), big(model.attention_parameters)]
        row += [change(reference.attention_parameters, model.attention_parameters) if number else ""]
        row += [big(model.cache_per_token)] if has_cache else []
        row += [big(model.multiply_adds[length])] if length is not None else []
        row += [_speed(model)] if has_speed else []
        row += [_cosine(model)] if has_cosine else []
        row += _score(model) if found.metric else []
        rows.append(row)
    caption = "Numbers before the names are those in the figures."
    if any(model.score and model.score.clear is False for model in found.models[1:]):
        caption += " A grey difference is one whose 95 % interval includes zero."
    return element("p", caption, class_="facts") + "\n" + table(head, rows, words=2, wide=True)


def _speed(model: ModelRow) -> str:
    if model.role == "original":
        return "1"
    return NONE if model.speed is None else f"{model.speed:.2f}"


def _cosine(model: ModelRow) -> str:
    return "1" if model.role == "original" else quality_text((model.drift or {}).get("cosine"))


def _score(model: ModelRow) -> list[str]:
    """The cells of the task score and of its difference."""
    if model.score is None:
        return [NONE, NONE]
    score = model.score
    digits = 3 if abs(score.value) < 10 else 2
    cells = [quality_text(score.value) + _small(interval(score.low, score.high, digits=digits))]
    if model.role == "original":
        return [*cells, ""]
    difference, ends = difference_text(score)
    shown = (difference or NONE) + _small(ends)
    return [*cells, element("span", shown, class_="unsure") if score.clear is False else shown]


def _small(inside: str) -> str:
    return element("small", text(inside)) if inside else ""


def _figures(folder: Path, found: Comparison, ending: str) -> Iterator[str]:
    """The figures that there is something for."""
    name, original = quality_name(found), found.reference.name
    several = f"{len(found.models) - 1} models" if len(found.models) > 2 else "one model"
    path = folder / f"quality{ending}.png"
    if draw_quality(path, found):
        bars = (
            " Vertical lines are 95 % intervals of each score; those of the differences are in the table."
            if any(m.score and m.score.low is not None for m in found.models)
            else ""
        )
        arrows = any(found.before_healing(model) is not None for model in found.models)
        link = " An arrow leads from a model to itself after healing." if arrows else ""
        yield image(
            path,
            f"Scatter plot of {name} against attention parameters of {original} and {several}. "
            + " ".join(summary(found)[:1]),
            f"<b>Quality against size.</b> Up and to the left is better.{text(bars + link)} The grey steps are the "
            "Pareto front; numbers are those of the table."
            if found.sign > 0
            else f"<b>Quality against size.</b> Down and to the left is better.{text(bars + link)} The grey steps are "
            "the Pareto front; numbers are those of the table.",
        )
    path = folder / f"layers{ending}.png"
    if draw_layers(path, found):
        yield image(
            path,
            f"The error of each attention block of the models made from {original}. {_worst_block(found)}",
            "<b>Error of each attention block.</b> Squared difference of what a block adds to the residual stream, as "
            f"a share of the original's squares. {text(_worst_block(found))}",
        )
    path = folder / f"speed{ending}.png"
    if draw_speed(path, found):
        yield image(
            path,
            f"Bars of the speed of {several} relative to {original}. " + " ".join(summary(found)[-1:]),
            "<b>Speed relative to the original.</b> The original's time over the model's, medians of repeated runs, "
            "for each batch and length. Bars to the right of 1 are faster.",
        )
    path = folder / f"healing{ending}.png"
    if draw_healing(path, found):
        figure, curves = healing_curves(found)
        best = max if figure == "cosine" else min
        ends = "; ".join(
            f"{found.models[number].name} from {quality_text(points[0][1])} to at best "
            + quality_text(best(y for _, y in points))
            for number, points in curves.items()
        )
        yield image(
            path,
            f"Curves of the {figure} over the time of training: {ends}.",
            f"<b>Healing.</b> What was measured on held-out examples while the converted model was trained towards "
            f"the original: the {figure}.",
        )


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


def _details(found: Comparison, number: int, model: ModelRow, anchor: str) -> str:
    """What is recorded of one model, folded away."""
    label = f"{number}. {text(model.name)}" if number else text(model.name)
    facts = [
        ("source", element("code", text(model.source)) if model.source else ""),
        ("role", model.role),
        ("settings", text(model.settings)),
        ("calibration", text(model.calibration or "")),
        ("healing", text(_healed(model))),
        ("attention parameters", f"{model.attention_parameters:,}"),
        ("model parameters", f"{model.model_parameters:,}" if model.model_parameters else ""),
        ("cache per token", f"{model.cache_per_token:,}" if model.cache_per_token else ""),
        *(
            (f"multiply-adds at length {length}", f"{count:,.0f}")
            for length, count in sorted(model.multiply_adds.items())
        ),
        *(
            (DRIFTS[name][0] if name in DRIFTS else text(name), f"{value:.6g}")
            for name, value in (model.drift or {}).items()
        ),
    ]
    inside = [pairs((term, found) for term, found in facts if found)]
    memory = {(row.batch, row.length): row.bytes for row in model.peak_memory}
    if model.timings:
        rows = [
            [
                row.setting,
                f"{row.milliseconds:,.1f}",
                f"{row.tokens_per_second:,.0f}",
                f"{row.ratio:.3f}",
                f"{memory[key] / 2**20:,.1f}" if (key := (row.batch, row.length)) in memory else NONE,
            ]
            for row in model.latency
        ]
        rows += [
            [row.setting, NONE, f"{row.tokens_per_second:,.0f}", f"{row.ratio:.3f}", NONE] for row in model.generation
        ]
        inside.append(table(["Timed", "Milliseconds", "Tokens per second", "Speed", "Peak memory, MiB"], rows))
    if model.blocks:
        rows = [
            [
                element("span", text(block_label(block.name)), title=block.name),
                text(block.settings),
                f"{block.heads:,}",
                f"{block.parameters:,}",
                f"{block.parameters_before:,}",
                f"{block.cache:,}",
                f"{block.cache_before:,}",
                NONE if block.drift is None else f"{block.drift:.3g}",
            ]
            for block in model.blocks
        ]
        head = ["Block", "Settings", "Heads", "Parameters", "before", "Cache", "before", "Error"]
        inside.append(table(head, rows, words=2))
    title = element("summary", label + element("span", text(model.settings if number else model.role)))
    return element("details", title + "\n" + "".join(inside), id=anchor) + "\n"


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
