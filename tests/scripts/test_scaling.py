"""Predictions of costs: sums of terms are found again, and what is left out of the fit is predicted by the others."""

from __future__ import annotations

from typing import Any

import pytest
from studies.scaling import BASE, Fit, predictions

SIZES = [
    {**BASE, name: value}
    for name, several in {"layers": (6, 12), "width": (192, 768), "rank": (48,), "samples": (128, 512)}.items()
    for value in several
]


def measured(size: dict[str, int]) -> dict[str, Any]:
    """A conversion whose costs are known sums."""
    layers, width, rank, samples = (size[name] for name in BASE)
    forward = layers * samples * (2e-6 * width + 7e-9 * width**2)
    algebra = layers * width**2 * (7e-8 * rank + 5e-9 * width)
    peak = 400 + 6e-5 * layers * width**2 + 1e-3 * samples * width
    return {
        **size,
        "objective": "scores",
        "forward_seconds": forward,
        "seconds": 2 + 2 * forward + algebra,
        "peak_mb": peak,
    }


def test_a_larger_model_is_predicted_where_costs_are_such_sums() -> None:
    large = {"layers": 24, "width": 1024, "rank": 256, "samples": 512}
    wanted, found = measured(large), Fit([measured(size) for size in SIZES])
    assert found.predict(large)["seconds"] == pytest.approx(wanted["seconds"], rel=0.01)
    assert found.predict(large)["peak_mb"] == pytest.approx(wanted["peak_mb"], rel=0.01)
    # Ten processes have three blocks at most; what does not grow with the model is not shared.
    assert found.predict(large, 10)["seconds"] == pytest.approx(2 + (wanted["seconds"] - 2) / 8, rel=0.01)


def test_every_size_is_left_out_once() -> None:
    rows = [{"objective": "scores", "sizes": [measured(size) for size in SIZES]}]
    found = predictions(rows)
    assert len(found["left_out"]) == len(SIZES)
    assert all(abs(one["seconds"]) < 0.5 for one in found["left_out"])
    assert {"1", "64"} == set(found["models"][0]["processes"])
