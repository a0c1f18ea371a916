"""A recommendation as a figure: what is lost against what is gained, with the frontier."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_heads.jobs.recommendation.record import Recommendation
from hf_heads.jobs.reporting.figures.style import COLOURS, MARKERS, draw_page, new_page, plain_axes, plain_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure  # an extra, and slow

_LEAST = 1e-5  # losses are drawn on a logarithmic axis, on which zero has no place


def draw_recommendation(path: Path, found: Recommendation) -> None:
    """Write the figure.

    Raises:
        HeadsError: see `need_matplotlib`.
    """
    draw_page(path, lambda: _figure(found))


def _figure(found: Recommendation) -> Figure:
    """Points of (gain, loss), a colour for each method; the frontier in grey, the recommended point in a ring."""
    figure, axes = new_page(6.4, 4.4, f"What can be gained on {plain_text(found.source)}")
    plain_axes(axes)
    places = [(one.gain(found.goal, found.caches), max(one.promised, _LEAST)) for one in found.points]
    front = [places[number] for number in found.frontier]
    if len(front) > 1:
        axes.plot(*zip(*front, strict=True), color="0.72", linewidth=1.4, zorder=1)
    for index, method in enumerate(dict.fromkeys(one.method for one in found.points)):
        own = [place for place, one in zip(places, found.points, strict=True) if one.method == method]
        look: dict[str, Any] = {"color": COLOURS[index % len(COLOURS)], "marker": MARKERS[index % len(MARKERS)]}
        axes.plot(*zip(*own, strict=True), linestyle="none", label=method, zorder=3, **look)
    for place, one in zip(places, found.points, strict=True):
        words = " ".join(str(value) for value in one.settings.values())
        axes.annotate(words, place, xytext=(4, 4), textcoords="offset points", fontsize=7, color="0.35")
    if found.recommended is not None:
        x, y = places[found.recommended]
        axes.plot(x, y, "o", markersize=15, markerfacecolor="none", color="black", label="recommended", zorder=4)
    axes.axhline(found.max_drop, color="0.5", linewidth=0.8, linestyle=":")
    axes.axvline(1.0, color="0.5", linewidth=0.8, linestyle=":")
    axes.set_yscale("log")
    axes.set_xlabel(f"times better than the original ({found.goal})")
    axes.set_ylabel(f"lost: {found.measure}")
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return figure
