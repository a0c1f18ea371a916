"""Figures of heads and of sweeps, as PNG, SVG or PDF; matplotlib (the extra `plots`) is imported when one is drawn.

Nothing global is touched: no pyplot, no backend, no settings of the caller's; equal input gives equal bytes.
"""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Callable, Container, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import HeadsError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 150
NARROW, FINE = 4.4, 220  # width in inches, and dots per inch, of a figure that is read on a telephone
FORMATS = (".png", ".svg", ".pdf")
LOG_RANGE = 50.0  # colours are logarithmic when the largest value exceeds the smallest by more than this factor

# Okabe and Ito's colours, which colour-blind readers can tell apart, without the yellow (too light for a line).
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "p", "<", ">")
_DASHES = ("-", "-.", ":")
_GREY = "#808080"
_NO_VALUE = (0.85, 0.85, 0.85, 1.0)

_BLOCK = re.compile(r"(?:.+?\.)??(?:(encoder|decoder)\.)?layers?\.(\d+)\.([\w.]+)")
_SELF = {"attention.self", "attention.attention", "attention", "self_attn"}
_CROSS = {"crossattention.self", "encoder_attn"}


def block_label(name: str) -> str:
    """A short label for an attention block: `layer 3`, `encoder 0`, `decoder 1 cross`; an unknown name as it is."""
    match = _BLOCK.fullmatch(name)
    if match is None or match[3] not in _SELF | _CROSS:
        return name
    side, number, kind = match.groups()
    # BERT's only stack is called encoder even where it decodes; two stacks have self_attn.
    stack = side if side and kind in {"self_attn", "encoder_attn"} else "layer"
    return f"{stack} {number}" + (" cross" if kind in _CROSS else "")


def need_matplotlib(path: Path | str) -> None:
    """Refuse what no figure can be written to, and a missing matplotlib; call it before long work for a figure.

    Raises:
        HeadsError: matplotlib is missing, the ending of `path` is unknown or its folder is not there.
    """
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise HeadsError(f"cannot draw {path.name}; end its name in {', '.join(FORMATS)}")
    if not path.parent.is_dir():
        raise HeadsError(f"no folder {path.parent} for {path.name}; make it first")
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError:
        raise HeadsError("figures need matplotlib: pip install 'hf-heads[plots]'") from None


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
    _write(path, lambda: _heads(values, columns, title, label, gone, numbers))


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
    _write(path, lambda: _curves(curves, xlabel, ylabel, title, bands, baseline))


def _heads(
    values: Mapping[str, Sequence[float]],
    columns: int,
    title: str,
    label: str,
    gone: Mapping[str, Container[int]],
    numbers: bool = True,
) -> Figure:
    """The heat map of `draw_heads`."""
    from matplotlib import colormaps
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
    figure, axes = _page(width, height, title, DPI if numbers else FINE)
    axes.set(xlim=(-0.5, columns - 0.5), ylim=(len(values) - 0.5, -0.5), xlabel="head")
    axes.set_xticks(range(0, columns, step))
    axes.set_yticks(range(len(values)), labels)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    for row, (name, cells) in enumerate(values.items()):
        for column, value in enumerate(cells):
            colour = viridis(float(norm(value))) if math.isfinite(value) else _NO_VALUE
            ink = "black" if _luminance(colour) > 0.25 else "white"
            axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor=colour, edgecolor="white", lw=1))
            short = _short(value) if numbers else ""
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


def _curves(
    curves: Mapping[str, Sequence[tuple[float, float]]],
    xlabel: str,
    ylabel: str,
    title: str,
    bands: Mapping[str, Sequence[tuple[float, float, float]]],
    baseline: tuple[str, float] | None,
) -> Figure:
    """The lines of `draw_curves`."""
    from matplotlib.ticker import MaxNLocator

    figure, axes = _page(7.5, 4.2, title)
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
            colour, marker, dashes = _GREY, "x", "--"
        else:
            colour, marker = _COLOURS[place % len(_COLOURS)], _MARKERS[place % len(_MARKERS)]
            dashes = _DASHES[place // len(_COLOURS) % len(_DASHES)]
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


def _page(width: float, height: float, title: str, dpi: int = DPI) -> tuple[Figure, Axes]:
    """An empty figure of this size in inches, with its title and axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=dpi, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(textwrap.fill(title, int(10 * width)), fontsize=11)
    return figure, figure.add_subplot()


def _write(path: Path, draw: Callable[[], Figure]) -> None:
    """Draw with matplotlib's own defaults, whatever the caller's settings, and save."""
    from matplotlib import style

    # Dates and random ids would make the bytes of equal figures differ.
    dates: dict[str, dict[str, Any]] = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
    kind = path.suffix.lower()
    with style.context(["default", {"svg.hashsalt": "hf-heads"}]):
        draw().savefig(path, format=kind[1:], metadata=dates.get(kind))


def _luminance(colour: Sequence[float]) -> float:
    """WCAG's relative luminance of (red, green, blue, ...), from 0 for black to 1 for white."""
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in colour[:3]]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _short(value: float) -> str:
    """A number in two significant digits: `0.50`, `12`, `0.0031`, `3.1e-4`."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else str(value)
    mantissa, _, power = f"{value:.1e}".partition("e")
    exponent = int(power)
    if -3 <= exponent <= 3:
        return f"{float(f'{mantissa}e{power}'):.{max(0, 1 - exponent)}f}"
    return f"{mantissa}e{exponent}"
