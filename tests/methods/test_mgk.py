"""Mixtures of Gaussian keys against the paper's formulas, written out with distances in float64."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import BertModel, PreTrainedModel

import hf_heads
from hf_heads import HeadsError, MgkSpec
from hf_heads.attention import mixture
from hf_heads.attention.hosts.blocks import find_blocks
from hf_heads.attention.hosts.reading import read_host
from hf_heads.attention.kernels import Conditions
from hf_heads.attention.mixture import centred, hard_attention, linear_attention, mixture_attention
from hf_heads.jobs.conversion.statistics import collect_statistics
from hf_heads.jobs.evaluation.drift import measure_drift
from hf_heads.jobs.scoring.probe import memory_mask
from hf_heads.methods.attention.mgk import MgkAttention
from hf_heads.methods.mgk.conversion import match_heads
from tests.support.attention import block_inputs
from tests.support.matrix import pairwise
from tests.support.twins import HEADS, TWINS, WIDTH, bert_config, fit, logits, randomize

DIM = WIDTH // HEADS
SETTINGS = [
    MgkSpec(shift=0.3),
    MgkSpec(shift=0.3, components=3, priors="fixed"),
    MgkSpec(mixture="smgk", shift=0.3),
    MgkSpec(mixture="smgk", shift=0.3, components=3, priors="em"),
    MgkSpec(shift=0.3, sigma="fixed", priors="em", positions=20),
    MgkSpec(mixture="smgk", shift=0.3, positions=20, components=3),
    MgkSpec(assignment="hard", shift=0.3, components=3),
    MgkSpec(assignment="hard", shift=0.3, sigma="fixed"),
    MgkSpec(kernel="linear", shift=0.3, components=3, positions=20),
    MgkSpec(kernel="linear", mixture="smgk", shift=0.3),
    MgkSpec(merge=2),
    MgkSpec(merge=2, queries="shared", values="shared"),
]

EAGER, SDPA = Conditions(), Conditions(implementation="sdpa")


def name_of(spec: MgkSpec) -> str:
    return "-".join(str(value) for name, value in spec.to_config().items() if name != "method")


def made(name: str, spec: MgkSpec, implementation: str) -> PreTrainedModel:
    """A twin with mixtures of keys all over and all parameters random, beta and sigma among them."""
    model, _ = hf_heads.convert(TWINS[name].model(implementation), spec, calibration="none")
    randomize(model, seed=3)
    generator = torch.Generator().manual_seed(4)
    for block in find_blocks(model):
        module = block.module
        if module.spec.learns_sigma:
            module.norm_coefficient.data = torch.rand(module.norm_coefficient.shape, generator=generator)
        if spec.priors == "em":
            module.running_prior = torch.rand(module.running_prior.shape, generator=generator).softmax(1)
    return model


def naive(module: MgkAttention, x: Tensor, y: Tensor, allowed: Tensor) -> Tensor:
    """(batch, heads, target, value_dim) in float64, one head and one component at a time.

    The exponent is -|q - k|^2 / 2 sigma^2 where beta is 1; for any beta it is (q k - beta |k|^2 / 2) / sigma^2.
    """
    spec, heads = module.spec, module.shape.heads

    def project(linear: torch.nn.Linear, inputs: Tensor) -> Tensor:
        return inputs.double() @ linear.weight.double().T + linear.bias.double()

    query = project(module.component_query, x).unflatten(-1, (heads, spec.query_count, -1))
    key = project(module.component_key, y).unflatten(-1, (heads, -1, DIM))
    value = project(module.component_value, y).unflatten(-1, (heads, -1))
    contexts = []
    for head in range(heads):
        if spec.priors == "learned":
            prior = module.prior_logits[head].double().softmax(0)
        elif spec.priors == "em":
            prior = module.running_prior[head].double()
        else:
            prior = torch.full((spec.components,), 1 / spec.components, dtype=torch.float64)
        prior = prior if prior.ndim == 1 else prior[:, : y.shape[1]]
        terms = []
        for component in range(spec.components):
            q = query[:, :, head, component if spec.query_count > 1 else 0]
            k = key[:, :, head, component if spec.mixture == "mgk" else 0]
            if spec.mixture == "smgk":
                k = k + module.shifts[head, component].double()
            if spec.kernel == "linear":
                phi_q, phi_k = (torch.nn.functional.elu(one) + 1 for one in (q, k))
                terms.append(prior[component] * (phi_q @ phi_k.mT))
                continue
            if spec.sigma == "fixed":
                distance = (q[:, :, None] - k[:, None]).square().sum(-1)
                terms.append(prior[component] * (-distance / (2 * DIM**0.5)).exp())
                continue
            variance = DIM**0.5 / module.log_precision[head].double().exp()
            beta = module.norm_coefficient[head].double()
            exponent = (q @ k.mT - beta * k.square().sum(-1)[:, None] / 2) / variance
            terms.append(prior[component] * exponent.exp())
        weights = torch.stack(terms)
        weights = weights.amax(0) if spec.assignment == "hard" else weights.sum(0)
        weights = weights * allowed
        contexts.append(weights / weights.sum(-1, keepdim=True) @ value[:, :, head])
    return torch.stack(contexts, 1)


@pairwise(
    name=TWINS.keys(),
    spec={name_of(spec): spec for spec in SETTINGS},
    implementation=["eager", "sdpa", "fused"],
    precision={"float32": (torch.float32, 5e-6), "float64": (torch.float64, 1e-12)},
)
@torch.no_grad()
def test_what_is_computed_is_the_papers_formula(
    name: str,
    spec: MgkSpec,
    implementation: str,
    precision: tuple[torch.dtype, float],
    monkeypatch: pytest.MonkeyPatch,
):
    dtype, tolerance = precision
    monkeypatch.setattr(mixture, "_MANY_KEYS", 0 if implementation == "fused" else 10**6)
    model = made(name, spec, "sdpa" if implementation == "fused" else implementation).to(dtype)
    for given in block_inputs(model, dtype):
        module = given.block.module
        wanted = given.expected(naive(module, given.x, given.memory, given.allowed))
        for mask in (given.additive,) if implementation == "eager" else (given.boolean, given.additive):
            assert (given.output(mask) - wanted).abs().max() < tolerance
        if given.block.kind != "causal":  # without any mask
            wanted = given.expected(naive(module, given.x, given.memory, torch.ones(1, dtype=torch.bool)))
            assert (given.output(None) - wanted).abs().max() < tolerance


@pytest.mark.parametrize("implementation", ["eager", "sdpa", "fused"])
@pytest.mark.parametrize("distance", [1.0, 10.0, 100.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_distances_that_underflow_do_no_harm(
    implementation: str, distance: float, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
):
    """In float64 the exponents are taken relative to their largest; exp alone would be zero over zero."""
    monkeypatch.setattr(mixture, "_MANY_KEYS", 0 if implementation == "fused" else 10**6)
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, 3, 1, 5, 8, generator=generator)
    key = torch.randn(2, 3, 2, 9, 8, generator=generator) + distance
    value = torch.randn(2, 3, 9, 4, generator=generator)
    scaling, prior = 8**-0.5, torch.rand(3, 2, generator=generator).softmax(-1)
    squares = (query.double()[:, :, :, :, None] - key.double()[:, :, :, None]).square().sum(-1)  # (b, h, m, t, s)
    exponent = -0.5 * scaling * squares + prior.double().log()[:, :, None, None]
    if distance == 100.0:
        assert not exponent.float().exp().any()
    top = exponent.amax((2, 4), keepdim=True)
    weights = (exponent - top).exp().sum(2)
    wanted = weights / weights.sum(-1, keepdim=True) @ value.double()
    query, key = centred(query.to(dtype), key.to(dtype), torch.ones(3))
    additive = prior.to(dtype).log()[:, :, None] - 0.5 * scaling * key.square().sum(-1)
    value = value.to(dtype)
    found, maps = mixture_attention(query, key, value, scaling, additive, EAGER if implementation == "eager" else SDPA)
    # Centred, the scores at distance d are of size d, of which float32 keeps seven digits.
    assert (found - wanted).abs().max() < (1e-6 if dtype == torch.float64 else 1e-6 * max(1.0, distance))
    assert found.isfinite().all()
    if maps is not None:
        assert (maps.sum(-1) - 1).abs().max() < 1e-5


@pytest.mark.parametrize("fused", [True, False])
def test_bfloat16_keeps_the_precision_of_the_additive_term(fused: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(mixture, "_MANY_KEYS", 0 if fused else 10**6)
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 3, 1, 16, 8, generator=generator), torch.randn(2, 3, 2, 16, 8, generator=generator)
    value = torch.randn(2, 3, 16, 8, generator=generator)
    query, key, value = (one.bfloat16() for one in (query, key, value))
    additive = -0.5 * 8**-0.5 * (key.float() * 4).square().sum(-1)
    exact, _ = mixture_attention(query.double(), key.double(), value.double(), 8**-0.5, additive, EAGER)
    found, _ = mixture_attention(query, key, value, 8**-0.5, additive, SDPA)
    rounded, _ = mixture_attention(query, key, value, 8**-0.5, additive.bfloat16().float(), SDPA)
    error, careless = ((one.double() - exact).abs().mean() for one in (found, rounded))
    assert error < 0.6 * careless


def test_hard_and_linear_attention_in_one_component_are_plain():
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 3, 1, 5, 8, generator=generator), torch.randn(2, 3, 1, 7, 8, generator=generator)
    value, nothing = torch.randn(2, 3, 7, 4, generator=generator), torch.zeros(3, 1, 7)
    wanted = torch.nn.functional.scaled_dot_product_attention(query[:, :, 0], key[:, :, 0], value)
    for attention in (mixture_attention, hard_attention):
        found, _ = attention(query, key, value, 8**-0.5, nothing, EAGER)
        assert (found - wanted).abs().max() < 1e-6
    slow, weights = linear_attention(query, key, value, torch.zeros(3, 1), EAGER)
    fast, _ = linear_attention(query, key, value, torch.zeros(3, 1), SDPA)
    assert weights is not None and (weights.sum(-1) - 1).abs().max() < 1e-5
    assert (slow - fast).abs().max() < 1e-5


def test_shifts_alone_change_nothing_while_beta_is_zero():
    """q (k + b_r) differs from q k by what is the same for all keys, and softmax drops it."""
    twin = TWINS["bert"]
    model = twin.model()
    same, _ = hf_heads.convert(model, MgkSpec(mixture="smgk", shift=0.5), calibration="none")
    assert (logits(same, twin.inputs()) - logits(model, twin.inputs())).abs().max() < 1e-5
    other, _ = hf_heads.convert(model, MgkSpec(mixture="smgk", shift=0.5, norm=1.0), calibration="none")
    assert (logits(other, twin.inputs()) - logits(model, twin.inputs())).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["mgk", "smgk"])
def test_the_default_shift_moves_the_output_by_less_than_it_says(kind: str):
    """README: by less than a thousandth of the logits' size."""
    for twin in TWINS.values():
        model = twin.model()
        converted, _ = hf_heads.convert(model, MgkSpec(mixture=kind), calibration="none")
        wanted = logits(model, twin.inputs())
        assert (logits(converted, twin.inputs()) - wanted).abs().max() < 1e-3 * wanted.abs().max()


def test_caches_hold_one_entry_for_a_position():
    model = made("marian", MgkSpec(), "sdpa")
    twin = TWINS["marian"]
    cache = model(**twin.inputs(), use_cache=True).past_key_values
    length = twin.inputs()["decoder_input_ids"].shape[1]
    layer = cache.self_attention_cache.layers[0]
    assert layer.keys.shape == (3, HEADS, length, 2 * DIM)
    assert layer.values.shape == (3, HEADS, length, DIM)


def test_priors_by_expectation_maximisation_follow_the_attention():
    model = made("bert", MgkSpec(priors="em", shift=0.3), "sdpa")
    module = find_blocks(model)[0].module
    module.component_key.weight.data.view(HEADS, 2, DIM, WIDTH)[:, 1] *= 3  # the second key wins mostly
    module.norm_coefficient.data.zero_()
    before = module.running_prior.clone()
    model.eval()(**TWINS["bert"].inputs())
    assert torch.equal(module.running_prior, before)  # only training moves it
    model.train()
    for _ in range(30):
        model(**TWINS["bert"].inputs())
    assert (module.running_prior.sum(-1) - 1).abs().max() < 1e-5
    assert module.running_prior[:, 1].mean() > before[:, 1].mean() + 0.05


# Conversion


def test_heads_that_look_at_the_same_things_are_matched():
    model = BertModel(bert_config())
    randomize(model)
    with torch.no_grad():
        for block in find_blocks(model):
            for name in ("query", "key"):  # heads 0 and 3, and 1 and 2, attend alike
                linear = getattr(block.module, name)
                for one, other in ((0, 3), (1, 2)):
                    rows, others = (slice(head * DIM, (head + 1) * DIM) for head in (one, other))
                    linear.weight[others] = linear.weight[rows] * 1.05
                    linear.bias[others] = linear.bias[rows]
    inputs = TWINS["bert"].inputs()
    for block in find_blocks(model):
        dense = read_host(block.module, block.site, block.output)
        statistics = collect_statistics(model.eval(), block, dense, [inputs])
        assert sorted(map(sorted, match_heads(dense, statistics, 2))) == [[0, 3], [1, 2]]
    converted, report = hf_heads.convert(model, MgkSpec(merge=2), calibration=[inputs])
    assert all(block.spec.heads == 2 for block in report.blocks)
    wanted = logits(model, inputs)
    error = (logits(converted, inputs) - wanted).square().mean() / wanted.var()
    assert error < 0.01


def test_statistics_of_attention_are_their_formulas_written_out():
    twin = TWINS["marian"]
    model, inputs = twin.model(), twin.inputs()
    for block in find_blocks(model):
        if block.kind == "causal":
            continue
        dense = read_host(block.module, block.site, block.output)
        statistics = collect_statistics(model, block, dense, [inputs])
        seen: list[tuple[Tensor, Tensor]] = []

        def hook(_: object, args: tuple, kwargs: dict) -> None:
            states = kwargs.get("hidden_states", args[0] if args else None)
            seen.append((states, kwargs.get("key_value_states", states)))  # noqa: B023

        handle = block.module.register_forward_pre_hook(hook, with_kwargs=True)
        with torch.no_grad():
            model(**inputs)
        handle.remove()
        x, y = seen[0]
        scores = dense.scores(x, y).double()
        rows, logs, alike = [], [], torch.zeros(HEADS, HEADS, dtype=torch.float64)
        for example, target in inputs[block.site.query_mask].bool().nonzero():
            keys = inputs[memory_mask(block, inputs)][example].bool()
            one = scores[example, :, target][:, keys]
            alike += one.softmax(-1) @ one.softmax(-1).T
            logs.append(one.exp().sum(-1).log())
            rows.append(x[example, target].double())
        logarithms, queries = torch.stack(logs), torch.stack(rows)
        assert torch.allclose(statistics.attention_gram, alike / len(rows), rtol=1e-4)
        assert torch.allclose(statistics.log_sums, logarithms.mean(0), rtol=1e-4)
        centred = queries - queries.mean(0)
        assert torch.allclose(statistics.log_sum_cross, centred.T @ logarithms / len(rows), atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"merge": 3}, "merge 3 does not divide the 4 heads"),
        ({"merge": 2, "mixture": "smgk"}, "heads are merged into mgk"),
        ({"merge": 2, "components": 3}, "merge 2 makes 2 components"),
        ({"queries": "shared"}, "give merge as well"),
        ({"components": 0}, "components is 0, expected 1 to 64"),
        ({"assignment": "hard", "kernel": "linear"}, "the linear kernel has no assignment: leave out assignment hard"),
        ({"norm": 1.0, "kernel": "linear"}, "the linear kernel has no norm: leave out norm 1"),
        ({"priors": "em", "kernel": "linear"}, "the linear kernel has no shares by which priors em could move"),
        ({"priors": "em", "assignment": "hard"}, "takes the largest term whatever the priors: leave out priors em"),
        ({"priors": "learned", "assignment": "hard"}, "whatever the priors: leave out priors learned"),
        ({"sigma": "fixed", "kernel": "linear"}, "the linear kernel has no sigma: leave out sigma fixed"),
        ({"sigma": "fixed", "norm": 0.5}, "whose norm is 1: leave out norm 0.5"),
        ({"sigma": "fixed", "merge": 2}, "leave out sigma"),
        ({"positions": 20, "priors": "fixed"}, "fixed priors are the same at all positions: leave out positions"),
        ({"positions": 20, "assignment": "hard"}, "fixed priors are the same at all positions: leave out positions"),
        ({"positions": 0}, "positions is 0, expected 1 or more"),
        ({"heads": 2}, "2 heads cannot be made of 4: give merge"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], text: str):
    with pytest.raises(HeadsError, match=re.escape(text)):
        hf_heads.convert(TWINS["bert"].model(), MgkSpec(**settings), calibration="none")


def test_checkpoints_with_settings_that_are_refused_now_still_load():
    entries = {"heads": 4, "assignment": "hard", "priors": "em"}
    assert MgkSpec.block_type().from_mapping(entries).to_config()["priors"] == "em"


@pytest.mark.parametrize(
    "settings", [{"norm": 1.0}, {"kernel": "linear"}, {"shift": 0.5}, {"assignment": "hard", "shift": 0.5}], ids=str
)
def test_what_changes_the_output_is_refitted_and_has_no_error_of_zero(settings: dict[str, Any]):
    model, inputs = TWINS["bert"].model(), TWINS["bert"].inputs()
    inputs = {name: value.repeat(4, 1) for name, value in inputs.items()}
    drifts = []
    for refit in (False, True):
        converted, report = hf_heads.convert(model, MgkSpec(**settings), calibration=[inputs], refit=refit)
        assert {block.error for block in report.blocks} == {None}
        assert any(block.refit_gain for block in report.blocks) == refit
        drifts.append(measure_drift(converted, model, [inputs]).cosine)
    assert drifts[1] > drifts[0]


def test_an_exact_start_has_an_error_of_zero_and_is_not_refitted():
    for spec in (MgkSpec(shift=0), MgkSpec(components=1), MgkSpec(mixture="smgk")):
        _, report = hf_heads.convert(TWINS["bert"].model(), spec, calibration=[TWINS["bert"].inputs()])
        assert {(block.error, block.refit_gain) for block in report.blocks} == {(0.0, None)}


def test_what_is_a_mixture_is_not_converted_again():
    model, _ = hf_heads.convert(TWINS["bert"].model(), MgkSpec(), calibration="none")
    with pytest.raises(HeadsError, match="no standard attention: convert the original"):
        hf_heads.convert(model, hf_heads.CollabSpec(rank=8), calibration="none")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["mgk", "smgk"])
def test_fine_tuning_from_the_exact_start_trains_and_separates_the_keys(kind: str, dtype: torch.dtype):
    twin = TWINS["bert"]
    model, _ = hf_heads.convert(twin.model("sdpa"), MgkSpec(mixture=kind), calibration="none")
    model = model.to(dtype).train()
    module = find_blocks(model)[0].module

    @torch.no_grad()
    def apart() -> float:
        inputs = torch.randn(1, 9, WIDTH, generator=torch.Generator().manual_seed(0)).to(dtype)
        keys = module.components_of(module.project_memory(inputs)[0]).float()
        return float((keys[:, :, 0] - keys[:, :, 1]).norm() / keys.norm())

    before = apart()
    shifts = module.shifts.detach().clone() if kind == "smgk" else None
    losses = fit(model, twin.inputs(), steps=60, learning_rate=5e-3)
    assert all(loss == loss for loss in losses)
    assert losses[-1] < 0.5 * losses[0]
    if shifts is None:
        assert apart() > 2 * before
    else:  # they start apart, at no cost, and move on together with the keys
        assert apart() > 0.3 and (module.shifts - shifts).abs().max() > 0.05
