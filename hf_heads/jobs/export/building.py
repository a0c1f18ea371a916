"""The host's own model behind a converted one: its blocks written out as standard attention."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel

from hf_heads.attention.hosts.blocks import Block, find_blocks
from hf_heads.attention.hosts.reading import host_shape, read_host
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
    blocks = find_blocks(model)
    parts = {block.name: _standard(block) for block in blocks}
    config: Any = AutoConfig.for_model(adapter_of(model.config).model_type, **native_entries(model.config))
    made_class: Any = native_model(type(model))
    config.architectures = [made_class.__name__]
    if getattr(config, "qkv_bias", True) is False and any(one.dense.query_bias.any() for one in parts.values()):
        config.qkv_bias = True
    _choose_size(made_class, config, list(parts.values()))
    made = made_class(config).to(dtype)
    state = model.state_dict()
    inside = tuple(f"{path}." for block in blocks for path in (block.path, block.output_path))
    with torch.no_grad():
        for name, tensor in made.state_dict().items():
            if not name.startswith(inside):
                tensor.copy_(state[name])
        for block in find_blocks(made):
            _write(block, fitted(parts[block.name], *block_size(block), float(block.module.scaling)))  # type: ignore[arg-type]
    if hasattr(model, "generation_config"):
        made.generation_config = copy.deepcopy(model.generation_config)
    return made.eval()


def _standard(block: Block) -> Standard:
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
        if _sizes(made_class, tried) == wanted:
            config.num_attention_heads, config.head_dim = heads, needed
            return
    if wide := [one for one in parts if one.width > width]:
        raise Wider(wide, width)


def _write(block: Block, dense: DenseAttention) -> None:
    """The weights of a host's own block.

    Raises:
        HeadsError: the host has no bias where there has to be one.
    """
    if (value := getattr(block.module, block.site.value)).bias is None:
        # Weights of attention sum to one, so that a value's bias is one of the output.
        shift = torch.einsum("he,hed->d", dense.value_bias, dense.output)
    else:
        shift = torch.zeros_like(dense.output_bias)
        value.bias.copy_(dense.value_bias.flatten())
    value.weight.copy_(merge_heads(dense.value))
    key = getattr(block.module, block.site.key)
    key.weight.copy_(merge_heads(dense.key))
    if key.bias is not None:  # else softmax drops it
        key.bias.copy_(dense.key_bias.flatten())
    query = getattr(block.module, block.site.query)
    query.weight.copy_(merge_heads(dense.query))
    _write_bias(block, query, dense.query_bias.flatten())
    block.output.weight.copy_(dense.output.flatten(0, 1).T)
    _write_bias(block, block.output, dense.output_bias + shift)


def _write_bias(block: Block, module: nn.Linear, bias: Tensor) -> None:
    if module.bias is not None:
        module.bias.copy_(bias)
    elif bias.any():
        raise HeadsError(f"{block.name} needs a bias that its host does not have; --portable loses nothing")
