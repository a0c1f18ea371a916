"""Head embeddings against the paper's formulas, written out head by head."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import BertModel, PreTrainedModel, ViTModel

import hf_heads
from hf_heads import HeadsError, MheSpec
from hf_heads.attention.hosts.blocks import find_blocks
from hf_heads.core.dense import AttentionShape
from hf_heads.core.grouping import balanced_groups, captured_energy
from hf_heads.methods.mhe import MheAttention
from tests.support.attention import block_inputs
from tests.support.matrix import pairwise
from tests.support.text_twins import TEXT_TWINS
from tests.support.twins import HEADS, TWINS, WIDTH, bert_config, fit, logits, randomize, vit_config

DIM = WIDTH // HEADS
SETTINGS = [
    MheSpec(),
    MheSpec(groups=2),
    MheSpec(groups_qk=1, groups_v=2),
    MheSpec(variant="add"),
    MheSpec(variant="add", groups=2),
    MheSpec(variant="add", groups_qk=4, groups_v=2),
]


def name_of(spec: MheSpec) -> str:
    return "-".join(str(value) for name, value in spec.to_config().items() if name != "method")


def made(name: str, spec: MheSpec, implementation: str) -> PreTrainedModel:
    """A twin with head embeddings all over and all parameters random."""
    model, _ = hf_heads.convert(TWINS[name].model(implementation), spec, calibration="none")
    randomize(model, seed=3)
    return model


def naive(module: MheAttention, x: Tensor, y: Tensor, allowed: Tensor, drop: Tensor | None = None) -> Tensor:
    """Every head's context, (batch, heads, target, head_dim), by the formulas of arXiv 2310.07911.

    Args:
        allowed: boolean, broadcastable to (batch, target, source).
        drop: factors on the attention weights, as dropout makes them, (batch, heads, target, source).
    """

    def project(linear: nn.Linear, groups: int, inputs: Tensor, head: int, embedding: Tensor) -> Tensor:
        group = head // (HEADS // groups)
        rows = slice(group * DIM, (group + 1) * DIM)
        inertia = module.spec.inertia if groups < HEADS else 1  # what heads share is stored so much larger
        shared = (inputs @ linear.weight[rows].T + linear.bias[rows]) / inertia
        own = embedding[head] / inertia
        return shared * (1 + own) if module.spec.variant == "mul" else shared + own

    contexts = []
    for head in range(HEADS):
        query = project(module.shared_query, module.spec.groups_qk, x, head, module.query_embedding)
        key = project(module.shared_key, module.spec.groups_qk, y, head, module.key_embedding)
        value = project(module.shared_value, module.spec.groups_v, y, head, module.value_embedding)
        scores = (query @ key.mT / DIM**0.5).masked_fill(~allowed, -torch.inf)
        weights = scores.softmax(-1)
        contexts.append((weights if drop is None else weights * drop[:, head]) @ value)
    return torch.stack(contexts, 1)


@pairwise(
    {"spec": lambda spec: spec.variant},
    name=TWINS.keys(),
    spec={name_of(spec): spec for spec in SETTINGS},
    implementation=["eager", "sdpa"],
)
@torch.no_grad()
def test_what_is_computed_is_the_papers_formula(name: str, spec: MheSpec, implementation: str):
    model = made(name, spec, implementation)
    for given in block_inputs(model):
        wanted = given.expected(naive(given.block.module, given.x, given.memory, given.allowed))
        for mask in (given.additive,) if implementation == "eager" else (given.boolean, given.additive):
            assert (given.output(mask) - wanted).abs().max() < 1e-5


@pytest.mark.parametrize("spec", SETTINGS, ids=name_of)
def test_attention_dropout_means_what_it_means_in_the_paper(spec: MheSpec, monkeypatch: pytest.MonkeyPatch):
    """In training, dropped weights take their share of the value embedding with them."""
    model = made("bert", spec, "eager").train()
    module = find_blocks(model)[0].module
    module.attention_dropout = 0.25
    drop = torch.bernoulli(torch.full((2, HEADS, 5, 5), 0.75), generator=torch.Generator().manual_seed(0)) / 0.75
    monkeypatch.setattr(nn.functional, "dropout", lambda weights, p, training: weights * drop if training else weights)
    x = torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(5))
    wanted = naive(module, x, x, torch.ones(2, 5, 5, dtype=torch.bool), drop)
    found = module(x)[0]
    assert (found - wanted.transpose(1, 2).flatten(2)).abs().max() < 1e-5
    gradients = torch.autograd.grad(found.square().sum(), [module.key_embedding, module.value_embedding])
    assert all(gradient.isfinite().all() for gradient in gradients)
    dropped = gradients[0].abs().max() < 1e-3 * gradients[1].abs().max()  # the softmax drops e^K in add, not in mul
    assert dropped == (spec.variant == "add")


@pytest.mark.parametrize("variant", ["mul", "add"])
def test_parameters_are_the_papers_counts(variant: str):
    """3 n d more than a single head's projections, (3 n^2 - 3 n) d^2 - 3 n d fewer than multi-head attention."""
    n, d = HEADS, DIM
    config = vit_config()
    config.qkv_bias = False
    model = ViTModel(config)
    randomize(model)
    converted, report = hf_heads.convert(model, MheSpec(variant=variant), calibration="none")
    for before, after, row in zip(find_blocks(model), find_blocks(converted), report.blocks, strict=True):
        shared = sum(p.numel() for name, p in after.module.named_parameters() if name.startswith("shared_"))
        embeddings = sum(p.numel() for name, p in after.module.named_parameters() if name.endswith("_embedding"))
        many = sum(p.numel() for name, p in before.module.named_parameters() if "o_proj" not in name)
        assert shared == 3 * n * d * d
        assert embeddings == 3 * n * d
        assert many - shared - embeddings == (3 * n**2 - 3 * n) * d**2 - 3 * n * d
        assert row.parameters_before - row.parameters == many - shared - embeddings


def test_a_host_without_biases_is_converted_without_loss_where_groups_are_heads():
    config = vit_config()
    config.qkv_bias = False
    model = ViTModel(config)
    randomize(model)
    inputs = TWINS["vit"].inputs()
    for variant in ("mul", "add"):
        for calibration in (None, [inputs]):
            converted, _ = hf_heads.convert(
                model.eval(), MheSpec(variant=variant, groups=HEADS), calibration=calibration
            )
            assert (logits(converted, inputs) - logits(model, inputs)).abs().max() < 1e-5
            lossy, _ = hf_heads.convert(model, MheSpec(variant=variant), calibration=calibration)
            assert torch.isfinite(logits(lossy, inputs)).all()


@pytest.mark.parametrize(("groups_qk", "groups_v"), [(1, 1), (2, 2), (1, 4), (4, 2)])
def test_the_cache_of_generation_holds_the_groups_alone(groups_qk: int, groups_v: int):
    spec = MheSpec(groups_qk=groups_qk, groups_v=groups_v)
    model = made("marian", spec, "sdpa")
    inputs = {name: value for name, value in TWINS["marian"].inputs().items() if not name.startswith("decoder")}
    caches = []
    for one in (TWINS["marian"].model("sdpa"), model):
        settings = dict(num_beams=2, max_new_tokens=6, do_sample=False, return_dict_in_generate=True)
        caches.append(one.generate(**inputs, **settings, eos_token_id=None).past_key_values)
    for part in ("self_attention_cache", "cross_attention_cache"):
        before, after = (getattr(cache, part).layers for cache in caches)
        for host, ours in zip(before, after, strict=True):
            assert host.keys.numel() == ours.keys.numel() * HEADS // groups_qk
            assert host.values.numel() == ours.values.numel() * HEADS // groups_v
            assert ours.keys.untyped_storage().nbytes() == ours.keys.numel() * 4  # nothing larger behind a view


@pytest.mark.parametrize("spec", [MheSpec(), MheSpec(variant="add"), MheSpec(groups_qk=1, groups_v=2)])
def test_a_converted_model_is_a_standard_one_written_out(spec: MheSpec):
    """What `to_dense` tells is what is computed, so that a converted model converts on."""
    twin = TWINS["bert"]
    model = made("bert", spec, "eager")
    again, _ = hf_heads.convert(model, hf_heads.CollabSpec(rank=WIDTH), calibration="none")
    assert (logits(again, twin.inputs()) - logits(model, twin.inputs())).abs().max() < 1e-5
    whole, _ = hf_heads.convert(model, MheSpec(groups=HEADS), calibration="none")
    assert (logits(whole, twin.inputs()) - logits(model, twin.inputs())).abs().max() < 1e-5
    narrow, _ = hf_heads.convert(twin.model(), hf_heads.LowRankSpec(rank=2 * HEADS), calibration="none")
    regrouped, _ = hf_heads.convert(narrow, MheSpec(groups=HEADS), calibration="none")
    assert (logits(regrouped, twin.inputs()) - logits(narrow, twin.inputs())).abs().max() < 1e-5


@pytest.mark.parametrize("calibrated", [False, True])
def test_heads_that_share_in_truth_are_found_and_converted_without_loss(calibrated: bool):
    """A host that is multi-query attention in disguise, its heads shuffled, comes back as what it is."""
    model = BertModel(bert_config())
    randomize(model)
    generator = torch.Generator().manual_seed(4)
    partner = [0, 1, 0, 1]  # heads 0 and 2, and 1 and 3, share their projections
    with torch.no_grad():
        for block in find_blocks(model):
            for name in ("query", "key", "value"):
                linear = getattr(block.module, name)
                weight, bias = linear.weight.view(HEADS, DIM, -1).clone(), linear.bias.view(HEADS, DIM).clone()
                for head in range(HEADS):
                    factor = 1 + 0.5 * torch.randn(DIM, generator=generator)
                    linear.weight.view(HEADS, DIM, -1)[head] = weight[partner[head]] * factor[:, None]
                    linear.bias.view(HEADS, DIM)[head] = bias[partner[head]] * factor
    inputs = TWINS["bert"].inputs()
    batches = [inputs] if calibrated else None
    converted, report = hf_heads.convert(model.eval(), MheSpec(groups=2), calibration=batches)
    assert [sorted(block.spec.order[:2]) in ([0, 2], [1, 3]) for block in report.blocks] == [True, True]
    assert all(block.error < 0.1 for block in report.blocks)
    assert (logits(converted, inputs) - logits(model, inputs)).square().mean() < 0.01 * logits(model, inputs).var()


def test_groups_are_those_with_most_in_common():
    generator = torch.Generator().manual_seed(0)
    bases = [torch.linalg.qr(torch.randn(40, 6, generator=generator, dtype=torch.float64))[0] for _ in range(3)]
    truth = [0, 1, 2, 2, 0, 1, 1, 0, 2]
    mixes = torch.randn(9, 6, 6, generator=generator, dtype=torch.float64)
    factors = torch.stack([bases[which] @ mix for which, mix in zip(truth, mixes, strict=True)])
    found = balanced_groups([[h] for h in range(9)], 3, lambda group: captured_energy(factors[list(group)], 6))
    assert sorted(map(sorted, found)) == [[0, 4, 7], [1, 5, 6], [2, 3, 8]]
    assert captured_energy(factors[[0, 4, 7]], 6) == pytest.approx(float(factors[[0, 4, 7]].square().sum()))


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"groups": 3}, "3 groups do not divide the 4 heads"),
        ({"groups": 8}, "8 groups do not divide the 4 heads of encoder.layer.0.attention.self: 1, 2, 4"),
        ({"groups": -1}, "groups is -1, expected 1 or more"),
        ({"variant": "mal"}, "variant is 'mal'"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], text: str):
    with pytest.raises(HeadsError, match=re.escape(text)):
        hf_heads.convert(TWINS["bert"].model(), MheSpec(**settings), calibration="none")


def test_groups_of_either_side_must_nest():
    shape = AttentionShape(6, 12, 12, 2, 2, 12)
    with pytest.raises(HeadsError, match="groups_qk 2 and groups_v 3: one must divide the other"):
        MheSpec(groups_qk=2, groups_v=3).resolve(shape)
    with pytest.raises(HeadsError, match="2 groups and groups_qk 3, groups_v 3: leave one out"):
        MheSpec(groups=2, groups_qk=3, groups_v=3).resolve(shape)


def test_it_trains_from_scratch_and_its_embeddings_move():
    model, _ = hf_heads.convert(TWINS["bert"].model(), MheSpec(), calibration="none")
    fresh = type(model)._from_config(copy.deepcopy(model.config)).train()
    module = find_blocks(fresh)[0].module
    before = module.query_embedding.detach().clone()
    assert 0.005 < before.std() < 0.05
    losses = fit(fresh, TWINS["bert"].inputs(), steps=30, learning_rate=1e-2)
    assert losses[-1] < 0.5 * losses[0]
    assert (module.query_embedding - before).abs().max() > 1e-3
    assert sum(p.numel() for p in module.parameters()) == module.spec.parameters(module.shape) - WIDTH * (WIDTH + 1)


def heads_of_one_kind(model: PreTrainedModel) -> None:
    """Make a second key and value head of a host what one head is for it: other phases and sizes, other directions."""
    generator = torch.Generator().manual_seed(4)
    for block in find_blocks(model):
        factor = torch.polar(torch.rand(DIM // 2, generator=generator) + 0.5, torch.arange(DIM // 2) + 1.0)
        mix = torch.eye(DIM) + 0.3 * torch.randn(DIM, DIM, generator=generator)
        for linear, change in ((block.module.k_proj, factor), (block.module.v_proj, mix)):
            for parameter in (linear.weight, linear.bias):
                if parameter is None:
                    continue
                first, second = parameter.data.view(2, DIM, -1)
                if change.is_complex():
                    found = torch.complex(*first.chunk(2)) * change[:, None]
                    second.copy_(torch.cat([found.real, found.imag]))
                else:
                    second.copy_(change @ first)


@pytest.mark.parametrize("name", ["llama", "qwen2", "phi"])
def test_keys_that_differ_by_phases_and_values_of_one_space_are_shared_without_loss(name: str):
    """A complex factor for a pair of channels commutes with the turn by a position, and queries absorb it."""
    twin = TEXT_TWINS[name]
    model = twin.model()
    if name == "phi":  # a half of its channels is not turned, where heads that agree share without loss
        for block in find_blocks(model):
            for parameter in (block.module.k_proj, block.module.v_proj):
                for one in (parameter.weight, parameter.bias):
                    one.data.view(2, -1)[1] = one.data.view(2, -1)[0]
    else:
        heads_of_one_kind(model)
    for calibration in ("none", [twin.inputs()]):
        converted, report = hf_heads.convert(model, MheSpec(groups=1), calibration=calibration)
        assert max(block.error for block in report.blocks) < 1e-6
        wanted = logits(model, twin.inputs())
        assert (logits(converted, twin.inputs()) - wanted).abs().max() < 2e-5 * wanted.abs().max()


def test_heads_with_queries_of_their_own_are_grouped_query_attention():
    """Against the formula, for unequal numbers of groups, which the cache holds as one."""
    twin = TEXT_TWINS["modernbert"]
    model, _ = hf_heads.convert(twin.model(), MheSpec(groups_qk=2, groups_v=1), calibration="none")
    module = find_blocks(model)[0].module
    x = torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(5))
    angles = torch.arange(5.0)[:, None] * 10.0 ** -torch.arange(DIM // 2)
    turns = torch.cat([angles, angles], -1)[None]

    def turned(states: Tensor) -> Tensor:
        found = torch.complex(*states.chunk(2, -1)) * torch.polar(torch.ones_like(angles), angles)
        return torch.cat([found.real, found.imag], -1)

    contexts = []
    for head in range(HEADS):
        rows = slice(head // 2 * DIM, (head // 2 + 1) * DIM)
        query = turned(x @ module.shared_query.weight[head * DIM : (head + 1) * DIM].T)
        key, value = turned(x @ module.shared_key.weight[rows].T), x @ module.shared_value.weight.T
        contexts.append((query @ key.mT / DIM**0.5).softmax(-1) @ value)
    wanted = module.Wo(torch.cat(contexts, -1))
    for implementation in ("eager", "sdpa"):
        model.set_attn_implementation(implementation)
        found = module(x, position_embeddings=(turns.cos(), turns.sin()), attention_mask=None)[0]
        assert (found - wanted).abs().max() < 1e-5
    assert module.spec.cache_per_token(module.shape) == 3 * DIM


def test_what_rotary_hosts_cannot_share_is_refused_with_what_they_can():
    def convert(name: str, spec: MheSpec) -> None:
        hf_heads.convert(TEXT_TWINS[name].model(), spec, calibration="none")

    with pytest.raises(HeadsError, match=r"4 groups are more than the 2 key and value heads of layers\.0\.self_attn"):
        convert("llama", MheSpec(groups=4))
    with pytest.raises(HeadsError, match=r"variant add is one of embeddings"):
        convert("llama", MheSpec(groups=1, variant="add"))
    with pytest.raises(HeadsError, match=r"go through a norm of every head.*groups_qk 2, and groups_v fewer"):
        convert("qwen3", MheSpec(groups=1))
