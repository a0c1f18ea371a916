"""Checkpoints of released formats load for ever, to the same bits; `make.py` says what they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, PreTrainedModel

import hf_heads

FORMAT_1 = Path(__file__).parent / "format-1"
FOLDERS = sorted(path.parent for path in FORMAT_1.glob("*/*/heads_report.json"))

checkpoints = pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: f"{path.parent.name}-{path.name}")


def load_as_saved(folder: Path, **settings: Any) -> PreTrainedModel:
    """The model in the class that its config names."""
    name = AutoConfig.from_pretrained(folder).architectures[0]
    return getattr(hf_heads.models, name).from_pretrained(folder, **settings)


def test_there_is_one_of_every_method_and_host():
    methods = {path.name.partition("-")[0] for path in FOLDERS}
    assert methods == {name.partition("-")[0] for name in hf_heads.methods}
    assert len(FOLDERS) == 24


@checkpoints
def test_every_tensor_of_the_file_is_in_the_model_bit_by_bit(folder: Path):
    model = load_as_saved(folder)
    state = model.state_dict()
    stored = load_file(folder / "model.safetensors")
    by_content: dict[tuple[Any, ...], list[torch.Tensor]] = {}
    for tensor in state.values():
        by_content.setdefault((tensor.shape, float(tensor.double().sum())), []).append(tensor)
    for name, tensor in stored.items():
        found = [state[name]] if name in state else by_content[tensor.shape, float(tensor.double().sum())]
        assert any(torch.equal(tensor, one) for one in found), name


@checkpoints
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_outputs_are_what_they_were(folder: Path, implementation: str):
    stored = load_file(FORMAT_1 / "outputs" / f"{folder.parent.name}-{folder.name}.safetensors")
    wanted = {name: stored.pop(name) for name in ("eager", "sdpa")}[implementation]
    model = AutoModel.from_pretrained(folder, attn_implementation=implementation)
    with torch.no_grad():
        found = model(**stored)[0]
    # Other processors and versions of torch add in another order.
    assert (found - wanted).abs().max() < 1e-5


@checkpoints
def test_verify_accepts_it(folder: Path, run: Callable[..., Any]):
    outcome = run("verify", folder, "--against", folder.parent / "original")
    assert outcome.code == 0, outcome.out + outcome.err


@checkpoints
def test_it_saves_what_it_loaded(folder: Path, tmp_path: Path):
    load_as_saved(folder).save_pretrained(tmp_path)
    before, after = (load_file(one / "model.safetensors") for one in (folder, tmp_path))
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
