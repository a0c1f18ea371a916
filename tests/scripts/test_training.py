"""What the studies that train have in common: the loop, runs that go on, batches, intervals over seeds."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
import torch
from studies.shared.sequences import IGNORED, Padded, Part
from studies.shared.training import Plan, fit, over_seeds, remembered
from torch import Tensor, nn

OPTIONS = argparse.Namespace(device="cpu", precision="no", keep_every=2)


def batches(seed: int = 0) -> Iterator[dict[str, Tensor]]:
    draw = torch.Generator().manual_seed(seed)
    while True:
        yield {"x": torch.randn(4, 3, generator=draw)}


def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return (model(batch["x"]) - batch["x"].sum(1, keepdim=True)).square().mean()


def made() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.3), nn.Linear(8, 1))


def test_a_run_that_was_cut_off_ends_as_one_that_was_not(tmp_path: Path):
    plan, whole = Plan(7, 4, 0.05, 2, forwards=2), made()
    wanted = fit(whole, batches(), plan, OPTIONS, loss=loss)

    def breaking() -> Iterator[dict[str, Tensor]]:
        yield from islice(batches(), 11)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(made(), breaking(), plan, OPTIONS, tmp_path, loss)
    assert [path.name for path in tmp_path.glob("step-*")] == ["step-4"]
    torch.manual_seed(5)  # what is drawn goes on where it stopped, too
    again = made()
    assert fit(again, batches(), plan, OPTIONS, tmp_path, loss) == wanted
    for one, other in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


def test_rates_climb_and_fall():
    assert [Plan(10, 1, 1.0, 2).share(step) for step in (0, 1, 2, 6, 10)] == [0.5, 1.0, 1.0, 0.5, 0.0]
    assert Plan(10, 1, 1.0, 4, "root").share(3) == 1.0 and Plan(10, 1, 1.0, 4, "root").share(15) == 0.5
    assert Plan(10, 1, 1.0, 2, "cosine").share(6) == pytest.approx(0.5)


def test_bfloat16_trains_and_leaves_full_precision():
    model = made()
    fit(model, batches(), Plan(2, 4, 0.05, 1), argparse.Namespace(device="cpu", precision="bf16"), loss=loss)
    found = model(torch.ones(2, 3))
    assert found.dtype == torch.float32 and torch.isfinite(found).all()


def test_a_finished_run_is_remembered_by_its_settings(tmp_path: Path):
    options, calls = argparse.Namespace(work=tmp_path, device="cpu"), []

    def run(folder: Path) -> dict[str, int]:
        calls.append(folder)
        return {"found": len(calls)}

    assert remembered(options, "one", {"rank": 2}, run) == remembered(options, "one", {"rank": 2}, run) == {"found": 1}
    assert remembered(options, "one", {"rank": 3}, run) == {"found": 2}


def test_batches_are_as_long_as_their_longest_row_and_hold_all_rows():
    part = Part(Padded.of([[5], [1, 2, 3], [4, 4]]), Padded.of([[7, 7], [8], [9]]))
    rows, batch = next(part.in_order(2))
    assert rows.tolist() == [0, 2] and batch["input_ids"].tolist() == [[5, 0], [4, 4]]
    assert batch["attention_mask"].tolist() == [[1, 0], [1, 1]]
    assert batch["labels"].tolist() == [[7, 7], [9, IGNORED]]
    epoch = list(islice(part.batches(2, seed=0), 2))
    assert sorted(int(mask.sum()) for one in epoch for mask in one["attention_mask"]) == [1, 2, 3]


def test_intervals_over_seeds_are_students():
    found = over_seeds([1.0, 3.0])
    assert found["mean"] == 2 and found["high"] - found["mean"] == pytest.approx(12.706, abs=1e-3)
    assert over_seeds([1.0])["low"] is None
