"""Numbers that people give: one rule for the command line, recipes and Python."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from hf_heads import CalibrationChoice, Choices, DistillSettings, HeadsError, MgkSpec, PrunedSpec
from hf_heads.core.numbers import Number
from tests.support.cli import Run, check_refused

HUGE = 10**5000  # more digits than Python writes


@pytest.mark.parametrize(
    ("allowed", "text", "good", "bad"),
    [
        (Number(1, 10, whole=True), "a whole number from 1 to 10", [1, 10], [0, 11, 1.0, True, "1", None, HUGE]),
        (Number(0, above=True), "a number above 0", [1e-9, 5], [0, -1.0, math.nan, math.inf, False]),
        (Number(-1, 1), "a number from -1 to 1", [-1, 0.5], [1.5, math.nan]),
        (Number(), "a finite number", [-1e300], [math.inf, math.nan, "x", [1]]),
        (Number(0, 4096, whole=True), "a whole number from 0 to 4,096", [0], [-1]),
    ],
)
def test_a_number_takes_what_it_says(allowed: Number, text: str, good: list[Any], bad: list[Any]):
    assert str(allowed) == text
    for value in good:
        allowed.check("x", value)
    for value in bad:
        with pytest.raises(HeadsError, match=f"x is .*, expected {text}"):
            allowed.check("x", value)


WRONG = [math.nan, math.inf, -1, "1", HUGE]


@pytest.mark.parametrize("value", WRONG, ids=[str(value)[:4] if value is not HUGE else "huge" for value in WRONG])
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        *((DistillSettings, name) for name in ("learning_rate", "epochs", "minutes", "temperature")),
        *((DistillSettings, name) for name in ("batch_size", "accumulate", "steps", "evaluations")),
        *((DistillSettings, name) for name in ("patience", "warmup", "seed")),
        *((CalibrationChoice, name) for name in ("samples", "seed")),
        *((Choices, name) for name in ("beams", "samples", "drift_samples", "resamples", "seconds")),
        *((MgkSpec, name) for name in ("norm", "shift", "components")),
        *((PrunedSpec, name) for name in ("keep", "steps")),
    ],
)
def test_settings_in_python_are_checked_when_they_are_made(kind: type, name: str, value: Any):
    with pytest.raises(HeadsError, match=f"{name.replace('_', '.')} is .*, expected"):
        kind(**{name: value})


@pytest.mark.parametrize("name", ["lengths", "batches"])
def test_sizes_of_a_comparison_are_numbers_in_a_tuple(name: str):
    for value in ((), 8, (0,), (8, math.nan), (10**9,)):
        with pytest.raises(HeadsError, match=f"{name} is .*, expected a"):
            Choices(**{name: value})


@pytest.mark.parametrize("weight", [math.nan, math.inf, -1, "1"])
def test_weights_of_losses_are_finite(weight: Any):
    with pytest.raises(HeadsError, match=r"the weight of the loss 'output' is .*, expected a number from 0"):
        DistillSettings(losses={"output": weight})
    with pytest.raises(HeadsError, match=r"losses is .*, expected weights by name"):
        DistillSettings(losses=[weight])


CALLS = {
    "convert x --to mgk": ["--norm", "--shift", "--components", "--merge", "--seed", "--calibration-samples"],
    "convert x --to collab": ["--rank", "--energy"],
    "convert x --to pruned": ["--keep", "--steps"],
    "distill x --data random --output y": [
        *("--learning-rate", "--epochs", "--minutes", "--temperature", "--warmup", "--steps", "--batch-size"),
        *("--accumulate", "--evaluations", "--patience", "--seed", "--samples"),
    ],
    "compare x y": ["--beams", "--samples", "--drift-samples", "--resamples", "--seconds", "--lengths", "--batches"],
    "importance x": ["--steps", "--seed", "--calibration-samples"],
    "verify x": ["--min-cosine", "--tolerance"],
}


@pytest.mark.parametrize(("call", "option"), [(call, option) for call, options in CALLS.items() for option in options])
def test_options_refuse_what_is_no_number_in_bounds(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, option: str
):
    monkeypatch.chdir(tmp_path)
    huge = "9" * 5000 if option in ("--rank", "--tolerance") else str(2**70)  # those have no highest
    for value in ("nan", "inf", "-3", "x", "", huge):
        check_refused(run(*call.split(), f"{option}={value}"), option, " is not a ", code=2)
    assert not list(tmp_path.iterdir())


def test_a_weight_of_a_loss_that_is_no_number_is_named(run: Run):
    call = ("distill", "x", "--data", "random", "--output", "y")
    check_refused(run(*call, "--losses", "hidden=nan"), "--losses", "hidden", "'nan' is not a number from 0", code=2)
