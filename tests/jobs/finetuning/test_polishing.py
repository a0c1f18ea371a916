"""A conversion and some seconds of healing in one step: better than the conversion, or the conversion as it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hf_heads import CollabSpec, MheSpec
from hf_heads.core.errors import HeadsError
from hf_heads.core.vocabulary import NONE, RANDOM
from hf_heads.io.data.choice import CalibrationChoice
from hf_heads.jobs.conversion.checkpoint import convert_checkpoint
from hf_heads.jobs.conversion.request import ConversionRequest
from hf_heads.jobs.finetuning import polishing
from hf_heads.jobs.finetuning.polishing import convert_polished
from tests.support.cli import Run, check_refused, leftovers
from tests.support.files import save_checkpoint
from tests.support.twins import TWINS

DATA = CalibrationChoice(RANDOM, samples=64)


@pytest.fixture
def source(tmp_path: Path) -> str:
    return str(save_checkpoint(TWINS["bert"].model(), tmp_path / "bert"))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_what_was_converted_is_better_afterwards(source: str, tmp_path: Path) -> None:
    """It names the original and not the hidden folder that it came from, and leaves none."""
    done = convert_polished(ConversionRequest(source, MheSpec(), calibration=DATA), tmp_path / "polished", 4)
    assert done.healed is not None
    run = done.healed.distillation
    assert run["after"]["drift"] < run["before"]["drift"]
    record = json.loads((tmp_path / "polished" / "heads_report.json").read_text())
    assert record["source"] == "./bert" and record["distillation"]["teacher"] == "./bert"
    assert leftovers(tmp_path) == ["bert", "polished"]
    written = [path.read_text() for path in (tmp_path / "polished").iterdir() if path.suffix in (".json", ".md")]
    assert not any("partial" in text for text in written)


def test_where_nothing_is_better_the_conversion_is_written(source: str, tmp_path: Path) -> None:
    request = ConversionRequest(source, CollabSpec(rank=32), calibration=DATA)  # lossless
    done = convert_polished(request, tmp_path / "polished", 2)
    convert_checkpoint(request, tmp_path / "converted")
    one, other = weights(tmp_path / "polished"), weights(tmp_path / "converted")
    assert done.healed is None and one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("stop", [KeyboardInterrupt("go on with --resume"), HeadsError("no")])
def test_a_stop_leaves_nothing(source: str, tmp_path: Path, monkeypatch: Any, stop: BaseException) -> None:
    def stopped(*_: Any, **__: Any) -> None:
        raise stop

    monkeypatch.setattr(polishing, "distill_checkpoint", stopped)
    request = ConversionRequest(source, MheSpec(), calibration=CalibrationChoice(RANDOM, samples=8))
    with pytest.raises(type(stop)) as raised:
        convert_polished(request, tmp_path / "polished", 2)
    assert leftovers(tmp_path) == ["bert"]
    assert "--resume" not in str(raised.value)


@pytest.mark.parametrize(
    ("options", "said", "code"),
    [
        (["--calibrate", NONE], "--polish trains on the calibration data", 1),
        (["--device", "cpu:0"], "leave out --device cpu:0", 1),
        (["--native"], "leave out --native", 2),
        (["--polish", "0"], "above 0", 2),
    ],
)
def test_what_cannot_be_polished_is_refused_at_once(
    source: str, tmp_path: Path, run: Run, options: list[str], said: str, code: int
) -> None:
    given = ["convert", source, "--to", "mhe", "--output", str(tmp_path / "polished"), "--polish", "2", *options]
    check_refused(run(*given), said, code=code)
    assert leftovers(tmp_path) == ["bert"]


def test_the_command_line_says_what_became_of_it(source: str, tmp_path: Path, run: Run) -> None:
    given = ["convert", source, "--to", "mhe", "--output", str(tmp_path / "polished"), "--polish", "2", "--json"]
    found = run(*given, "--calibration-samples", "64").json
    assert found["distillation"]["curve"] and found["output"] == str(tmp_path / "polished")
