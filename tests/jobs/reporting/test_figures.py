"""Figures: that they are written, are what was asked for, and leave the process as it was."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from hf_heads.core.errors import HeadsError
from hf_heads.jobs.reporting.figures.curves import draw_curves
from hf_heads.jobs.reporting.figures.heads import draw_heads, heads_figure
from hf_heads.jobs.reporting.figures.style import block_label, luminance, need_matplotlib, shortened
from tests.support.matrix import each

BERT = {f"encoder.layer.{layer}.attention.self": [10 ** (-layer - head / 4) for head in range(4)] for layer in range(3)}
CURVES = {name: [(x, 90 - x * slope) for x in range(5)] for slope, name in enumerate(["taylor", "magnitude", "random"])}


def curves(path: Path) -> None:
    bands = {"random": [(x, y - 1, y + 1) for x, y in CURVES["random"]]}
    draw_curves(path, CURVES, "heads pruned", "accuracy", "SST-2", bands, ("original", 90.0))


def heads(path: Path) -> None:
    draw_heads(path, BERT, "importance of heads", "importance", {"encoder.layer.1.attention.self": {0, 2}})


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("encoder.layer.3.attention.self", "layer 3"),
        ("bert.encoder.layer.11.attention.self", "layer 11"),
        ("encoder.layer.1.crossattention.self", "layer 1 cross"),
        ("layers.2.attention", "layer 2"),
        ("encoder.layers.0.self_attn", "encoder 0"),
        ("decoder.layers.0.self_attn", "decoder 0"),
        ("decoder.layers.1.encoder_attn", "decoder 1 cross"),
        ("model.decoder.layers.1.encoder_attn", "decoder 1 cross"),
        ("encoder.layer.3.feed.forward", "encoder.layer.3.feed.forward"),
        ("sublayers.2.attention", "sublayers.2.attention"),
        ("h.0.attn", "h.0.attn"),
    ],
)
def test_block_labels_are_short_where_the_name_is_known(name: str, label: str):
    assert block_label(name) == label


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (-0.0, "0"),
        (0.5, "0.50"),
        (-0.123, "-0.12"),
        (0.00314, "0.0031"),
        (0.000314, "3.1e-4"),
        (0.000999, "0.0010"),
        (9.96, "10"),
        (1234, "1200"),
        (9990, "1.0e4"),
        (math.nan, "nan"),
        (-math.inf, "-inf"),
    ],
)
def test_numbers_have_two_digits(value: float, text: str):
    assert shortened(value) == text


@each(draw={"heads": heads, "curves": curves}, ending=[".png", ".svg", ".pdf", ".PNG"])
def test_equal_input_gives_equal_bytes_whatever_the_settings(draw, ending: str, tmp_path: Path):
    import matplotlib

    first, second = tmp_path / f"first{ending}", tmp_path / f"second{ending}"
    draw(first)
    with matplotlib.rc_context({"lines.linewidth": 9, "font.size": 30, "svg.hashsalt": "other"}):
        draw(second)
        assert matplotlib.rcParams["font.size"] == 30
    assert first.read_bytes() == second.read_bytes()
    starts = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}
    assert first.read_bytes().startswith(starts[ending.lower()])


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (6, 12), (12, 12), (24, 16)])
def test_a_map_grows_with_its_heads(rows: int, columns: int, tmp_path: Path):
    values = {f"layers.{row}.attention": [0.1 + row + column for column in range(columns)] for row in range(rows)}
    draw_heads(tmp_path / "map.png", values, "title", "label")
    with Image.open(tmp_path / "map.png") as image:
        image.load()
        assert 60 * columns < image.width < 78 * columns + 800
        assert 45 * rows < image.height < 54 * rows + 350


def test_curves_have_a_sensible_size(tmp_path: Path):
    curves(tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as image:
        image.load()
        assert 800 < image.width < 2000 and 400 < image.height < 1200
        assert len(image.convert("RGB").getcolors(1 << 20) or []) > 20


def texts(values: dict[str, list[float]]) -> tuple[list[str], list[str], str]:
    """The numbers in the cells, the row labels, and the scale of the colour bar."""
    columns = max(len(row) for row in values.values())
    axes, bar = heads_figure(values, columns, "title", "label", {}).axes
    return (
        [text.get_text() for text in axes.texts],
        [text.get_text() for text in axes.get_yticklabels()],
        bar.get_yscale(),
    )


def test_every_value_is_printed_and_missing_heads_are_blank():
    values = {"decoder.layers.0.self_attn": [0.1, -0.2, 0.0], "decoder.layers.0.encoder_attn": [0.34]}
    cells, labels, scale = texts(values)
    assert cells == ["0.10", "-0.20", "0", "0.34"]
    assert labels == ["decoder 0", "decoder 0 cross"]
    assert scale == "linear"


def test_colours_are_logarithmic_over_a_wide_positive_range_only():
    assert texts({"a": [0.1, 5.1]})[2] == "log"
    assert texts({"a": [0.1, 4.9]})[2] == "linear"
    assert texts({"a": [0.0, 4.9]})[2] == "linear"
    assert texts({"a": [-1.0, 0.001, 4.9]})[2] == "linear"


@pytest.mark.parametrize("row", [[0.0], [3.0, 3.0], [-2.0], [math.nan], [1.0, math.inf]])
def test_a_map_without_a_range_is_drawn(row: list[float]):
    assert len(texts({"a": row})[0]) == len(row)


def test_blocks_whose_short_labels_are_equal_keep_their_names():
    names = ["text.encoder.layers.0.self_attn", "vision.encoder.layers.0.self_attn"]
    assert texts({name: [1.0] for name in names})[1] == names


def test_luminance_is_wcags():
    assert luminance((0, 0, 0, 1)) == 0
    assert luminance((1, 1, 1, 1)) == pytest.approx(1)
    assert luminance((0.5, 0.5, 0.5)) == pytest.approx(0.2140, abs=1e-4)


def test_what_cannot_be_drawn_is_refused(tmp_path: Path):
    path = tmp_path / "x.png"
    with pytest.raises(HeadsError, match=r"cannot draw x\.jpg; end its name in \.png, \.svg, \.pdf"):
        heads(tmp_path / "x.jpg")
    with pytest.raises(HeadsError, match=r"no folder .*nowhere for x\.png"):
        curves(tmp_path / "nowhere" / "x.png")
    for empty in ({}, {"a": []}):
        with pytest.raises(HeadsError, match="no values to draw"):
            draw_heads(path, empty, "title", "label")
    with pytest.raises(HeadsError, match="no block 'b'"):
        draw_heads(path, {"a": [1.0]}, "title", "label", {"b": {0}})
    with pytest.raises(HeadsError, match="no curves"):
        draw_curves(path, {}, "x", "y", "title")
    with pytest.raises(HeadsError, match="curve 'a' has no points"):
        draw_curves(path, {"a": []}, "x", "y", "title")
    with pytest.raises(HeadsError, match="no curve 'b'"):
        draw_curves(path, {"a": [(0, 1)]}, "x", "y", "title", {"b": [(0, 1, 2)]})
    assert not path.exists()


def test_a_missing_matplotlib_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for call in (heads, curves, need_matplotlib):
        with pytest.raises(HeadsError, match=r"figures need matplotlib: pip install matplotlib"):
            call(tmp_path / "x.png")


def test_import_is_cheap_and_pyplot_stays_out(tmp_path: Path):
    program = f"""
import sys
from pathlib import Path
from hf_heads.jobs.reporting.figures.curves import draw_curves
from hf_heads.jobs.reporting.figures.heads import draw_heads
assert "matplotlib" not in sys.modules and "torch" not in sys.modules
draw_heads(Path({str(tmp_path)!r}, "heads.svg"), {{"a": [1.0, 2.0]}}, "title", "label")
draw_curves(Path({str(tmp_path)!r}, "curves.png"), {{"a": [(0, 1), (1, 2)]}}, "x", "y", "title")
assert "matplotlib" in sys.modules and "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)
    assert {file.name for file in tmp_path.iterdir()} == {"heads.svg", "curves.png"}
