"""Figures of a comparison, narrow enough to be read on a telephone; matplotlib is imported when one is drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_heads.jobs.evaluation.record import Comparison, ModelRow
from hf_heads.jobs.reporting.figures.heads import heads_figure
from hf_heads.jobs.reporting.figures.style import (
    COLOURS,
    DASHES,
    FINE,
    GREY,
    MARKERS,
    NARROW,
    TIGHT,
    block_label,
    cut_text,
    draw_page,
    new_page,
    plain_axes,
    plain_text,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes  # an extra, and slow
    from matplotlib.figure import Figure


_METHODS = ("collab", "low-rank", "pruned", "mhe", "mgk")  # have the same colours on every page
_LIGHT, _DARK = "#b3d4ed", "#08407a"  # ends of the scale of the bars
_LINE = 0.185  # inches for a line of text
_LOG_RANGE = 10.0  # errors that spread over more than this factor are drawn over a logarithm
_MOST_LINES = 6  # that are told apart in one pair of axes


def draw_layers(path: Path, found: Comparison) -> bool:
    """Draw the drift of every block of every converted model; False where no block has one."""
    if not any(_drifts(model) for model in found.models[1:]):
        return False
    return draw_page(path, lambda: _layers(found))


def draw_speed(path: Path, found: Comparison) -> bool:
    """Draw bars of the speed relative to the original; False where nothing was timed."""
    if not any(row.ratio for model in found.models[1:] for row in model.timings):
        return False
    return draw_page(path, lambda: _speed(found))


def draw_healing(path: Path, found: Comparison) -> bool:
    """Draw what was measured during healing over time; False where there is no curve of two points."""
    if not healing_curves(found)[1]:
        return False
    return draw_page(path, lambda: _healing(found))


def healing_curves(found: Comparison) -> tuple[str, dict[int, list[tuple[float, float]]]]:
    """The name of the figure that curves show, and the curves of (seconds, figure) by the model's number."""
    for figure in ("cosine", "drift", "loss"):
        curves = {}
        for number, model in enumerate(found.models):
            points = [(row["seconds"], row[figure]) for row in model.curve if "seconds" in row and figure in row]
            if len(points) > 1:
                curves[number] = points
        if curves:
            return figure, curves
    return "cosine", {}


def _layers(found: Comparison) -> Figure:
    """A line for each model over the blocks of all; of many models a map with a row for each."""
    models = [
        (number, model) for number, model in enumerate(found.models) if model.role != "original" and _drifts(model)
    ]
    names = list(dict.fromkeys(block.name for _, model in models for block in model.blocks))
    labels = [block_label(name) for name in names]
    if len(set(labels)) < len(labels):
        labels = names
    if len(models) > _MOST_LINES:
        return _layer_map(models, names, labels)
    values = [value for _, model in models for value in _drifts(model).values()]
    positive = [value for value in values if value > 0]
    figure, axes = new_page(NARROW, 2.9 + _LINE * _legend_lines(models), "Error of each attention block", FINE)
    plain_axes(axes)
    axes.set_ylabel("relative squared error")
    if positive and max(positive) / min(positive) > _LOG_RANGE:
        if len(positive) == len(values):
            axes.set_yscale("log")
        else:  # zeros, which a logarithm has no place for, lie on the axis below
            axes.set_yscale("symlog", linthresh=min(positive))
    else:
        axes.set_ylim(0, (max(positive) if positive else 1.0) * 1.06)
    for places in _runs(labels):
        for number, model in models:
            drifts = _drifts(model)
            points = [(place, drifts[names[place]]) for place in places if names[place] in drifts]
            if points:
                axes.plot(*zip(*points, strict=True), **_line_look(number, model, found))
    _block_ticks(figure, axes, labels, 14)
    _model_legend(figure, models, found)
    return figure


def _layer_map(models: Sequence[tuple[int, ModelRow]], names: Sequence[str], labels: Sequence[str]) -> Figure:
    """A row for each model and a column for each block."""
    rows = {
        plain_text(f"{cut_text(model.name, 17)}  {number}"): [_drifts(model).get(name, math.nan) for name in names]
        for number, model in models
    }
    figure = heads_figure(
        rows, len(names), "Error of each attention block", "relative squared error", {}, numbers=False
    )
    _block_ticks(figure, figure.axes[0], labels, 9)
    return figure


def _block_ticks(figure: Figure, axes: Axes, labels: Sequence[str], most: int) -> None:
    """Name the blocks below the axes: by number where all are layers of one stack, else along the axis upwards."""
    if all(label.startswith("layer ") and label[6:].isdigit() for label in labels):
        step = math.ceil(len(labels) / most)
        axes.set_xlabel("layer")
        axes.set_xticks(range(0, len(labels), step), [label[6:] for label in labels[::step]])
        return
    axes.set_xlabel("")
    axes.set_xticks(range(len(labels)), [plain_text(cut_text(label, 22)) for label in labels], rotation=90)
    figure.set_figheight(figure.get_figheight() + 0.06 * min(22, max(map(len, labels))))


def _speed(found: Comparison) -> Figure:
    """Bars from 1 to the ratio, a group for each model."""
    from matplotlib.colors import LinearSegmentedColormap, to_hex  # an extra, and slow
    from matplotlib.patches import Patch

    models = [(n, model) for n, model in enumerate(found.models) if n and any(row.ratio for row in model.timings)]
    settings = list(dict.fromkeys(row.setting for _, model in models for row in model.timings if row.ratio))
    scale = LinearSegmentedColormap.from_list("", [_LIGHT, _DARK])
    shades = [to_hex(scale(place / max(len(settings) - 1, 1))) for place in range(len(settings))]
    thick = 0.07  # inches of a bar; a row has room for its name at least
    row_height = max(0.23, thick * len(settings) + 0.07)
    legend = math.ceil(len(settings) / 2)
    height = 1.1 + row_height * len(models) + _LINE * legend
    figure, axes = new_page(NARROW, height, "Speed relative to the original", FINE)
    plain_axes(axes)
    axes.axvline(1, color="0.25", linewidth=1)
    share = thick / row_height
    for place, (_, model) in enumerate(models):
        rows = [row for row in model.timings if row.ratio]
        for bar, row in enumerate(rows):
            y = place + (bar - (len(rows) - 1) / 2) * share
            axes.barh(y, (row.ratio or 1.0) - 1, left=1, height=0.9 * share, color=shades[settings.index(row.setting)])
            if row.ratio_low is not None and row.ratio_high is not None:
                axes.plot((row.ratio_low, row.ratio_high), (y, y), color="0.25", linewidth=0.8, solid_capstyle="butt")
    axes.set_ylim(len(models) - 0.4, -0.6)
    axes.set_yticks(
        range(len(models)), [plain_text(f"{cut_text(model.name, 17)}  {number}") for number, model in models]
    )
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("times the original's speed")
    handles = [Patch(color=shade, label=name) for name, shade in zip(settings, shades, strict=True)]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, **TIGHT)
    return figure


def _healing(found: Comparison) -> Figure:
    """A line for each healed model over seconds or minutes."""
    label, curves = healing_curves(found)
    models = [(number, found.models[number]) for number in curves]
    minutes = max(x for points in curves.values() for x, _ in points) > 300
    figure, axes = new_page(NARROW, 2.9 + _LINE * _legend_lines(models), "Healing", FINE)
    plain_axes(axes)
    axes.set(xlabel="minutes of training" if minutes else "seconds of training")
    axes.set_ylabel("cosine to the original" if label == "cosine" else label)
    for number, model in models:
        points = [(x / 60 if minutes else x, y) for x, y in curves[number]]
        axes.plot(*zip(*points, strict=True), **_line_look(number, model, found))
    _model_legend(figure, models, found)
    return figure


def method_styles(found: Comparison) -> dict[str, tuple[str, str]]:
    """Colour and marker by method; a mixture of methods takes what the single ones leave."""
    mixtures = [name for name in dict.fromkeys(model.method for model in found.models) if name not in _METHODS]
    mixtures = [name for name in mixtures if name != "standard"]
    return {
        name: (COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)])
        for place, name in enumerate((*_METHODS, *mixtures))
    }


def group_of(model: ModelRow) -> str:
    """What models of one colour have in common: the method, or a role of its own."""
    return model.method if model.role == "converted" else model.role


def look_of(model: ModelRow, styles: Mapping[str, tuple[str, str]]) -> dict[str, Any]:
    """How a model's point is drawn."""
    if model.role == "original":
        return {"color": "black", "marker": "*", "markersize": 12}
    if model.role == "control":
        return {"color": GREY, "marker": "X", "markersize": 8}
    colour, marker = styles.get(model.method, ("black", "o"))
    return {"color": colour, "marker": marker, "markersize": 7}


def _line_look(number: int, model: ModelRow, found: Comparison) -> dict[str, Any]:
    """How a model's line is drawn: the method's colour, filled where healed, dashes by its place among those alike."""
    look = look_of(model, method_styles(found))
    some_healed = any(other.healed for other in found.models)

    def kind(other: ModelRow) -> tuple[str, bool]:
        return group_of(other), bool(other.healed)

    place = [index for index, other in enumerate(found.models) if kind(other) == kind(model)].index(number)
    hollow = some_healed and model.role == "converted" and not model.healed
    if not some_healed:
        hollow, place = place % 2 == 1, place // 2
    return {
        **look,
        "markersize": 5.5,
        "markerfacecolor": "white" if hollow else look["color"],
        "linestyle": DASHES[place % len(DASHES)],
        "linewidth": 1.5,
    }


def _model_legend(figure: Figure, models: Sequence[tuple[int, ModelRow]], found: Comparison) -> None:
    from matplotlib.lines import Line2D  # an extra, and slow

    handles = [
        Line2D([], [], label=plain_text(f"{number}  {cut_text(model.name, 42)}"), **_line_look(number, model, found))
        for number, model in models
    ]
    columns = 1 if _legend_lines(models) == len(models) else 2
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, **TIGHT)


def _legend_lines(models: Sequence[tuple[int, ModelRow]]) -> int:
    short = all(len(model.name) <= 18 for _, model in models)
    return math.ceil(len(models) / 2) if short else len(models)


def _runs(labels: Sequence[str]) -> list[list[int]]:
    """The places of blocks that follow each other, by kind: a line joins layers of one stack only."""
    runs: dict[str, list[int]] = {}
    for place, label in enumerate(labels):
        runs.setdefault("".join(sign for sign in label if not sign.isdigit()), []).append(place)
    return list(runs.values())


def _drifts(model: ModelRow) -> dict[str, float]:
    return {block.name: block.drift for block in model.blocks if block.drift is not None}
