"""What the data says about a block's inputs: first and second moments, streamed in float64."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from hf_heads.core.dense import AttentionShape


@dataclass
class Moments:
    """Count, sum and sum of outer products of row vectors that come in batches.

    Attributes:
        width: width of the vectors.
        weight: how many vectors (or how much weight) came in so far.
        total: (width,) sum of the vectors.
        outer: (width, width) sum of their outer products.
    """

    width: int
    weight: float = 0.0
    total: Tensor = field(init=False)
    outer: Tensor = field(init=False)
    _roots: dict[tuple[float, bool], tuple[Tensor, Tensor]] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.total = torch.zeros(self.width, dtype=torch.float64)
        self.outer = torch.zeros(1, 1, dtype=torch.float64).expand(self.width, self.width)  # takes no memory

    def update(self, rows: Tensor) -> None:
        """Take in vectors of shape (count, width), in any precision and from any device."""
        self._roots.clear()
        rows = rows.double()
        self.weight += rows.shape[0]
        self.total += rows.sum(0).cpu()
        self.outer = (rows.T @ rows).cpu().add_(self.outer)

    @property
    def mean(self) -> Tensor:
        """(width,) the mean; zero before any vector came in."""
        return self.total / max(self.weight, 1.0)

    @property
    def covariance(self) -> Tensor:
        """(width, width) the centred covariance; the identity before any vector came in."""
        if not self.weight:
            return torch.eye(self.width, dtype=torch.float64)
        return self.outer / self.weight - torch.outer(self.mean, self.mean)

    def square_root(self, ridge: float = 1e-3, centred: bool = True) -> tuple[Tensor, Tensor]:
        """The whitening pair S = (C + ridge * tr(C) / width * I) ** 0.5 and its inverse, symmetric.

        C is the covariance, or the second moment about zero where not `centred`.

        After a LayerNorm the covariance C is singular, so the ridge is needed.
        """
        if (ridge, centred) not in self._roots:
            covariance = self.covariance
            if not centred:
                covariance = covariance + torch.outer(self.mean, self.mean)
            shift = ridge * covariance.diagonal().mean().clamp_min(1e-12)
            values, vectors = torch.linalg.eigh(covariance)
            roots = (values.clamp_min(0) + shift).sqrt()
            self._roots[ridge, centred] = (vectors * roots) @ vectors.T, (vectors / roots) @ vectors.T
        return self._roots[ridge, centred]


@dataclass
class BlockStatistics:
    """What a conversion wants to know about the inputs of one attention block.

    Attributes:
        query: moments of the query-side inputs.
        key: moments of the key-side inputs (the same data as `query` but for cross-attention).
        head_energy: (heads,) mean over queries of sum_j p_ij |(v_j - v_i) O_h|^2, where v_i is the mean value under
            the attention p_i: how far the head's attention can move the block's output. None: unknown.
        attention_gram: (heads, heads) mean over queries of sum_j p_ij^h p_ij^g: whose attention is alike.
        log_sums: (heads,) mean over queries of the logarithm of softmax's denominator.
        log_sum_cross: (query_width, heads) covariance of the query-side inputs with these logarithms.
    """

    query: Moments
    key: Moments
    head_energy: Tensor | None = None
    attention_gram: Tensor | None = None
    log_sums: Tensor | None = None
    log_sum_cross: Tensor | None = None

    @classmethod
    def uninformed(cls, shape: AttentionShape) -> BlockStatistics:
        """Statistics that know nothing: zero mean, identity covariance, equal heads."""
        return cls(Moments(shape.query_width), Moments(shape.key_width))

    @property
    def head_weights(self) -> Tensor | None:
        """(heads,) square roots of the head energies relative to their mean, which is bounded below at 2 %."""
        if self.head_energy is None:
            return None
        relative = self.head_energy / self.head_energy.mean().clamp_min(1e-30)
        return relative.clamp_min(0.02).sqrt()
