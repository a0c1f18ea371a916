"""`attend` in all its ways against softmax attention written out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hf_heads.attention import kernels
from hf_heads.attention.kernels import Conditions, attend
from tests.support.matrix import pairwise


def naive(query: Tensor, key: Tensor, value: Tensor, scaling: float, bias: Tensor, allowed: Tensor) -> Tensor:
    """One query at a time, in float64."""
    batch, heads, target, _ = query.shape
    output = torch.zeros(batch, heads, target, value.shape[-1], dtype=torch.float64)
    for b in range(batch):
        for h in range(heads):
            keys = key[b, h * key.shape[1] // heads].double()
            values = value[b, h * value.shape[1] // heads].double()
            for t in range(target):
                scores = scaling * keys @ query[b, h, t].double() + bias[b, h, 0].double()
                scores[~allowed[b, 0, t]] = -torch.inf
                output[b, h, t] = scores.softmax(0) @ values
    return output


@pairwise(
    groups=[(1, 4), (4, 4), (1, 1), (2, 2), (2, 1), (4, 2)],  # of keys and of values
    biased={"content-bias": True, "no-bias": False},
    masking=["none", "causal", "boolean", "additive"],
    piece=[2**18, 300, 40],
    width=[5, 7],  # narrower and wider than values
    gradient={"gradient": True, "no-gradient": False},
)
def test_every_way_is_softmax_attention(
    groups: tuple[int, int],
    biased: bool,
    masking: str,
    piece: int,
    width: int,
    gradient: bool,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(kernels, "_PIECE", piece)
    monkeypatch.setattr(kernels, "_LONG", 0 if piece == 300 else 2**18)
    (keys, values), batch, heads, target, value_dim = groups, 2, 4, 21, 6
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(batch, heads, target, width, generator=generator)
    key = torch.randn(batch, keys, target, width, generator=generator)
    value = torch.randn(batch, values, target, value_dim, generator=generator)
    bias = torch.randn(batch, heads, 1, target, generator=generator) * biased
    allowed = torch.ones(batch, 1, target, target, dtype=torch.bool)
    mask = None
    if masking == "causal":
        allowed = allowed.tril()
    elif masking != "none":
        allowed = torch.rand(batch, 1, target, target, generator=generator) > 0.3
        mask = allowed if masking == "boolean" else torch.zeros(allowed.shape).masked_fill(~allowed, -1e9)
    wanted = naive(query, key, value, 0.3, bias, allowed)
    for implementation in ("eager", "sdpa"):
        with torch.set_grad_enabled(gradient):
            conditions = Conditions(mask, masking == "causal", implementation=implementation)
            found, weights = attend(query, key, value, 0.3, bias if biased else None, conditions)
        assert (found - wanted).abs().max() < 1e-5
        assert (weights is None) == (implementation == "sdpa")


def test_pieces_are_really_made(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(kernels, "_PIECE", 300)
    seen = []
    whole = kernels._weights
    monkeypatch.setattr(kernels, "_weights", lambda *args: seen.append(args[0].shape) or whole(*args))
    query, value = torch.randn(3, 2, 37, 5), torch.randn(3, 2, 37, 6)
    with torch.no_grad():
        attend(query, query[:, :1], value, scaling=1.0, conditions=Conditions(implementation="sdpa"))
    assert len(seen) == 9 and {shape[0] for shape in seen} == {1} and max(shape[2] for shape in seen) == 16
