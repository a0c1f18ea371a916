"""A host's own attention module as a neutral record."""

from __future__ import annotations

from torch import Tensor, nn

from hf_heads.attention.hosts.table import AttentionSite
from hf_heads.core.dense import AttentionShape, DenseAttention, split_heads


def host_heads(module: nn.Module, site: AttentionSite) -> int:
    """The number of heads of a host's own attention module."""
    return int(getattr(module, site.heads))


def host_shape(module: nn.Module, site: AttentionSite, output: nn.Linear) -> AttentionShape:
    """The sizes of a host's own attention module."""
    query, key, value = (getattr(module, name) for name in (site.query, site.key, site.value))
    heads = host_heads(module, site)
    return AttentionShape(
        heads,
        query.in_features,
        key.in_features,
        query.out_features // heads,
        value.out_features // heads,
        output.out_features,
        query.bias is not None,
    )


def read_value_output(value: nn.Linear, output: nn.Linear, heads: int) -> dict[str, Tensor]:
    """The value side of a `DenseAttention` from the two projections that hosts and methods keep alike."""
    value_bias = value.weight.new_zeros(value.out_features) if value.bias is None else value.bias
    return {
        "value": split_heads(value.weight.detach(), heads),
        "value_bias": value_bias.detach().view(heads, -1),
        **read_output(output, heads),
    }


def read_output(output: nn.Linear, heads: int) -> dict[str, Tensor]:
    """The output projection as a `DenseAttention` holds it."""
    bias = output.weight.new_zeros(output.out_features) if output.bias is None else output.bias
    return {
        "output": output.weight.detach().T.reshape(heads, -1, output.out_features),
        "output_bias": bias.detach(),
    }


def read_host(module: nn.Module, site: AttentionSite, output: nn.Linear) -> DenseAttention:
    """The weights of a host's own attention module as a neutral record (views where possible)."""
    return read_projections(module, site, output, host_shape(module, site, output), float(module.scaling))  # type: ignore[arg-type]


def read_projections(
    module: nn.Module, site: AttentionSite, output: nn.Linear, shape: AttentionShape, scale: float
) -> DenseAttention:
    """The weights of a module with the host's three projections, for so many heads as `shape` says."""
    query, key = getattr(module, site.query), getattr(module, site.key)
    zeros = query.weight.new_zeros(shape.heads, shape.head_dim)
    return DenseAttention(
        query=split_heads(query.weight.detach(), shape.heads),
        key=split_heads(key.weight.detach(), shape.heads),
        query_bias=zeros if query.bias is None else query.bias.detach().view(shape.heads, -1),
        key_bias=zeros if key.bias is None else key.bias.detach().view(shape.heads, -1),
        content_bias=query.weight.new_zeros(shape.heads, shape.key_width),
        scale=scale,
        bias=shape.bias,
        **read_value_output(getattr(module, site.value), output, shape.heads),
    )
