"""The refit of output projections: what earlier blocks have moved is made up for, and tokens count by their weights."""

from __future__ import annotations

import dataclasses
from unittest.mock import patch

import pytest
import torch
from transformers import PreTrainedModel

import hf_heads
from hf_heads.attention.hosts.blocks import find_blocks
from hf_heads.jobs.conversion.refit import refit_output
from hf_heads.jobs.conversion.stepping import Stepper, layer_of
from hf_heads.jobs.scoring.tokens import token_weights
from tests.support.twins import TWINS


def lossless(model: PreTrainedModel) -> PreTrainedModel:
    """Converted, and the same function."""
    return hf_heads.convert(model, hf_heads.LowRankSpec(rank=32), calibration="none")[0]


def batches(count: int = 4) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [{"input_ids": torch.randint(3, 98, (16, 9), generator=generator)} for _ in range(count)]


@pytest.mark.parametrize("name", ["bert", "vit", "marian"])
def test_what_a_blocks_output_is_added_to(name: str):
    """The layer's input: what the block is called with where norms come last, another tensor where they come first."""
    model = TWINS[name].model()
    blocks = find_blocks(model)
    inputs: dict[str, torch.Tensor] = {}
    for block in blocks:
        layer = layer_of(model, block.path)
        assert layer is not None and layer.rpartition(".")[2].isdigit()
        model.get_submodule(layer).register_forward_pre_hook(
            lambda _, args, kwargs, layer=layer: inputs.update({layer: args[0] if args else kwargs["hidden_states"]}),
            with_kwargs=True,
        )
    with Stepper(model, [TWINS[name].inputs()], [block.name for block in blocks]) as stepper:
        for block in blocks:
            (stop,) = stepper.at(block.name)
            if block.kind == "cross":
                assert stop.residual is None
                continue
            assert stop.residual is inputs[layer_of(model, block.path)]
            assert torch.equal(stop.residual, stop.hidden_states) == (name != "vit")


def test_a_moved_residual_stream_is_moved_back():
    """Where all that comes into a layer is off by a constant, the projection's bias takes it back."""
    model = TWINS["bert"].model()
    moved = lossless(model)
    block, other = find_blocks(model)[0], find_blocks(moved)[0]
    step = torch.linspace(-1, 1, 32)
    with Stepper(model, batches(), [block.name]) as there, Stepper(moved, batches(), [block.name]) as here:
        stops = [dataclasses.replace(stop, residual=stop.residual + step) for stop in here.at(block.name)]
        found = refit_output(other, stops, block, there.at(block.name))
        assert found is not None and found.gain > 0.99
        torch.testing.assert_close(found.bias, other.output.bias - step, atol=1e-2, rtol=0)
        same = refit_output(other, here.at(block.name), block, there.at(block.name))
        assert same is None, "nothing is wrong"


def test_tokens_count_by_their_weights():
    """Errors at tokens of weight zero are let alone."""
    model = TWINS["bert"].model()
    block = find_blocks(model)[0]
    step, data, same = torch.linspace(-1, 1, 32), batches(), lossless(model)
    weights = {id(batch): (torch.arange(9) < 5).float().expand(16, 9) for batch in data}
    with Stepper(model, data, [block.name]) as there, Stepper(same, data, [block.name]) as here:
        wrong = (torch.arange(9) >= 5).float()[:, None] * step
        stops = [dataclasses.replace(stop, residual=stop.residual + wrong) for stop in here.at(block.name)]
        other = find_blocks(same)[0]
        assert refit_output(other, stops, block, there.at(block.name)) is not None
        assert refit_output(other, stops, block, there.at(block.name), weights) is None


def test_repair_weighs_tokens():
    """By what the original depends on, which is asked before batches wait at its blocks."""
    model = TWINS["bert"].model()
    spec = hf_heads.PrunedSpec(keep=0.5, score="weights", repair=True)
    with patch("hf_heads.jobs.conversion.convert.refit_output", wraps=refit_output) as refit:
        hf_heads.convert(model, spec, calibration=batches())
    names = [block.name for block in find_blocks(model)]
    wanted = token_weights(model, batches(), names)
    for call, name in zip(refit.call_args_list, names, strict=True):
        for found, one in zip(call.args[4].values(), wanted[name], strict=True):
            torch.testing.assert_close(found, one)
    with patch("hf_heads.jobs.conversion.convert.refit_output", wraps=refit_output) as refit:
        hf_heads.convert(model, hf_heads.CollabSpec(rank=8), calibration=batches(), objective="scores")
    assert [call.args[4] for call in refit.call_args_list] == [None, None]


def test_what_keep_removes_is_repaired_and_what_is_named_is_not():
    """Removing named heads is the same as masking them; --keep refits unless it is told not to."""
    model = TWINS["bert"].model()
    for spec, refit, wanted in (
        (hf_heads.PrunedSpec(keep=0.5, score="weights"), True, True),
        (hf_heads.PrunedSpec(keep=0.5, score="weights"), False, False),
        (hf_heads.PrunedSpec(kept=(0,)), True, False),
        (hf_heads.PrunedSpec(kept=(0,), repair=True), True, True),
    ):
        converted, _ = hf_heads.convert(model, spec, calibration=batches(), refit=refit)
        block = find_blocks(converted)[0]
        columns = block.module.spec.places
        width = model.config.hidden_size // model.config.num_attention_heads
        host = find_blocks(model)[0].output.weight.unflatten(1, (-1, width))[:, list(columns)].flatten(1)
        assert torch.equal(block.output.weight, host) != wanted
