"""The scale of shared factors: the function stays, and steps of training go as far as in the original."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import hf_heads
from hf_heads import CollabSpec, HeadsSpec, MgkSpec, MheSpec
from hf_heads.core.dense import AttentionShape, DenseAttention, split_heads
from hf_heads.core.gauge import balance, gauge, level, reach, rms
from hf_heads.core.statistics import BlockStatistics, Moments
from hf_heads.methods.registry import get_method
from tests.support.twins import TWINS, logits

HEADS, WIDTH, DIM = 4, 12, 5
BALANCED = [MheSpec(groups=2), MheSpec(groups=1, variant="add"), MgkSpec(merge=2, queries="shared", norm=0.3)]


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def block() -> DenseAttention:
    values = drawn(HEADS, WIDTH, DIM, seed=3)
    return DenseAttention(
        query=drawn(HEADS, WIDTH, DIM, seed=1),
        key=3 * drawn(HEADS, WIDTH, DIM, seed=2),
        value=values,
        output=values.mT.contiguous(),
        query_bias=drawn(HEADS, DIM, seed=4),
        key_bias=torch.zeros(HEADS, DIM, dtype=torch.float64),
        value_bias=torch.zeros(HEADS, DIM, dtype=torch.float64),
        output_bias=torch.zeros(WIDTH, dtype=torch.float64),
        content_bias=torch.zeros(HEADS, WIDTH, dtype=torch.float64),
        scale=DIM**-0.5,
    )


def inputs() -> Tensor:
    return drawn(200, WIDTH, seed=5) * torch.linspace(0.2, 3, WIDTH, dtype=torch.float64) + 0.5


def statistics() -> BlockStatistics:
    moments = Moments(WIDTH)
    moments.update(inputs())
    return BlockStatistics(moments, moments)


def mean_square_root(values: Tensor) -> Tensor:
    """Over the first dimension, the rows of the data."""
    return (values**2).mean(0) ** 0.5


def test_sizes_are_those_of_the_data():
    dense, rows = block(), inputs()
    expected = mean_square_root(torch.einsum("nd,hde->nhe", rows, dense.query) + dense.query_bias)
    torch.testing.assert_close(rms(dense.query, statistics().query, dense.query_bias), expected)


def test_reach_is_what_a_step_of_all_weights_moves():
    """A step of the keys' projection by t for every entry moves y W_K by t sum(y), and the score by q times that."""
    dense, rows = block(), inputs()
    moved = DenseAttention(**{**vars(dense), "key": dense.key + 0.01})
    change = moved.scores(rows[None], rows[None]) - dense.scores(rows[None], rows[None])
    query = torch.einsum("nd,hde->hne", rows, dense.query) + dense.query_bias[:, None]
    step = 0.01 * rows.sum(1)
    torch.testing.assert_close(change[0], dense.scale * query.sum(-1)[..., None] * step)
    by_query, by_key = reach(dense, statistics())
    # In any one direction of step signs it is at most sum_i |q_i|, whose size is sum_i rms(q_i).
    torch.testing.assert_close(by_key, mean_square_root(query.transpose(0, 1)).sum(-1).mean())
    key = torch.einsum("nd,hde->nhe", rows, dense.key)
    torch.testing.assert_close(by_query, mean_square_root(key).sum(-1).mean())


@pytest.mark.parametrize("form", ["cp", "tucker"])
def test_steps_go_as_far_as_in_the_original(form: str):
    dense, rows, rank = block(), inputs(), 7
    core = drawn(HEADS, rank, seed=8) if form == "cp" else drawn(HEADS, rank, rank, seed=8)
    before = 5 * drawn(WIDTH, rank, seed=6), core, drawn(WIDTH, rank, seed=7)
    after = gauge(*before, dense, statistics())
    scores = [u @ (m if form == "tucker" else torch.diag_embed(m)) @ v.T for u, m, v in (before, after)]
    torch.testing.assert_close(scores[0], scores[1])
    u, m, v = after
    full = m if form == "tucker" else torch.diag_embed(m)
    queries = torch.einsum("nd,dr,hrs->nhs", rows, u, full)
    keys = torch.einsum("nd,ds,hrs->nhr", rows, v, full)
    wanted_keys = mean_square_root(torch.einsum("nd,hde->nhe", rows, dense.key)).sum(-1).mean()
    wanted_queries = torch.einsum("nd,hde->nhe", rows, dense.query) + dense.query_bias
    torch.testing.assert_close(
        mean_square_root(queries).sum(-1).mean(), mean_square_root(wanted_queries).sum(-1).mean()
    )
    torch.testing.assert_close(mean_square_root(keys).sum(-1).mean(), wanted_keys)


def test_ranks_are_levelled_and_what_is_zero_stays():
    u, m, v = level(drawn(6, 3) * torch.tensor([1.0, 1e-9, 1.0]), drawn(4, 3), drawn(5, 3) * torch.tensor([1.0, 1, 0]))
    torch.testing.assert_close(u.norm(dim=0)[:2], v.norm(dim=0)[:2])
    torch.testing.assert_close(m.square().mean(0)[:2], torch.ones(2, dtype=torch.float64))
    assert not v[:, 2].any()
    assert torch.isfinite(u).all()
    zero = torch.zeros(WIDTH, 3, dtype=torch.float64)
    assert all(torch.isfinite(one).all() for one in gauge(zero, drawn(HEADS, 3), zero, block(), statistics()))


def test_balance_makes_both_excesses_equal():
    by_query, by_key, wanted = (torch.tensor(one) for one in (6.0, 1.0, 2.0))
    c = balance(by_query, by_key, (wanted, wanted))
    assert float(by_query / c / wanted) == pytest.approx(float(by_key * c / wanted))
    assert float(balance(torch.tensor(0.0), by_key, (wanted, wanted))) == 1


@pytest.mark.parametrize("spec", BALANCED)
def test_methods_without_room_for_a_scale_are_balanced(spec: HeadsSpec):
    shape = AttentionShape(HEADS, WIDTH, WIDTH, DIM, DIM, WIDTH)
    dense, rows = block(), inputs()
    made = get_method(spec.method).from_dense(dense, statistics(), spec.resolve(shape))
    weights = made.weights
    side = "shared" if spec.method == "mhe" else "component"
    groups = len(weights[f"{side}_query.bias"]) // DIM
    query = torch.einsum("nd,gde->nge", rows, split_heads(weights[f"{side}_query.weight"], groups))
    query = query + weights[f"{side}_query.bias"].view(groups, -1)
    counted = len(weights[f"{side}_key.weight"]) // DIM
    key = torch.einsum("nd,gde->nge", rows, split_heads(weights[f"{side}_key.weight"], counted))
    queries, keys = query, mean_square_root(key)
    if spec.method == "mhe":
        each, embedding = HEADS // groups, weights["query_embedding"]
        queries, keys = query.repeat_interleave(each, 1), keys.repeat_interleave(each, 0)
        multiplies = spec.variant == "mul"
        own = 1 + embedding / (getattr(made.spec, "inertia", None) if groups < HEADS else 1)
        queries = queries * own if multiplies else queries + embedding
        keys = keys * own.abs() if multiplies else keys
    by_query, by_key = keys.sum(-1).mean(), mean_square_root(queries).sum(-1).mean()
    wanted = reach(dense, statistics())
    torch.testing.assert_close(by_query / wanted[0], by_key / wanted[1], rtol=1e-4, atol=0.0)


LOSSLESS = {
    "collab": CollabSpec(rank=32),
    "collab-tucker": CollabSpec(rank=32, form="tucker"),
    "mhe": MheSpec(groups=4),
    "mhe-add": MheSpec(groups=4, variant="add"),
}


@pytest.mark.parametrize("spec", LOSSLESS.values(), ids=LOSSLESS)
def test_the_function_is_unchanged(spec: HeadsSpec):
    twin = TWINS["bert"]
    model, batch = twin.model(), twin.inputs()
    converted, _ = hf_heads.convert(model, spec, calibration=[batch], refit=False)
    assert (logits(converted, batch) - logits(model, batch)).abs().max() < 1e-5


@pytest.mark.parametrize("spec", BALANCED)
def test_balancing_changes_no_function(spec: HeadsSpec, monkeypatch: pytest.MonkeyPatch):
    twin = TWINS["bert"]
    model, batch = twin.model().double(), twin.inputs()
    balanced, _ = hf_heads.convert(model, spec, blocks="*layer.0*", calibration=[batch], refit=False)
    for module in ("mhe", "mgk.conversion"):
        monkeypatch.setattr(f"hf_heads.methods.{module}.balance", lambda *_: torch.ones((), dtype=torch.float64))
    plain, _ = hf_heads.convert(model, spec, blocks="*layer.0*", calibration=[batch], refit=False)
    apart = [not torch.equal(one, other) for one, other in zip(balanced.parameters(), plain.parameters(), strict=True)]
    assert any(apart)
    assert (logits(balanced, batch) - logits(plain, batch)).abs().max() < 1e-7
