"""The figure of quality against size, with the Pareto front."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_heads.jobs.evaluation.record import Comparison
from hf_heads.jobs.reporting.figures.comparison import group_of, look_of, method_styles
from hf_heads.jobs.reporting.figures.style import (
    FINE,
    NARROW,
    TIGHT,
    draw_page,
    new_page,
    plain_axes,
    plain_text,
    shortened,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes  # an extra, and slow
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D


_FRONT = "0.72"  # a light grey


def draw_quality(path: Path, found: Comparison) -> dict[int, tuple[float, float]]:
    """Draw quality against attention parameters with the Pareto front.

    Returns:
        Where each model's point is, by the model's number: shares of the width and the height, from the upper left
        corner. Empty where fewer than two models have both figures, and nothing is drawn.
    """
    spots: dict[int, tuple[float, float]] = {}
    if sum(found.quality(model) is not None for model in found.models) >= 2:
        draw_page(path, lambda: _quality(found, spots))
    return spots


def _quality(found: Comparison, spots: dict[int, tuple[float, float]]) -> Figure:
    """Points of (attention parameters, quality) with the front as steps; numbers are those of the table."""
    figure, axes = new_page(NARROW, 4.0, "Quality against size", FINE)
    plain_axes(axes)
    metric = found.metric
    better = "" if metric is None or metric.higher_is_better else ", lower is better"
    largest = max(model.attention_parameters for model in found.models)
    unit, word = (1e6, " (million)") if largest >= 1e6 else (1e3, " (thousand)") if largest >= 1e3 else (1.0, "")
    axes.set_xlabel("attention parameters" + word)
    axes.set_ylabel(plain_text(metric.name if metric else "cosine to the original") + better)
    some_healed = any(model.healed for model in found.models)
    placed = {
        number: (model.attention_parameters / unit, quality)
        for number, model in enumerate(found.models)
        if (quality := found.quality(model)) is not None
    }
    _limits(axes, found, placed)
    if front := [placed[number] for number in found.front() if found.models[number].role != "control"]:
        axes.step(*zip(*front, strict=True), where="post", color=_FRONT, linewidth=1.4, zorder=1)
    low, high = axes.get_ylim()
    inside = {number: point for number, point in placed.items() if low <= point[1] <= high}
    for number, (x, y) in placed.items():
        model = found.models[number]
        if number not in inside:
            _far_away(axes, x, y, model.role)
            continue
        look = look_of(model, method_styles(found))
        if model.score and model.score.low is not None and model.score.high is not None:
            ends = (model.score.low, model.score.high)
            axes.plot((x, x), ends, color=look["color"], linewidth=1, alpha=0.6, zorder=2)
        if some_healed and model.role == "converted" and not model.healed:
            look["markerfacecolor"] = "white"
        axes.plot(x, y, markeredgewidth=1.3, linestyle="none", zorder=3, **look)
        earlier = found.before_healing(model)
        if earlier in placed:
            arrow = {"arrowstyle": "->", "color": look["color"], "shrinkA": 5, "shrinkB": 5, "alpha": 0.8}
            axes.annotate("", (x, y), placed[earlier], arrowprops=arrow, zorder=2)
    names = {n: str(n) if found.models[n].role == "converted" else "" for n in inside}
    _number(axes, [(names[number], point) for number, point in inside.items()], list(inside.values()))
    figure.legend(handles=_legend(found, inside, some_healed), loc="outside lower center", ncols=3, **TIGHT)
    figure.draw_without_rendering()  # lays out, now with the legend
    for number, point in inside.items():
        x, y = figure.transFigure.inverted().transform(axes.transData.transform(point))
        spots[number] = (float(x), 1 - float(y))
    return figure


def _legend(found: Comparison, shown: Iterable[int], some_healed: bool) -> list[Line2D]:
    from matplotlib.lines import Line2D  # an extra, and slow

    models = [found.models[number] for number in shown]
    seen = {group_of(model): look_of(model, method_styles(found)) for model in models}
    handles = [Line2D([], [], linestyle="none", label=plain_text(group), **look) for group, look in seen.items()]
    if some_healed:
        shape: dict[str, Any] = {"marker": "o", "color": "0.35", "linestyle": "none", "markersize": 7}
        handles += [Line2D([], [], label="healed", **shape)]
        handles += [Line2D([], [], markerfacecolor="white", markeredgewidth=1.3, label="one shot", **shape)]
    return [*handles, Line2D([], [], color=_FRONT, linewidth=1.4, label="Pareto front")]


def _far_away(axes: Axes, x: float, y: float, role: str) -> None:
    """An arrow at the edge towards a point that lies beyond it."""
    low, high = axes.get_ylim()
    edge, up = (low, 1) if y < low else (high, -1)
    side = -1 if x > sum(axes.get_xlim()) / 2 else 1
    arrow = {"arrowstyle": "->", "color": "0.35", "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", (x, edge), (0, 18 * up), textcoords="offset points", arrowprops=arrow)
    align: dict[str, Any] = {"ha": "left" if side > 0 else "right", "va": "center", "color": "0.35"}
    axes.annotate(f"{role}: {shortened(y)}", (x, edge), (7 * side, 9 * up), textcoords="offset points", **align)


def _limits(axes: Axes, found: Comparison, placed: Mapping[int, tuple[float, float]]) -> None:
    """Set the ranges; a control that would press all others into a corner is left out."""
    sizes = [x for x, _ in placed.values()]
    width = max(sizes) - min(sizes) or max(sizes) or 1.0
    axes.set_xlim(min(sizes) - 0.1 * width, max(sizes) + 0.1 * width)
    main, everything = [], []
    for number, (_, y) in placed.items():
        score = found.models[number].score if found.metric else None
        ends = (score.low, score.high) if score else ()
        heights = [y, *(end for end in ends if end is not None)]
        everything += heights
        main += heights if found.models[number].role != "control" else []
    low, high = min(main), max(main)
    if max(low - min(everything), max(everything) - high) <= 1.5 * (high - low):
        low, high = min(everything), max(everything)
    room = (high - low or abs(high) or 1.0) * 0.08
    axes.set_ylim(low - room, high + room)


def _number(
    axes: Axes, labels: Sequence[tuple[str, tuple[float, float]]], points: Sequence[tuple[float, float]]
) -> None:
    """Write numbers beside points, each where it is farthest from all points and numbers."""
    axes.figure.draw_without_rendering()  # type: ignore[union-attr]  # lays out, so that pixels are final
    scale = 72 / axes.figure.dpi
    taken = [tuple(scale * part for part in axes.transData.transform(point)) for point in points]
    for text, point in labels:
        x, y = (scale * float(part) for part in axes.transData.transform(point))
        # Not above or below: intervals are there.
        places = ((9, 7), (9, -7), (-9, 7), (-9, -7), (11, 0), (-11, 0))
        others = [place for place in taken if place != (x, y)]
        best = max(places, key=lambda move: min((math.dist((x + move[0], y + move[1]), o) for o in others), default=0))
        axes.annotate(text, point, best, textcoords="offset points", ha="center", va="center", color="0.2")
        taken.append((x + best[0], y + best[1]))
