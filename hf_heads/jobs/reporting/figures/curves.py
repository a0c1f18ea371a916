"""The figure of sweeps: a score over what was removed or kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hf_heads.core.errors import HeadsError
from hf_heads.jobs.reporting.figures.style import (
    COLOURS,
    DASHES,
    GREY,
    MARKERS,
    need_matplotlib,
    new_page,
    write_figure,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure  # an extra, and slow


def draw_curves(
    path: Path,
    curves: Mapping[str, Sequence[tuple[float, float]]],
    xlabel: str,
    ylabel: str,
    title: str,
    bands: Mapping[str, Sequence[tuple[float, float, float]]] | None = None,
    baseline: tuple[str, float] | None = None,
) -> None:
    """Write lines with markers over one pair of axes; a curve called `random` is grey and dashed.

    Args:
        path: where to; .png, .svg or .pdf.
        curves: name -> (x, y) points, joined in their order.
        xlabel: below.
        ylabel: on the left.
        title: above.
        bands: name of a curve -> (x, low, high), shaded in its colour.
        baseline: name and height of a dashed horizontal line.

    Raises:
        HeadsError: matplotlib is missing, the path cannot be written, a curve has no points, or `bands` names a curve
            that `curves` lacks.
    """
    need_matplotlib(path)
    if not curves:
        raise HeadsError(f"no curves to draw in {path.name}; give at least one")
    if empty := [name for name, points in curves.items() if not points]:
        raise HeadsError(f"curve '{empty[0]}' has no points; give at least one or leave it out")
    bands = bands or {}
    if strange := [name for name in bands if name not in curves]:
        raise HeadsError(f"no curve '{strange[0]}' for its band. Curves: {', '.join(curves)}")
    write_figure(path, lambda: _curves(curves, xlabel, ylabel, title, bands, baseline))


def _curves(
    curves: Mapping[str, Sequence[tuple[float, float]]],
    xlabel: str,
    ylabel: str,
    title: str,
    bands: Mapping[str, Sequence[tuple[float, float, float]]],
    baseline: tuple[str, float] | None,
) -> Figure:
    """The lines of `draw_curves`."""
    from matplotlib.ticker import MaxNLocator  # an extra, and slow

    figure, axes = new_page(7.5, 4.2, title)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.grid(color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if all(float(x).is_integer() for points in curves.values() for x, _ in points):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if baseline is not None:
        axes.axhline(baseline[1], color="0.25", linewidth=1.2, linestyle=(0, (6, 3)), label=baseline[0])
    place = 0
    for name, points in curves.items():
        if name == "random":
            colour, marker, dashes = GREY, "x", "--"
        else:
            colour, marker = COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)]
            dashes = DASHES[place // len(COLOURS) % len(DASHES)]
            place += 1
        x, y = zip(*points, strict=True)
        (line,) = axes.plot(x, y, color=colour, marker=marker, linestyle=dashes, label=name)
        if marker != "x":
            line.set(markersize=7, markeredgecolor="white", markeredgewidth=0.6)
        if bands.get(name):
            x, low, high = zip(*bands[name], strict=True)
            axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    return figure
