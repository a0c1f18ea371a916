"""A host's own attention module as a neutral record."""

from __future__ import annotations

import inspect
from itertools import zip_longest
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hf_heads.attention.hosts.parts import hook, named, norms_heads, turned_width
from hf_heads.attention.hosts.sites import AttentionSite
from hf_heads.core.dense import AttentionShape, Biases, DenseAttention, split_heads


class Projection(NamedTuple):
    """A linear map, whatever the host's class for it.

    Attributes:
        weight: (outputs, inputs)
        bias: (outputs,) or None.
    """

    weight: Tensor
    bias: Tensor | None

    @classmethod
    def of(cls, module: Any) -> Projection:
        """The map of a Linear, or of a Conv1D, whose weight is transposed."""
        weight = module.weight if isinstance(module, nn.Linear) else module.weight.mT
        return cls(weight, module.bias)

    def filled_bias(self) -> Tensor:
        """The bias, zeros where there is none."""
        return self.weight.new_zeros(len(self.weight)) if self.bias is None else self.bias


def argument_names(kind: type[nn.Module]) -> tuple[str, ...]:
    """What a module's forward calls the arguments that may come by position."""
    parameters = list(inspect.signature(kind.forward).parameters.values())[1:]
    return tuple(one.name for one in parameters if one.kind is one.POSITIONAL_OR_KEYWORD)


def host_heads(module: nn.Module, site: AttentionSite) -> int:
    """The number of heads of a host's own attention module."""
    return int(attrgetter(site.heads)(module))


def host_kv_heads(module: nn.Module, site: AttentionSite) -> int | None:
    """The number of heads of keys and values; None where every query head has its own."""
    found = None if site.kv_heads is None else int(attrgetter(site.kv_heads)(module))
    return None if found == host_heads(module, site) else found


def host_scale(module: nn.Module, site: AttentionSite) -> float:
    """The factor on the scores in a host's own attention module."""
    scale = named(site.scale)
    return float(attrgetter(site.scale)(module) if scale is None else scale(module))  # type: ignore[arg-type]


def comes_head_by_head(module: nn.Module, site: AttentionSite) -> bool:
    """Whether a fused projection makes queries, keys and values head by head."""
    return site.interleaved is True or bool(site.interleaved and hook(site.interleaved)(module))


def host_projections(module: nn.Module, site: AttentionSite) -> tuple[Projection, Projection, Projection]:
    """Queries, keys and values of a module with the host's own projections, be they one or three (views)."""
    if site.fused is None:
        query, key, value = (Projection.of(getattr(module, name)) for name in site.projections)
        return query, key, value
    weight, bias = Projection.of(getattr(module, site.fused))
    heads = host_heads(module, site)
    kv_heads = host_kv_heads(module, site) or heads
    width = len(weight) // (heads + 2 * kv_heads)
    if comes_head_by_head(module, site):
        weights = [one.flatten(0, 1) for one in weight.view(heads, 3, width, -1).unbind(1)]
        shifts = [] if bias is None else [one.flatten() for one in bias.view(heads, 3, width).unbind(1)]
    else:
        sizes = [heads * width, kv_heads * width, kv_heads * width]
        weights, shifts = list(weight.split(sizes)), [] if bias is None else list(bias.split(sizes))
    query, key, value = (Projection(*one) for one in zip_longest(weights, shifts))
    return query, key, value


def host_shape(module: nn.Module, site: AttentionSite, output: nn.Module) -> AttentionShape:
    """The sizes of a host's own attention module."""
    query, key, value = host_projections(module, site)
    out = Projection.of(output)
    heads, kv_heads = host_heads(module, site), host_kv_heads(module, site)
    biases = Biases(*(one.bias is not None for one in (query, key, value, out)))
    head_dim = len(query.weight) // heads
    return AttentionShape(
        heads,
        query.weight.shape[1],
        key.weight.shape[1],
        head_dim,
        len(value.weight) // (kv_heads or heads),
        len(out.weight),
        biases,
        kv_heads,
        0 if site.encode is None else turned_width(module, head_dim),
        site.encode is not None and norms_heads(module),
    )


def even_groups(heads: int, kv_heads: int) -> tuple[int, ...]:
    """Which key and value head each query head reads in a host: neighbours share, in groups of equal size."""
    return tuple(head * kv_heads // heads for head in range(heads))


def read_value_output(value: nn.Linear, output: nn.Module, heads: int) -> dict[str, Any]:
    """The value side of a `DenseAttention` from the two projections that hosts and methods keep alike."""
    found = Projection.of(value)
    return {
        "value": split_heads(found.weight.detach(), heads),
        "value_bias": found.filled_bias().detach().view(heads, -1),
        **read_output(output, heads),
    }


def read_output(output: nn.Module, heads: int) -> dict[str, Any]:
    """The output projection as a `DenseAttention` holds it."""
    found = Projection.of(output)
    return {
        "output": found.weight.detach().T.reshape(heads, -1, len(found.weight)),
        "output_bias": found.filled_bias().detach(),
    }


def read_host(module: nn.Module, site: AttentionSite, output: nn.Module) -> DenseAttention:
    """The weights of a host's own attention module as a neutral record (views where possible)."""
    shape = host_shape(module, site, output)
    shared = None if shape.kv_heads is None else even_groups(shape.heads, shape.kv_heads)
    return read_projections(host_projections(module, site), output, shape, host_scale(module, site), shared)


def read_projections(
    projections: tuple[Projection, Projection, Projection],
    output: nn.Module,
    shape: AttentionShape,
    scale: float,
    shared: tuple[int, ...] | None = None,
) -> DenseAttention:
    """Three projections as a neutral record, for so many heads as `shape` says.

    Args:
        shared: which key and value head each query head reads; None: each its own.
    """
    found: dict[str, Tensor] = {}
    for name, one in zip(("query", "key", "value"), projections, strict=True):
        heads = shape.heads if name == "query" else shape.memory_heads
        weight, bias = split_heads(one.weight.detach(), heads), one.filled_bias().detach().view(heads, -1)
        if shared is not None and name != "query":
            index = torch.tensor(shared, device=weight.device)
            weight, bias = weight[index], bias[index]
        found |= {name: weight, f"{name}_bias": bias}
    content_bias = found["query"].new_zeros(shape.heads, shape.key_width)
    parts: dict[str, Any] = {**found, **read_output(output, shape.heads), "content_bias": content_bias}
    parts |= {"biases": shape.biases, "turned": shape.turned, "normed": shape.normed}
    return DenseAttention(**parts, scale=scale, shared=shared)
