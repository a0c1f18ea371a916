"""Values that several heads can share, or that are narrower than the host's: tensors in, tensors out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from hf_heads.core.decompositions import shared_basis
from hf_heads.core.dense import DenseAttention
from hf_heads.core.statistics import BlockStatistics, Moments


class NarrowValues(NamedTuple):
    """Values of groups of heads, in the order of the groups.

    Attributes:
        value: (groups, key_width, width)
        value_bias: (groups, width)
        output: (heads, width, output_width), of the heads of the first group first.
        output_bias: (output_width,)
        error: relative, of the value-output maps on the data.
    """

    value: Tensor
    value_bias: Tensor
    output: Tensor
    output_bias: Tensor
    error: float


def square_root(matrices: Tensor) -> Tensor:
    """Symmetric square roots of positive semi-definite matrices (..., n, n)."""
    values, vectors = torch.linalg.eigh(matrices)
    return (vectors * values.clamp_min(0).sqrt()[..., None, :]) @ vectors.mT


class ValueMaps:
    """What the data says of a block's value-output maps V_h O_h, in float64.

    Rows of attention sum to one, so that the mean token's value is a constant. Where the output has a bias, it takes
    that; where only values have one, it is a row of V_h for a token [y, 1]; where neither has, the mean is as much to
    be kept as all else.

    Attributes:
        factors: S V_h (O_h O_h^T)^(1/2), (heads, key_width or one more, value_dim), S the root of the moments of y.
    """

    def __init__(self, dense: DenseAttention, statistics: BlockStatistics) -> None:
        self.dense, self.mean = dense.double(), statistics.key.mean
        self.value, self.output = self.dense.value.cpu(), self.dense.output.cpu()
        self.centred = dense.biases.output
        self.with_one = dense.biases.value and not self.centred
        if self.with_one:
            self.value = torch.cat([self.value, self.dense.value_bias.cpu()[:, None]], 1)
            self.root, self.inverse = _root_with_one(statistics.key)
        else:
            self.root, self.inverse = statistics.key.square_root(centred=self.centred)
        self.factors = self.root @ self.value @ square_root(self.output @ self.output.mT)

    def narrowed(self, groups: Sequence[Sequence[int]], width: int) -> NarrowValues:
        """For each group of heads, the directions that its heads' value-output maps read most from the data.

        Args:
            groups: heads by group; a head is in one.
            width: of the new values.
        """
        values, outputs, lost, whole = [], [], 0.0, 0.0
        for group in groups:
            heads = list(group)
            basis, error = shared_basis(self.factors[heads], width)
            basis = torch.nn.functional.pad(basis, (0, width - basis.shape[-1]))
            energy = float(self.factors[heads].square().sum())
            lost, whole = lost + error**2 * energy, whole + energy
            values.append(self.inverse @ basis)
            outputs.append(basis.T @ (self.root @ self.value[heads] @ self.output[heads]))
        value, output = torch.stack(values), torch.cat(outputs)
        bias = value.new_zeros(len(value), width)
        if self.with_one:
            value, bias = value[:, :-1], value[:, -1]
        error = (lost / max(whole, 1e-300)) ** 0.5
        return NarrowValues(value, bias, output, self._output_bias(value, output, groups), error)

    def _output_bias(self, value: Tensor, output: Tensor, groups: Sequence[Sequence[int]]) -> Tensor:
        before = self.dense.output_bias.cpu()
        if not self.centred:
            return before
        exact = torch.einsum("d,hde->he", self.mean, self.value) + self.dense.value_bias.cpu()
        sizes = torch.tensor([len(group) for group in groups])
        kept = (self.mean @ value).repeat_interleave(sizes, 0)
        return before + torch.einsum("he,hed->d", exact, self.output) - torch.einsum("he,hed->d", kept, output)


def _root_with_one(moments: Moments, ridge: float = 1e-3) -> tuple[Tensor, Tensor]:
    """The whitening pair of [y, 1], symmetric; as `Moments.square_root`, the ridge on y alone."""
    width = moments.width
    second = torch.zeros(width + 1, width + 1, dtype=torch.float64)
    second[:width, :width] = moments.covariance + torch.outer(moments.mean, moments.mean)
    second.diagonal()[:width] += ridge * second.diagonal()[:width].mean().clamp_min(1e-12)
    second[:width, width] = second[width, :width] = moments.mean
    second[width, width] = 1.0
    values, vectors = torch.linalg.eigh(second)
    roots = values.clamp_min(1e-300).sqrt()
    return (vectors * roots) @ vectors.T, (vectors / roots) @ vectors.T
