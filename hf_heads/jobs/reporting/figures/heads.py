"""The figure of a number for every head of a model."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_heads.core.errors import HeadsError
from hf_heads.jobs.reporting.figures.style import (
    DPI,
    FINE,
    LOG_RANGE,
    NARROW,
    block_label,
    luminance,
    need_matplotlib,
    new_page,
    shortened,
    write_figure,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure  # an extra, and slow


_NO_VALUE = (0.85, 0.85, 0.85, 1.0)


def draw_heads(
    path: Path,
    values: Mapping[str, Sequence[float]],
    title: str,
    label: str,
    gone: Mapping[str, Container[int]] | None = None,
    numbers: bool = True,
) -> None:
    """Write a heat map with a row for each attention block and a column for each head.

    Colours are logarithmic when all values are positive and spread over more than a factor of 50.

    Args:
        path: where to; .png, .svg or .pdf.
        values: block name -> one number for each head; blocks may differ in their numbers of heads.
        title: above the map.
        label: what the numbers are, beside the colour bar.
        gone: block name -> heads to cross out.
        numbers: write the values into the cells; without them the map fits a telephone.

    Raises:
        HeadsError: matplotlib is missing, the path cannot be written, there are no values, or `gone` names a block
            that `values` lacks.
    """
    need_matplotlib(path)
    columns = max((len(row) for row in values.values()), default=0)
    if not columns:
        raise HeadsError(f"no values to draw in {path.name}; give at least one block with one head")
    gone = gone or {}
    if strange := [name for name in gone if name not in values]:
        raise HeadsError(f"no block '{strange[0]}' to cross heads out of. Blocks: {', '.join(values)}")
    write_figure(path, lambda: heads_figure(values, columns, title, label, gone, numbers))


def heads_figure(
    values: Mapping[str, Sequence[float]],
    columns: int,
    title: str,
    label: str,
    gone: Mapping[str, Container[int]],
    numbers: bool = True,
) -> Figure:
    """The heat map of `draw_heads`."""
    from matplotlib import colormaps  # an extra, and slow
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LogNorm, Normalize
    from matplotlib.patches import Rectangle
    from matplotlib.ticker import LogLocator

    labels = [block_label(name) for name in values]
    if len(set(labels)) < len(labels):  # two towers: short labels would be ambiguous
        labels = list(values)
    finite = [value for row in values.values() for value in map(float, row) if math.isfinite(value)] or [0.0]
    low, high = min(finite), max(finite)
    logarithmic = low > 0 and high / low > LOG_RANGE
    if low == high:  # a colour scale needs a range
        low, high = low - (abs(low) or 1.0), high + (abs(high) or 1.0)
    norm = LogNorm(low, high) if logarithmic else Normalize(low, high)
    viridis = colormaps["viridis"]

    # Inches: a cell holds six characters; the rest is for labels, title and colour bar.
    width = max(0.52 * columns + 0.075 * max(map(len, labels)) + 1.6, 4.5)
    height = max(0.36 * len(values) + 1.2, 2.4)
    step = 1
    if not numbers:
        width, height, step = NARROW, max(0.24 * len(values) + 1.2, 2.4), math.ceil(columns / 12)
    figure, axes = new_page(width, height, title, DPI if numbers else FINE)
    axes.set(xlim=(-0.5, columns - 0.5), ylim=(len(values) - 0.5, -0.5), xlabel="head")
    axes.set_xticks(range(0, columns, step))
    axes.set_yticks(range(len(values)), labels)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    for row, (name, cells) in enumerate(values.items()):
        for column, value in enumerate(cells):
            colour = viridis(float(norm(value))) if math.isfinite(value) else _NO_VALUE
            ink = "black" if luminance(colour) > 0.25 else "white"
            axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor=colour, edgecolor="white", lw=1))
            short = shortened(value) if numbers else ""
            text = axes.text(column, row, short, color=ink, ha="center", va="center", fontsize=7)
            if column in gone.get(name, ()):
                for ends in ((-0.5, 0.5), (0.5, -0.5)):
                    axes.plot((column - 0.5, column + 0.5), (row + ends[0], row + ends[1]), color=ink, lw=0.8)
                if numbers:
                    text.set_bbox({"facecolor": colour, "edgecolor": "none", "pad": 0.8})
    ticks: dict[str, Any] = {}
    if logarithmic:
        ticks = {"ticks": LogLocator(subs=(1, 2, 5) if high / low < 2000 else (1,)), "format": "%g"}
    bar = figure.colorbar(ScalarMappable(norm, viridis), ax=axes, pad=0.02, **ticks)
    bar.minorticks_off()
    bar.set_label(textwrap.fill(label, int(11 * (height - 0.8))))
    return figure
