"""The host's own model behind a converted one: its blocks written out as standard attention."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel

from hf_heads.attention.hosts.blocks import Block, find_blocks
from hf_heads.attention.hosts.reading import comes_head_by_head, host_kv_heads, host_scale, host_shape, read_host
from hf_heads.attention.hosts.table import adapter_of
from hf_heads.attention.module import HeadsAttention
from hf_heads.core.dense import DenseAttention, merge_heads
from hf_heads.core.errors import HeadsError
from hf_heads.jobs.export.standard import Standard, fitted, standard
from hf_heads.modeling.classes import native_model
from hf_heads.modeling.configuration import native_entries


class Wider(HeadsError):
    """Blocks whose scores heads of the host's width cannot hold.

    Attributes:
        blocks: their names.
        width: of the host's heads.
    """

    def __init__(self, wide: Sequence[Standard], width: int) -> None:
        more = f" (and {len(wide) - 1} more blocks)" if len(wide) > 1 else ""
        super().__init__(
            f"{wide[0].name} has scores of rank {wide[0].width}, and heads of width {width} hold no more than rank "
            f"{width}{more}; --nearest takes the nearest heads and says what they lose, --portable and --onnx lose "
            "nothing"
        )
        self.blocks = [one.name for one in wide]
        self.width = width


def native_of(model: PreTrainedModel, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A converted model as one of its host's own class, with the same outputs.

    Args:
        model: of a derived class.
        dtype: of the new one.

    Raises:
        HeadsError: a block is no attention that the host has; `Wider` where wider heads would do.
    """
    parts = {block.name: standard_of(block) for block in find_blocks(model)}
    made_class, config = _class_and_config(model, list(parts.values()))
    made = made_class(config).to(dtype)
    state = model.state_dict()
    with torch.no_grad():
        written = {
            f"{path}.{kind}" for block in find_blocks(made) for path in _paths(block) for kind in ("weight", "bias")
        }
        for name, tensor in made.state_dict().items():
            if name in written:
                continue
            if name not in state or state[name].shape != tensor.shape:
                raise HeadsError(f"'{name}' belongs to the host's own heads: --native cannot write it, --portable can")
            tensor.copy_(state[name])
        _write_all(made, parts)
    if hasattr(model, "generation_config"):
        made.generation_config = copy.deepcopy(model.generation_config)
    return made.eval()


def check_sizes(model: PreTrainedModel, parts: Mapping[str, Standard]) -> None:
    """Refuse blocks that are none of a host's, before there is a model of them.

    Args:
        model: native or converted; nothing of it but its class and config counts.
        parts: its blocks as they will be, as far as their sizes go.

    Raises:
        HeadsError: see `native_of`.
    """
    made_class, config = _class_and_config(model, list(parts.values()))
    with torch.device("meta"):
        made = made_class(config)
    with torch.no_grad():
        _write_all(made, parts)


def _class_and_config(model: PreTrainedModel, parts: Sequence[Standard]) -> tuple[Any, Any]:
    """The host's own class, and a config for blocks like these."""
    config: Any = AutoConfig.for_model(adapter_of(model.config).model_type, **native_entries(model.config))
    made_class: Any = native_model(type(model))
    config.architectures = [made_class.__name__]
    if getattr(config, "qkv_bias", True) is False and any(one.dense.query_bias.any() for one in parts):
        config.qkv_bias = True
    _choose_size(made_class, config, parts)
    return made_class, config


def _write_all(made: PreTrainedModel, parts: Mapping[str, Standard]) -> None:
    for block in find_blocks(made):
        scale = host_scale(block.module, block.site)
        heads, width = block_size(block)
        _write(block, fitted(parts[block.name], heads, width, scale), parts[block.name].reads(heads))


def standard_of(block: Block) -> Standard:
    """A block, converted or the host's own, as standard attention; see `standard`."""
    if isinstance(block.module, HeadsAttention):
        return standard(block)
    dense = read_host(block.module, block.site, block.output).double()
    return Standard(block.name, dense, tuple(range(len(dense.query))))


def block_size(block: Block) -> tuple[int, int]:
    """Heads of a host's own block, and their width."""
    shape = host_shape(block.module, block.site, block.output)
    return shape.heads, shape.head_dim


def _sizes(made_class: Any, config: Any) -> set[tuple[int, int]]:
    """The sizes of all blocks that a host makes of a config; none where it makes no model of it."""
    try:
        with torch.device("meta"):
            return {block_size(block) for block in find_blocks(made_class(config))}
    except (ValueError, RuntimeError):
        return set()


def _choose_size(made_class: Any, config: Any, parts: Sequence[Standard]) -> None:
    """Have a config say how many heads there are, and how wide, where its host listens to that.

    Raises:
        Wider: heads have to be wider than the host's, whose width follows from that of the model.
    """
    sizes = _sizes(made_class, config)
    counts, needed = {len(one.places) for one in parts}, max(one.width for one in parts)
    width = min(width for _, width in sizes)
    heads = counts.pop() if len(counts) == 1 else max(heads for heads, _ in sizes)
    wanted = {(heads, max(needed, 1))}
    if heads and wanted != sizes:
        tried = copy.deepcopy(config)
        tried.num_attention_heads, tried.head_dim = heads, needed
        _share_keys(tried, parts, heads)
        if _sizes(made_class, tried) == wanted:
            config.num_attention_heads, config.head_dim = heads, needed
            _share_keys(config, parts, heads)
            return
    _share_keys(config, parts, max(heads for heads, _ in sizes))
    if wide := [one for one in parts if one.width > width]:
        raise Wider(wide, width)


def _share_keys(config: Any, parts: Sequence[Standard], heads: int) -> None:
    """Have a config say how few key and value heads will do for so many heads, where its host listens to that."""
    names = {(site.kv_heads or "").removeprefix("config.") for site in adapter_of(config).sites}
    if (name := names.pop()) and hasattr(config, name):
        setattr(config, name, _fewest([one.reads(heads) for one in parts], heads))


def _fewest(reads: Sequence[Sequence[int | None]], heads: int) -> int:
    """The smallest number of key and value heads, each read by as many neighbours, that says what each head reads."""
    for count in range(1, heads):
        chunks = [one[first : first + heads // count] for one in reads for first in range(0, heads, heads // count)]
        if heads % count == 0 and all(len({*chunk} - {None}) < 2 for chunk in chunks):
            return count
    return heads


def _paths(block: Block) -> list[str]:
    """Where a host's own block has the projections that are written anew."""
    return [*(f"{block.path}.{name}" for name in block.site.projections), block.output_path]


def _write(block: Block, dense: DenseAttention, reads: Sequence[int | None]) -> None:
    """The weights of a host's own block.

    Args:
        dense: of the host's number of heads.
        reads: which key and value head each of them reads.

    Raises:
        HeadsError: the host has no bias where there has to be one, or its heads share keys and values otherwise.
    """
    module, site = block.module, block.site
    has = host_shape(module, site, block.output).biases
    shift = torch.zeros_like(dense.output_bias)
    if not has.value:
        # Weights of attention sum to one, so that a value's bias is one of the output.
        shift = torch.einsum("he,hed->d", dense.value_bias, dense.output)
    if (not has.query and dense.query_bias.any()) or (not has.output and (dense.output_bias + shift).any()):
        raise HeadsError(f"{block.name} needs a bias that its host does not have; --portable loses nothing")
    heads = len(dense.query)
    readers = _readers(block.name, reads, host_kv_heads(module, site) or heads)
    weights = [merge_heads(one) for one in (dense.query, dense.key[readers], dense.value[readers])]
    biases = [one.flatten() for one in (dense.query_bias, dense.key_bias[readers], dense.value_bias[readers])]
    if site.fused is None:
        for name, weight, bias in zip(site.projections, weights, biases, strict=True):
            _fill(getattr(module, name), weight, bias)
    else:
        joined = [_joined(parts, heads if comes_head_by_head(module, site) else 1) for parts in (weights, biases)]
        _fill(getattr(module, site.fused), *joined)
    _fill(block.output, dense.output.flatten(0, 1).T, dense.output_bias + shift)


def _readers(name: str, reads: Sequence[int | None], count: int) -> list[int]:
    """A head that reads each of a host's key and value heads.

    Raises:
        HeadsError: heads that read one of the host's read several here.
    """
    each = len(reads) // count
    if count < _fewest([reads], len(reads)) or count % _fewest([reads], len(reads)):
        raise HeadsError(f"{name}: the host's {count} key and value heads are too few; --portable loses nothing")
    chunks = [range(first, first + each) for first in range(0, len(reads), each)]
    return [next((head for head in chunk if reads[head] is not None), chunk[0]) for chunk in chunks]


def _joined(parts: Sequence[Tensor], groups: int) -> Tensor:
    """Rows of queries, keys and values as one projection has them: all of each, or head by head."""
    return torch.cat([one.unflatten(0, (groups, -1)) for one in parts], 1).flatten(0, 1)


def _fill(module: Any, weight: Tensor, bias: Tensor) -> None:
    """A Linear, or a Conv1D, whose weight is transposed; a bias only where it has one."""
    module.weight.copy_(weight if isinstance(module, nn.Linear) else weight.T)
    if module.bias is not None:
        module.bias.copy_(bias)
