"""The decompositions against dense tensors, the naive formulas and tensorly."""

from __future__ import annotations

import pytest
import tensorly
import torch
from tensorly.decomposition import parafac, partial_tucker
from torch import Tensor

from hf_heads.core.decompositions import cp, head_svd, low_rank, squared_norm, tail_energy, tucker


def factors(heads: int = 3, query_width: int = 10, key_width: int = 12, head_dim: int = 4, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    query, key = (
        torch.randn(heads, width, head_dim, generator=generator, dtype=torch.float64)
        for width in (query_width, key_width)
    )
    return query, key


def dense(query: Tensor, key: Tensor) -> Tensor:
    """T[i, h, j] = sum_d A[h, i, d] B[h, j, d], written out."""
    return torch.einsum("hid,hjd->ihj", query, key)


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("rank", [1, 2, 5, 11, 12])
def test_cp_reports_the_error_that_its_factors_have(rank: int):
    query, key = factors()
    found = cp(query, key, rank)
    approximation = torch.einsum("ir,hr,jr->ihj", found.query, found.core, found.key)
    assert relative(approximation, dense(query, key)) == pytest.approx(found.error, abs=1e-6)
    with tensorly.backend_context("pytorch"):
        assert torch.allclose(found.to_tensorly().to_tensor(), approximation)


def test_cp_is_exact_at_heads_times_head_dim():
    query, key = factors()
    assert cp(query, key, 12).error < 1e-7


def test_cp_never_ends_above_its_start():
    query, key = factors(heads=4, head_dim=3)
    for rank in (1, 2, 3, 5, 8, 11, 12):
        start = float((tail_energy(query, key)[rank] / squared_norm(query, key)).sqrt())
        assert cp(query, key, rank).error <= start + 1e-12


@pytest.mark.filterwarnings("ignore:Trying to compute SVD")  # tensorly's start at a rank above the number of heads
@pytest.mark.parametrize("rank", [2, 4, 8])
def test_cp_is_no_worse_than_tensorlys_parafac(rank: int):
    query, key = factors(heads=4, query_width=16, key_width=16, head_dim=4, seed=3)
    tensor = dense(query, key)
    with tensorly.backend_context("pytorch"):
        found = parafac(tensor, rank, init="svd", n_iter_max=100, random_state=0)
        wanted = relative(tensorly.cp_to_tensor(found), tensor)
    assert cp(query, key, rank).error <= wanted * 1.01


def test_cp_leaves_the_saddle_of_equal_heads():
    query, key = factors(heads=1)
    same = cp(query.expand(3, -1, -1), key.expand(3, -1, -1), 4)
    assert same.error < 1e-3


def test_cp_survives_zeros_and_too_few_dimensions():
    zeros = torch.zeros(2, 5, 3)
    assert torch.isfinite(cp(zeros, zeros, 4).query).all()
    query, key = factors()
    query[..., 1:] = 0
    assert cp(query, key, 3).error < 1e-7


def test_cp_repeats_to_the_bit():
    query, key = factors()
    assert torch.equal(cp(query, key, 5).query, cp(query, key, 5).query)


@pytest.mark.parametrize("ranks", [(3, 3), (6, 4), (10, 12)])
def test_tucker_equals_tensorlys_partial_tucker(ranks: tuple[int, int]):
    query, key = factors()
    found = tucker(query, key, ranks)
    tensor = dense(query, key)
    approximation = torch.einsum("ir,hrs,js->ihj", found.query, found.core, found.key)
    assert relative(approximation, tensor) == pytest.approx(found.error, abs=1e-6)
    with tensorly.backend_context("pytorch"):
        assert torch.allclose(found.to_tensorly().to_tensor(), approximation)
        (core, (u, v)), _ = partial_tucker(tensor, rank=list(ranks), modes=[0, 2], n_iter_max=100)
        wanted = relative(torch.einsum("ir,rhs,js->ihj", u, core, v), tensor)
    assert found.error <= wanted + 1e-4


def test_low_rank_is_eckart_young_for_every_head():
    query, key = factors()
    narrow_query, narrow_key, error = low_rank(query, key, 2)
    lost = 0.0
    for head in range(3):
        product = query[head] @ key[head].T
        values = torch.linalg.svdvals(product)
        difference = product - narrow_query[head] @ narrow_key[head].T
        assert difference.norm() == pytest.approx(float(values[2:].norm()))
        lost += float(difference.square().sum())
    assert error == pytest.approx((lost / float(squared_norm(query, key))) ** 0.5)


def test_head_svd_and_squared_norm_are_those_of_the_products():
    query, key = factors(query_width=3)  # narrower than head_dim
    left, values, right = head_svd(query, key)
    product = query @ key.mT
    assert torch.allclose(left * values[:, None] @ right.mT, product)
    assert float(squared_norm(query, key)) == pytest.approx(float(product.square().sum()))
    assert float(tail_energy(query, key)[0]) == pytest.approx(float(product.square().sum()))


def test_tensorlys_backend_is_left_alone():
    before = tensorly.get_backend()
    cp(*factors(), 3)
    tucker(*factors(), (3, 3))
    assert tensorly.get_backend() == before


def test_cp_does_not_let_large_terms_cancel():
    """a (a b' + b a') and b a a': rank 3, and approached without end by two terms that grow and cancel."""
    a, b = torch.eye(5, dtype=torch.float64)[:2]
    query = torch.stack([torch.stack([a, b], 1), torch.stack([a, 0 * a], 1)])
    key = torch.stack([torch.stack([b, a], 1), torch.stack([a, 0 * a], 1)])

    def largest_term(damping: float) -> float:
        found = cp(query, key, 2, sweeps=1000, tolerance=1e-9, damping=damping)
        return float((found.query.norm(dim=0) * found.core.norm(dim=0) * found.key.norm(dim=0)).max())

    assert largest_term(0.0) > 3 * float(squared_norm(query, key).sqrt())
    assert largest_term(1e-3) < 1.5 * float(squared_norm(query, key).sqrt())


def test_damping_costs_little_near_a_lossless_rank():
    query, key = factors()
    key[2, :, 3] *= 1e-4  # the last of twelve directions hardly matters
    start = float((tail_energy(query, key)[11] / squared_norm(query, key)).sqrt())
    assert 0 < start < 1e-4
    assert cp(query, key, 11).error <= start
