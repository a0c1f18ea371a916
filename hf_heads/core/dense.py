"""The neutral record of one attention block: per-head weights, whatever architecture they came from."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import torch
from torch import Tensor

from hf_heads.core.errors import HeadsError


def split_heads(weight: Tensor, heads: int) -> Tensor:
    """(heads * head_dim, width) of a Linear as (heads, width, head_dim)."""
    return weight.view(heads, -1, weight.shape[1]).transpose(1, 2)


def merge_heads(weight: Tensor) -> Tensor:
    """The inverse of `split_heads`: (heads, width, head_dim) as the weight of a Linear."""
    return weight.transpose(1, 2).reshape(-1, weight.shape[1])


class Biases(NamedTuple):
    """Which of a block's four projections carry a bias."""

    query: bool = True
    key: bool = True
    value: bool = True
    output: bool = True


ALL_BIASES = Biases()


@dataclass(frozen=True)
class AttentionShape:
    """The sizes of one attention block.

    Attributes:
        heads: number of heads H.
        query_width: width D_q of the inputs that are turned into queries.
        key_width: width D_k of the inputs that are turned into keys and values (D_q but for cross-attention).
        head_dim: width of one head's query and key.
        value_dim: width of one head's value.
        output_width: width of the block's output.
        biases: which projections carry biases.
        kv_heads: number of key and value heads, where several query heads read one; None where each has its own.
        turned: how many of the first channels of queries and keys are turned by their positions after projection, in
            pairs (i, i + turned / 2).
        normed: queries and keys go through a norm of every head before that.
    """

    heads: int
    query_width: int
    key_width: int
    head_dim: int
    value_dim: int
    output_width: int
    biases: Biases = ALL_BIASES
    kv_heads: int | None = None
    turned: int = 0
    normed: bool = False

    @property
    def memory_heads(self) -> int:
        """Number of heads of keys and values."""
        return self.heads if self.kv_heads is None else self.kv_heads

    @property
    def parameters(self) -> int:
        """Parameters of the standard multi-head block of this shape, output projection and biases included."""
        query = self.heads * self.head_dim * (self.query_width + self.biases.query)
        key = self.memory_heads * self.head_dim * (self.key_width + self.biases.key)
        return query + key + self.value_parameters

    @property
    def value_parameters(self) -> int:
        """Parameters of the value and output projections alone."""
        value = self.memory_heads * self.value_dim * (self.key_width + self.biases.value)
        return value + self.output_parameters

    @property
    def output_parameters(self) -> int:
        """Parameters of the output projection."""
        return self.output_width * (self.heads * self.value_dim + self.biases.output)

    @property
    def cache_per_token(self) -> int:
        """Numbers that the standard block keeps per token in a key-value cache."""
        return self.memory_heads * (self.head_dim + self.value_dim)


@dataclass(frozen=True)
class DenseAttention:
    """Weights of one standard attention block, split by head.

    Attributes:
        query: (heads, query_width, head_dim)
        key: (heads, key_width, head_dim)
        value: (heads, key_width, value_dim)
        output: (heads, value_dim, output_width)
        query_bias: (heads, head_dim)
        key_bias: (heads, head_dim); it adds the same amount to all scores of a row, so softmax drops it.
        value_bias: (heads, value_dim)
        output_bias: (output_width,)
        content_bias: (heads, key_width): an additional score y c_h, zero in a standard block.
        scale: the factor on the scores, head_dim ** -0.5 in a standard block.
        biases: which of the block's projections carry biases; those of the others are zero.
        shared: which key and value head each query head reads, where several read one; None: each its own. `key` and
            `value` hold a matrix for each query head all the same.
        turned, normed: as in `AttentionShape`.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    output: Tensor
    query_bias: Tensor
    key_bias: Tensor
    value_bias: Tensor
    output_bias: Tensor
    content_bias: Tensor
    scale: float
    biases: Biases = ALL_BIASES
    shared: tuple[int, ...] | None = None
    turned: int = 0
    normed: bool = False

    def __post_init__(self) -> None:
        heads, _, head_dim = self.query.shape
        key_width, value_dim, width = self.key.shape[1], self.value.shape[2], self.output.shape[2]
        expected = {
            "key": (heads, key_width, head_dim),
            "value": (heads, key_width, value_dim),
            "output": (heads, value_dim, width),
            "query_bias": (heads, head_dim),
            "key_bias": (heads, head_dim),
            "value_bias": (heads, value_dim),
            "output_bias": (width,),
            "content_bias": (heads, key_width),
        }
        for name, shape in expected.items():
            if tuple(getattr(self, name).shape) != shape:
                raise HeadsError(f"{name} has shape {tuple(getattr(self, name).shape)}, expected {shape}")

    @classmethod
    def empty(cls, shape: AttentionShape, output_bias: Tensor, scale: float) -> DenseAttention:
        """A block whose heads are all gone: its output is the bias (output_width,)."""
        query = output_bias.new_zeros(0, shape.query_width, shape.head_dim)
        key = output_bias.new_zeros(0, shape.key_width, shape.head_dim)
        value = output_bias.new_zeros(0, shape.key_width, shape.value_dim)
        output = output_bias.new_zeros(0, shape.value_dim, shape.output_width)
        biases = query[:, 0], query[:, 0], value[:, 0]
        more = {"biases": shape.biases, "turned": shape.turned, "normed": shape.normed}
        return cls(query, key, value, output, *biases, output_bias, key[:, :, 0], scale, **more)  # type: ignore[arg-type]

    @property
    def shape(self) -> AttentionShape:
        """The block's sizes."""
        heads, query_width, head_dim = self.query.shape
        key_width, value_dim, output_width = self.key.shape[1], self.value.shape[2], self.output.shape[2]
        kv_heads = None if self.shared is None else len(set(self.shared))
        widths = query_width, key_width, head_dim, value_dim, output_width
        return AttentionShape(heads, *widths, self.biases, kv_heads, self.turned, self.normed)

    def double(self) -> DenseAttention:
        """The same weights in float64 on the same device."""
        tensors = {
            item.name: value.double() for item in fields(self) if isinstance(value := getattr(self, item.name), Tensor)
        }
        return replace(self, **tensors)  # type: ignore[arg-type]

    def finite(self) -> bool:
        """Whether no weight is NaN or infinite."""
        values = (getattr(self, field.name) for field in fields(self))
        return all(bool(torch.isfinite(value).all()) for value in values if isinstance(value, Tensor))

    def scores(self, query_inputs: Tensor, key_inputs: Tensor) -> Tensor:
        """Attention scores before mask and softmax.

        Args:
            query_inputs: (batch, target, query_width)
            key_inputs: (batch, source, key_width)

        Returns:
            (batch, heads, target, source); terms that are constant along a row are left out.
        """
        query = torch.einsum("btd,hde->bhte", query_inputs, self.query) + self.query_bias[:, None]
        key = torch.einsum("bsd,hde->bhse", key_inputs, self.key)
        content = torch.einsum("bsd,hd->bhs", key_inputs, self.content_bias)
        return (self.scale * query @ key.mT).add_(content[:, :, None])

    def values(self, key_inputs: Tensor) -> Tensor:
        """Values of every head, (batch, heads, source, value_dim), from (batch, source, key_width)."""
        return torch.einsum("bsd,hde->bhse", key_inputs, self.value) + self.value_bias[:, None]
