"""Activations in files: the same bytes as in memory, nothing left behind, and what is not ours stays where it is."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
import torch

import hf_heads
from hf_heads import CollabSpec, HeadsError, PrunedSpec
from hf_heads.attention.hosts.blocks import find_blocks
from hf_heads.jobs.conversion import activations
from hf_heads.jobs.conversion.activations import Activations
from hf_heads.jobs.conversion.stepping import Running, Stepper
from tests.support.twins import TWINS


@pytest.fixture(autouse=True)
def small_ones_move(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activations, "_SMALL", 1)


def batches(twin: str, count: int = 2) -> list[dict[str, torch.Tensor]]:
    return [TWINS[twin].inputs() for _ in range(count)]


def state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: one.clone() for name, one in model.state_dict().items()}


@pytest.mark.parametrize(
    ("twin", "more"),
    [
        ("bert", {}),
        ("marian", {"blocks": "decoder.layers.0*"}),
        ("bert", {"inputs": "original"}),
        pytest.param("vit", {}, marks=pytest.mark.full),
        pytest.param("bert", {"spec": PrunedSpec(keep=0.5)}, marks=pytest.mark.full),
    ],
)
def test_a_conversion_is_the_same_wherever_activations_are(
    monkeypatch: pytest.MonkeyPatch, twin: str, more: dict[str, Any]
) -> None:
    moved: list[Activations] = []
    made = Activations.__init__

    def noted(self: Activations, *args: Any, **kwargs: Any) -> None:
        made(self, *args, **kwargs)
        moved.append(self)

    monkeypatch.setattr(Activations, "__init__", noted)
    monkeypatch.setattr(activations, "ROOM", 2**14)
    found = {}
    for where in ("memory", "disk", "auto"):
        data = batches(twin)
        before = [{name: (one.data_ptr(), one.clone()) for name, one in batch.items()} for batch in data]
        options = {"spec": CollabSpec(rank=8), **more}
        model, report = hf_heads.convert(TWINS[twin].model(), calibration=data, activations_on=where, **options)
        found[where] = state(model), report.blocks
        for batch, old in zip(data, before, strict=True):
            assert all(one.data_ptr() == old[name][0] and torch.equal(one, old[name][1]) for name, one in batch.items())
    for where in ("disk", "auto"):
        assert found[where][1] == found["memory"][1]
        assert all(torch.equal(one, found["memory"][0][name]) for name, one in found[where][0].items())
    assert moved[0].moved == 0 and 0 < moved[2].moved < moved[1].moved


def test_files_have_no_names_and_what_they_hold_comes_back(tmp_path: Path) -> None:
    model, data = TWINS["bert"].model(), batches("bert", 3)
    names = [block.name for block in find_blocks(model)]
    with (
        Activations("disk", lambda: tmp_path) as keeper,
        Stepper(TWINS["bert"].model(), data, names, how=Running(keeper)) as stepper,
        Stepper(model, data, names) as plain,
    ):
        for name in names:
            for _ in range(2):  # the second time from the files
                for stop, wanted in zip(stepper.at(name), plain.at(name), strict=True):
                    assert torch.equal(stop.hidden_states, wanted.hidden_states)
            assert all(stop.hidden_states.untyped_storage().filename is not None for stop in stepper.at(name))
        assert keeper.moved and not list(tmp_path.iterdir())


def test_a_full_disk_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch.UntypedStorage, "from_file", full)
    with pytest.raises(HeadsError, match="No space left on device; take fewer"):
        hf_heads.convert(TWINS["bert"].model(), CollabSpec(rank=8), calibration=batches("bert"), activations_on="disk")


def test_no_other_place_is_known() -> None:
    with pytest.raises(HeadsError, match="activations_on is 'tape', expected one of auto, memory, disk"):
        hf_heads.convert(TWINS["bert"].model(), CollabSpec(rank=8), activations_on="tape")
