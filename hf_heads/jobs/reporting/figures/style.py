"""What all figures share: colours, sizes, plain axes, files; matplotlib is imported when one is drawn."""

from __future__ import annotations

import io
import math
import re
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_heads.core.errors import HeadsError
from hf_heads.io.checkpoints.files import write_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes  # an extra, and slow
    from matplotlib.figure import Figure


DPI = 150
NARROW, FINE = 4.4, 220  # width in inches, and dots per inch, of a figure that is read on a telephone
FORMATS = (".png", ".svg", ".pdf")
LOG_RANGE = 50.0  # colours are logarithmic when the largest value exceeds the smallest by more than this factor

# Okabe and Ito's colours, which colour-blind readers can tell apart, without the yellow (too light for a line).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "p", "<", ">")
DASHES = ("-", "-.", ":")
GREY = "#808080"
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
        raise HeadsError("figures need matplotlib: pip install matplotlib") from None


def new_page(width: float, height: float, title: str, dpi: int = DPI) -> tuple[Figure, Axes]:
    """An empty figure of this size in inches, with its title and axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # an extra, and slow
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=dpi, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(textwrap.fill(title, int(10 * width)), fontsize=11)
    return figure, figure.add_subplot()


def write_figure(path: Path, draw: Callable[[], Figure]) -> None:
    """Draw with matplotlib's own defaults, whatever the caller's settings, and save."""
    from matplotlib import style  # an extra, and slow

    # Dates and random ids would make the bytes of equal figures differ.
    dates: dict[str, dict[str, Any]] = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
    kind = path.suffix.lower()
    with style.context(["default", {"svg.hashsalt": "hf-heads"}]):
        drawn = io.BytesIO()
        draw().savefig(drawn, format=kind[1:], metadata=dates.get(kind))
    write_file(path, drawn.getvalue())


def luminance(colour: Sequence[float]) -> float:
    """WCAG's relative luminance of (red, green, blue, ...), from 0 for black to 1 for white."""
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in colour[:3]]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def shortened(value: float) -> str:
    """A number in two significant digits: `0.50`, `12`, `0.0031`, `3.1e-4`."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else str(value)
    mantissa, _, power = f"{value:.1e}".partition("e")
    exponent = int(power)
    if -3 <= exponent <= 3:
        return f"{float(f'{mantissa}e{power}'):.{max(0, 1 - exponent)}f}"
    return f"{mantissa}e{exponent}"


TIGHT: dict[str, Any] = {"columnspacing": 1.2, "handletextpad": 0.4, "borderaxespad": 0.2, "frameon": False}


def draw_page(path: Path, make: Callable[[], Figure]) -> bool:
    """Write a figure; always true."""
    need_matplotlib(path)

    write_figure(path, make)
    return True


def plain_axes(axes: Axes) -> None:
    """Faint grid, no frame, whole numbers on the axes."""
    axes.grid(color="0.92", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.ticklabel_format(useOffset=False)


def cut_text(text: str, longest: int) -> str:
    """A text without its middle, where it is too long; names differ most often at the end."""
    if len(text) <= longest:
        return text
    head = longest // 3
    return f"{text[:head]}…{text[len(text) - (longest - head - 1) :]}"


def plain_text(text: str) -> str:
    """A text in which no $ begins a formula."""
    return text.replace("$", r"\$")
