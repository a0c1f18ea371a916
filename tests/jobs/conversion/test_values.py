"""The refit of shared values: what heads attend to is what their attention does to the memory itself."""

from __future__ import annotations

from functools import partial
from typing import cast
from unittest.mock import patch

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

import hf_heads
from hf_heads import CollabSpec, HeadsSpec, MheSpec
from hf_heads.attention.hosts.blocks import Block, find_blocks
from hf_heads.attention.module import HeadsAttention
from hf_heads.jobs.conversion.installing import load_weights
from hf_heads.jobs.conversion.stepping import Stepper, call_block
from hf_heads.jobs.conversion.values import refit_values
from tests.support.twins import TWINS

SHARED: dict[str, HeadsSpec] = {
    "mhe": MheSpec(groups=2),
    "mhe-add": MheSpec(variant="add"),
    "keys-of-their-own": MheSpec(groups_qk=4, groups_v=1),
}


def converted(host: str, spec: HeadsSpec) -> tuple[PreTrainedModel, PreTrainedModel]:
    model = TWINS[host].model().eval()
    return model, hf_heads.convert(model, spec, calibration="none")[0].eval()


@pytest.mark.parametrize("host", ["bert", "vit", "marian"])
@pytest.mark.parametrize("name", SHARED)
def test_contexts_are_the_values_of_what_is_attended_to(host: str, name: str):
    _, model = converted(host, SHARED[name])
    blocks = find_blocks(model)
    with torch.no_grad(), Stepper(model, [TWINS[host].inputs()], [block.name for block in blocks]) as stepper:
        for block in blocks:
            module = cast(HeadsAttention, block.module)
            (stop,) = stepper.at(block.name)
            projection, factor = cast(tuple[str, int], module.shared_values)
            linear = cast(nn.Linear, module.get_submodule(projection))
            width = block.output.in_features // module.shape.heads
            value = linear.weight.unflatten(0, (-1, width)).mT / factor  # (groups, key_width, value_dim)
            value = value.repeat_interleave(module.shape.heads // len(value), 0)
            shift = 0 if linear.bias is None else (linear.bias / factor).view(-1, width)
            shift = shift if isinstance(shift, int) else shift.repeat_interleave(module.shape.heads // len(shift), 0)
            found = torch.einsum("bhtd,hdv->bthv", module.attended(stop.arguments), value) + shift
            assert torch.allclose(found.flatten(2), module.attend(stop.arguments)[0], atol=1e-5)


def refitted(spec: HeadsSpec, count: int) -> tuple[list[Block], dict[str, torch.Tensor], float, list[float]]:
    """The first block of a BERT with values fitted on so many sequences: its error before and after on others."""
    original, model = converted("bert", spec)
    dice = torch.Generator().manual_seed(0)
    fitting, others = ([{"input_ids": torch.randint(3, 98, (count, 9), generator=dice)}] for _ in range(2))
    block, (source, *_) = find_blocks(model)[0], find_blocks(original)
    errors: list[float] = []

    def measure() -> None:
        with Stepper(model, others, [block.name]) as here, Stepper(original, others, [source.name]) as there:
            (stop,), (wanted,) = here.at(block.name), there.at(source.name)
            left = block.output(call_block(block.module, stop)[0]) - source.output(call_block(source.module, wanted)[0])
            errors.append(float(left.square().sum()))

    with torch.no_grad():
        measure()
        with Stepper(model, fitting, [block.name]) as here, Stepper(original, fitting, [source.name]) as there:
            weights, gain = refit_values(block, partial(here.at, block.name), source, there.at(source.name))
        if weights:
            load_weights(block, weights)
        measure()
    return [block], weights, gain, errors


def test_a_block_comes_closer_to_its_original_on_other_inputs():
    _, weights, gain, (before, after) = refitted(MheSpec(groups=2), 200)
    assert {"shared_value.weight", "output.weight", "output.bias"} <= weights.keys()
    assert after < before * (1 - gain / 2) and 0 < gain < 1


def test_too_few_sequences_change_nothing():
    _, weights, gain, (before, after) = refitted(MheSpec(groups=2), 2)
    assert not weights and gain == 0 and before == after


@pytest.mark.parametrize(
    ("spec", "refit", "asked"), [(MheSpec(), True, 2), (MheSpec(), False, 0), (CollabSpec(rank=8), True, 0)]
)
def test_conversions_with_shared_values_do_so(spec: HeadsSpec, refit: bool, asked: int):
    data = [{"input_ids": torch.randint(3, 98, (16, 9), generator=torch.Generator().manual_seed(0))}]
    with patch("hf_heads.jobs.conversion.values.alternate", return_value=None) as fit:
        hf_heads.convert(TWINS["bert"].model(), spec, calibration=data, refit=refit)
    assert fit.call_count == asked
