"""Converted blocks as standard attention, of the host's number of heads and width: exactly, or refused."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from hf_heads.attention.hosts.blocks import Block
from hf_heads.attention.module import HeadsAttention
from hf_heads.core.dense import DenseAttention
from hf_heads.core.errors import HeadsError

_ZERO = 1e-12  # singular values below this share of the largest are rounding of float64


@dataclass(frozen=True)
class Standard:
    """A converted block as standard attention, of its own number of heads and width.

    Attributes:
        name: the block's.
        dense: its weights in float64, with no content bias.
        places: which of the host's heads each head is.
    """

    name: str
    dense: DenseAttention
    places: tuple[int, ...]

    def places_among(self, heads: int) -> Sequence[int]:
        """Where its heads go among so many of a host, at least its own number."""
        return self.places if heads > len(self.places) else range(heads)

    def reads(self, heads: int) -> list[int | None]:
        """Which key and value head each of so many heads of a host reads; None of those that it does not have."""
        shared = self.dense.shared or range(len(self.places))
        found: list[int | None] = [None] * heads
        for place, read in zip(self.places_among(heads), shared, strict=True):
            found[place] = read
        return found

    @property
    def width(self) -> int:
        """What its heads take: the width of queries and keys, or of values."""
        return max(self.dense.query.shape[-1], self.dense.value.shape[-1]) if self.places else 0


def standard(block: Block) -> Standard:
    """A converted block as standard attention, with heads as wide as its scores ask for.

    Raises:
        HeadsError: its method is no standard attention at any width.
    """
    module = block.module
    assert isinstance(module, HeadsAttention)
    try:
        # In float64 from the start: products of weights would be rounded in float32.
        dense = copy.deepcopy(module).double().to_dense(copy.deepcopy(block.output).double())
    except HeadsError as error:
        raise HeadsError(f"{block.name}: {error}; --portable and --onnx take every method") from None
    kept = getattr(module.spec, "kept", None)
    places = tuple(range(len(dense.query))) if kept is None else tuple(kept)
    return Standard(block.name, narrowed(dense), places)


def narrowed(dense: DenseAttention) -> DenseAttention:
    """The same scores with queries and keys as narrow as they can be, a content bias among the query's bias.

    Scores are [x, 1] M_h y^T with M_h = A_h B_h^T, whose singular vectors are the narrow queries and keys. Those that
    positions turn stay as wide as the host's.
    """
    wide = dense.query.shape[-1] > dense.value.shape[-1]
    if dense.turned or not len(dense.query) or not (dense.content_bias.any() or wide):
        return dense
    heads = len(dense.query)
    shift = torch.cat([dense.scale * dense.query_bias, dense.query.new_ones(heads, 1)], 1)
    query = torch.cat([dense.scale * dense.query, dense.query.new_zeros(heads, dense.query.shape[1], 1)], 2)
    query = torch.cat([query, shift[:, None]], 1)  # (heads, query_width + 1, width + 1)
    key = torch.cat([dense.key, dense.content_bias[..., None]], 2)  # (heads, key_width, width + 1)
    factors = [_factors(*pair) for pair in zip(query, key, strict=True)]
    rank = max(one.shape[1] for one, _ in factors)
    query, key = (torch.stack([_widened(one, rank) for one in side]) for side in zip(*factors, strict=True))
    return replace(
        dense,
        query=query[:, :-1] / dense.scale,
        query_bias=query[:, -1] / dense.scale,
        key=key,
        key_bias=key.new_zeros(heads, rank),
        content_bias=torch.zeros_like(dense.content_bias),
    )


def _factors(query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """A B^T as U V^T with as few columns as there are singular values, halved between both."""
    (left, core_left), (right, core_right) = torch.linalg.qr(query), torch.linalg.qr(key)
    u, values, v = torch.linalg.svd(core_left @ core_right.T)
    rank = int((values > _ZERO * values[0]).sum())
    root = values[:rank].sqrt()
    return left @ u[:, :rank] * root, right @ v[:rank].T * root


def _widened(matrix: Tensor, width: int) -> Tensor:
    return nn.functional.pad(matrix, (0, width - matrix.shape[-1]))


def fitted(block: Standard, heads: int, width: int, scale: float) -> DenseAttention:
    """A block with so many heads of such a width, at least its own; those that it does not have are zero.

    Args:
        block: with no more heads, and none that is wider.
        heads, width: of the host.
        scale: the host's factor on the scores.
    """
    dense = block.dense
    factor = dense.scale / scale
    wide = {
        "query": _widened(dense.query, width) * factor,
        "query_bias": _widened(dense.query_bias, width) * factor,
        "key": _widened(dense.key, width),
        "key_bias": _widened(dense.key_bias, width),
        "value": _widened(dense.value, width),
        "value_bias": _widened(dense.value_bias, width),
        "output": _widened(dense.output.mT, width).mT,
        "content_bias": dense.content_bias,
    }
    placed: dict[str, Any] = {name: _placed(part, block.places_among(heads), heads) for name, part in wide.items()}
    return replace(dense, scale=scale, **placed)


def _placed(parts: Tensor, places: Sequence[int], heads: int) -> Tensor:
    """(heads that there are, ...) among so many heads, at their places."""
    found = parts.new_zeros(heads, *parts.shape[1:])
    found[list(places)] = parts
    return found
