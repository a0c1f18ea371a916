"""The shared factors in training: which they are, groups for an optimizer, freezing."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForMaskedLM, PreTrainedModel, Trainer, TrainingArguments

import hf_heads
from hf_heads import CollabSpec, HeadsError, HeadsSpec, LowRankSpec, MgkSpec, MheSpec, PrunedSpec
from hf_heads.attention.hosts.blocks import find_blocks
from hf_heads.attention.module import HeadsAttention
from hf_heads.core.dense import DenseAttention
from hf_heads.core.gauge import INERTIA
from hf_heads.jobs.finetuning.factors import SHARE, shared_factors
from hf_heads.modeling.blocks import inertia_by_name, read_block
from tests.support.matrix import each
from tests.support.twins import TWINS, Twin, fit

COLLAB = "shared_query.weight shared_key.weight mixing"
FACTORS: dict[str, tuple[HeadsSpec, str]] = {
    "collab": (CollabSpec(rank=12), COLLAB),
    "tucker": (CollabSpec(rank=12, form="tucker"), COLLAB),
    "mhe": (
        MheSpec(groups=1),
        "shared_query.weight shared_query.bias shared_key.weight shared_key.bias shared_value.weight shared_value.bias "
        "query_embedding key_embedding value_embedding",
    ),
    "mhe, values apart": (
        MheSpec(groups_qk=2, groups_v=4),
        "shared_query.weight shared_query.bias shared_key.weight shared_key.bias query_embedding key_embedding",
    ),
    "merged": (
        MgkSpec(merge=2, queries="shared", values="shared"),
        "component_query.weight component_query.bias component_value.weight component_value.bias",
    ),
    "merged, queries apart": (MgkSpec(merge=2), ""),
    "mgk": (MgkSpec(), ""),
    "low-rank": (LowRankSpec(rank=16), ""),
    "pruned": (PrunedSpec(kept=(0, 2)), ""),
}


def converted(spec: HeadsSpec, twin: str = "bert") -> PreTrainedModel:
    return hf_heads.convert(TWINS[twin].model(), spec, calibration="none")[0]


@pytest.mark.parametrize("name", FACTORS)
def test_the_factors_of_each_method(name: str):
    spec, expected = FACTORS[name]
    model = converted(spec)
    inside = "bert.encoder.layer.1.attention.self."
    found = {one.removeprefix(inside) for one in shared_factors(model) if one.startswith(inside)}
    assert found == set(expected.split())
    assert len(shared_factors(model)) == 2 * len(found)


@each(twin=list(TWINS), name=list(FACTORS))
def test_groups_hold_every_parameter_once(twin: str, name: str):
    model = TWINS[twin].model() if name == "mgk" else converted(FACTORS[name][0], twin)
    groups = hf_heads.parameter_groups(model, 1e-3, weight_decay=0.1)
    held = [id(one) for group in groups for one in group["params"]]
    assert len(held) == len(set(held))
    assert set(held) == {id(one) for one in model.parameters() if one.requires_grad}
    assert all(group["params"] for group in groups)


def by_name(model: PreTrainedModel, groups: list[dict[str, Any]]) -> dict[str, tuple[float, float]]:
    found = {id(one): (group["lr"], group["weight_decay"]) for group in groups for one in group["params"]}
    return {name: found[id(one)] for name, one in model.named_parameters()}


def test_factors_learn_slowly_and_biases_and_norms_do_not_decay():
    model = converted(CollabSpec(rank=12))
    found = by_name(model, hf_heads.parameter_groups(model, 1e-3, weight_decay=0.1))
    layer = "bert.encoder.layer.0."
    assert found[f"{layer}attention.self.shared_key.weight"] == (1e-3 * SHARE * INERTIA, 0.1)
    assert found[f"{layer}attention.self.mixing"] == (1e-3 * SHARE * INERTIA, 0.1)
    assert found[f"{layer}attention.self.value.weight"] == (1e-3, 0.1)
    assert found[f"{layer}attention.self.value.bias"] == (1e-3, 0.0)
    assert found[f"{layer}attention.output.LayerNorm.weight"] == (1e-3, 0.0)
    other = by_name(model, hf_heads.parameter_groups(model, 1e-3, share=0.5))
    assert other[f"{layer}attention.self.mixing"] == (5e-4 * INERTIA, 0.0)


def without_inertia(model: PreTrainedModel) -> PreTrainedModel:
    """A model with the same function whose shared factors are stored as they act."""
    light, inertias = copy.deepcopy(model), inertia_by_name(model)
    assert set(inertias.values()) == {INERTIA}
    for block in find_blocks(light):
        assert isinstance(block.module, HeadsAttention)
        block.module.spec = dataclasses.replace(cast(Any, block.module.spec), inertia=None)
    with torch.no_grad():
        for name in inertias:
            light.get_parameter(name).div_(INERTIA)
    return light


@pytest.mark.parametrize(
    "spec",
    [FACTORS[name][0] for name in ("collab", "tucker", "mhe", "mhe, values apart")]
    + [MheSpec(groups=1, variant="add")],
    ids=str,
)
def test_inertia_does_not_change_the_function(spec: HeadsSpec):
    model = converted(spec)
    light = without_inertia(model)
    inputs = TWINS["bert"].inputs()
    for training in (False, True):
        first, second = (one.train(training) for one in (model, light))
        outputs = []
        for one in (first, second):
            torch.manual_seed(0)
            outputs.append(one(**inputs).logits)
        # A sum of products, each times a power of two: no digit changes.
        assert torch.equal(*outputs)
    for block, other in zip(find_blocks(model), find_blocks(light), strict=True):
        for field in dataclasses.fields(DenseAttention):
            one, two = (getattr(read_block(b), field.name) for b in (block, other))
            assert torch.equal(one, two) if isinstance(one, Tensor) else one == two, field.name


@pytest.mark.parametrize("spec", [FACTORS["collab"][0], FACTORS["mhe"][0]], ids=str)
def test_a_step_moves_what_heads_share_less(spec: HeadsSpec):
    model = converted(spec).eval()
    light = without_inertia(model)
    before = {name: one.detach().clone() for name, one in light.named_parameters()}
    for one in (model, light):
        fit(one, TWINS["bert"].inputs(), 1, 1e-3)
    inertias = inertia_by_name(model)
    for name, start in before.items():
        if name.endswith("shared_key.bias"):
            continue  # softmax drops it: its gradient is rounding
        heavy, there = model.get_parameter(name).detach(), light.get_parameter(name).detach()
        moved = (heavy / inertias.get(name, 1) - start).abs().max()
        torch.testing.assert_close(moved, (there - start).abs().max() / inertias.get(name, 1), rtol=0.02, atol=1e-7)


@pytest.mark.parametrize("twin", TWINS)
def test_a_native_model_gets_the_trainers_groups(twin: str, tmp_path: Path):
    model = TWINS[twin].model()
    arguments = TrainingArguments(str(tmp_path), learning_rate=1e-3, weight_decay=0.1, report_to="none", use_cpu=True)
    expected = Trainer(model, arguments).create_optimizer().param_groups
    found = torch.optim.AdamW(hf_heads.parameter_groups(model, 1e-3, weight_decay=0.1)).param_groups
    assert len(found) == len(expected) == 2
    for one in found:
        (other,) = (group for group in expected if group["weight_decay"] == one["weight_decay"])
        assert one["lr"] == other["lr"]
        assert [id(p) for p in one["params"]] == [id(p) for p in other["params"]]


def test_frozen_factors_stay_and_the_rest_is_trained():
    twin: Twin = TWINS["bert"]
    model = converted(CollabSpec(rank=12))
    names = hf_heads.freeze_factors(model)
    assert set(names) == set(shared_factors(model))
    before = {name: one.detach().clone() for name, one in model.named_parameters()}
    losses = fit(model.eval(), twin.inputs(), 5, 1e-2)
    assert losses[-1] < losses[0]
    moved = {name for name, one in model.named_parameters() if not torch.equal(one, before[name])}
    assert not moved & set(names)
    assert "bert.encoder.layer.0.attention.self.value.weight" in moved
    groups = hf_heads.parameter_groups(model, 1e-3)
    assert not {id(model.get_parameter(name)) for name in names} & {id(p) for g in groups for p in g["params"]}
    hf_heads.freeze_factors(model, False)
    assert all(one.requires_grad for one in model.parameters())


def test_freezing_is_not_saved(tmp_path: Path):
    model = converted(CollabSpec(rank=12))
    hf_heads.freeze_factors(model)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForMaskedLM.from_pretrained(tmp_path)
    assert all(one.requires_grad for one in loaded.parameters())
    assert len(hf_heads.freeze_factors(loaded)) == 6


def test_a_native_model_has_no_factors():
    model = TWINS["vit"].model()
    assert hf_heads.freeze_factors(model) == []
    assert all(one.requires_grad for one in model.parameters())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"lr": 0.0}, "lr is 0.0, expected a number above 0"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"lr": "fast"}, "lr is 'fast'"),
        ({"lr": 1e-3, "weight_decay": -1}, "weight_decay is -1, expected a number of 0 or more"),
        ({"lr": 1e-3, "share": -0.1}, "share is -0.1"),
    ],
)
def test_rates_are_checked(given: dict[str, Any], message: str):
    with pytest.raises(HeadsError, match=message):
        hf_heads.parameter_groups(converted(CollabSpec(rank=12)), **given)


def test_other_modules_are_refused():
    for call in (hf_heads.freeze_factors, lambda one: hf_heads.parameter_groups(one, 1e-3)):
        with pytest.raises(HeadsError, match="expected a model of transformers, not Linear"):
            call(nn.Linear(2, 2))
