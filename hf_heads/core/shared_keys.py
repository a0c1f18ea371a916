"""One key for several heads that keep their own queries, with positions that turn both: tensors in, tensors out.

Where channels (i, i + turned / 2) are turned by their positions, a head's query and key are complex numbers there, and
the score is Re sum_i q_i conj(k_i) exp(i theta_i (m - n)). A complex factor for a head and a channel commutes with the
turn: with k_h,i = e_h,i z_i, the query q_h,i conj(e_h,i) against the shared key z_i gives the head's scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from hf_heads.core.decompositions import shared_basis
from hf_heads.core.dense import DenseAttention
from hf_heads.core.grouping import captured_energy
from hf_heads.core.narrow_values import square_root
from hf_heads.core.statistics import BlockStatistics, Moments


class SharedKey(NamedTuple):
    """One key for a group of heads, and their queries for it.

    Attributes:
        query: (heads, query_width, head_dim)
        query_bias: (heads, head_dim)
        key: (key_width, head_dim)
        key_bias: (head_dim,)
        lost, energy: squared error of the scores, and what it is a share of, on average over positions.
    """

    query: Tensor
    query_bias: Tensor
    key: Tensor
    key_bias: Tensor
    lost: float
    energy: float


class KeyPlanes:
    """What the data says of a block's queries and keys, in float64.

    Attributes:
        queries, keys: complex, where they are turned, (heads, width + 1, turned / 2), the bias as the last row.
        alike: W^(1/2) M W^(1/2) of every turned pair of channels, (turned / 2, heads, heads): M_hg = E[k_h conj(k_g)],
            and W_h = E|q_h|^2, times what the head's attention moves the output.
        factors: S B_h (A_h^T C A_h)^(1/2) of what is not turned, (heads, key_width, rest).
    """

    def __init__(self, dense: DenseAttention, statistics: BlockStatistics) -> None:
        self.dense, self.turned = dense.double(), dense.turned
        weights = statistics.head_weights
        self.weights = torch.ones(len(dense.query), dtype=torch.float64) if weights is None else weights
        self.query, query_moment = _with_bias(self.dense.query, self.dense.query_bias, statistics.query)
        self.key, key_moment = _with_bias(self.dense.key, self.dense.key_bias, statistics.key)
        self.queries, self.keys = (_complex(one[..., : self.turned]) for one in (self.query, self.key))
        wanted, seen = (one.to(self.queries.dtype) for one in (query_moment, key_moment))
        size = torch.einsum("hdi,de,hei->hi", self.queries.conj(), wanted, self.queries)
        self.sizes = size.real * self.weights[:, None].square()  # (heads, turned / 2)
        self.sizes = self.sizes.clamp_min(1e-12 * float(self.sizes.mean()) if self.sizes.numel() else 0.0)
        alike = torch.einsum("hdi,de,gei->ihg", self.keys, seen, self.keys.conj())
        roots = self.sizes.T.sqrt().to(alike.dtype)  # (turned / 2, heads)
        self.alike = roots[:, :, None] * alike * roots[:, None]
        self.root, self.inverse = statistics.key.square_root()
        rest = self.query[..., self.turned :]
        gram = torch.einsum("hda,de,heb->hab", rest, query_moment, rest) * self.weights[:, None, None].square()
        self.factors = self.root @ self.key[:, :-1, self.turned :] @ square_root(gram)

    def energy(self, group: Sequence[int]) -> float:
        """The share of the scores' energy that one key for all heads of a group can capture."""
        heads = list(group)
        found = torch.linalg.eigvalsh(self.alike[:, heads][:, :, heads])[:, -1].sum() if self.turned else 0.0
        rest = self.factors.shape[-1]
        found = found + (captured_energy(self.factors[heads], rest) if rest else 0.0)
        return float(found) / self.total(range(len(self.query)))

    def total(self, group: Sequence[int]) -> float:
        """Energy of the scores of some heads."""
        heads = list(group)
        turned = self.alike.diagonal(dim1=1, dim2=2).real[:, heads].sum()
        return max(float(turned + self.factors[heads].square().sum()), 1e-300)

    def shared(self, group: Sequence[int]) -> SharedKey:
        """The best key for all heads of a group, and their queries for it."""
        heads = list(group)
        query, key = self.query[heads].clone(), self.key[heads].mean(0)
        captured = 0.0
        if self.turned:
            queries, keys, captured = self._turned(heads)
            query[..., : self.turned], key[:, : self.turned] = _real(queries), _real(keys)
        if self.factors.shape[-1]:
            queries, keys, found = self._rest(heads)
            query[..., self.turned :], key[:-1, self.turned :] = queries, keys
            key[-1, self.turned :] = 0.0  # what a key's bias adds here is the same for all keys
            captured += found
        energy = self.total(heads)
        return SharedKey(query[:, :-1], query[:, -1], key[:-1], key[-1], max(energy - captured, 0.0), energy)

    def _turned(self, heads: list[int]) -> tuple[Tensor, Tensor, float]:
        """Queries (heads, query_width + 1, pairs) and the key (key_width + 1, pairs), complex; the energy captured."""
        values, vectors = torch.linalg.eigh(self.alike[:, heads][:, :, heads])
        factors = vectors[..., -1].T / self.sizes[heads].sqrt()  # u = W^(-1/2) v, (heads, pairs)
        key = torch.einsum("hi,hi,hdi->di", factors.conj(), self.sizes[heads].to(factors.dtype), self.keys[heads])
        # Of all phases, that of the head that counts most; of all sizes, the one that leaves keys as large as before.
        place = (factors.abs().square() * self.sizes[heads]).argmax(0)
        phase = factors.gather(0, place[None]).squeeze(0)
        phase = phase / phase.abs().clamp_min(1e-150)
        size = self.keys[heads].abs().square().sum(1).mean(0).sqrt()
        scale = size / key.abs().square().sum(0).sqrt().clamp_min(1e-150)
        key, factors = key * phase * scale, factors / (phase * scale).where(scale > 0, 1.0)
        return self.queries[heads] * factors.conj()[:, None], key, float(values[:, -1].sum())

    def _rest(self, heads: list[int]) -> tuple[Tensor, Tensor, float]:
        """The same for channels that are not turned, where all heads can share directions."""
        rest = self.factors.shape[-1]
        basis, error = shared_basis(self.factors[heads], rest)
        spread = basis.T @ self.root @ self.key[heads, :-1, self.turned :]  # (heads, directions, rest)
        pad = rest - basis.shape[-1]
        query = self.query[heads][..., self.turned :] @ torch.nn.functional.pad(spread, (0, 0, 0, pad)).mT
        captured = (1 - error**2) * float(self.factors[heads].square().sum())
        return query, torch.nn.functional.pad(self.inverse @ basis, (0, pad)), captured


def _with_bias(weight: Tensor, bias: Tensor, moments: Moments) -> tuple[Tensor, Tensor]:
    """Weights with their bias as the last row, (heads, width + 1, head_dim), and the second moment of [x, 1]."""
    width = moments.width
    second = torch.zeros(width + 1, width + 1, dtype=torch.float64)
    second[:width, :width] = moments.covariance + torch.outer(moments.mean, moments.mean)
    second[:width, width] = second[width, :width] = moments.mean
    second[width, width] = 1.0
    return torch.cat([weight, bias[:, None]], 1).cpu(), second


def _complex(states: Tensor) -> Tensor:
    real, imaginary = states.chunk(2, -1)
    return torch.complex(real.contiguous(), imaginary.contiguous())


def _real(states: Tensor) -> Tensor:
    return torch.cat([states.real, states.imag], -1)
