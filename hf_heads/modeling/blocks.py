"""Attention blocks of a model, be they the host's own or converted: weights, sizes, settings."""

from __future__ import annotations

import copy

from transformers import PreTrainedModel

from hf_heads.attention.hosts.blocks import Block, find_blocks
from hf_heads.attention.hosts.reading import host_shape, read_host
from hf_heads.attention.module import HeadsAttention
from hf_heads.attention.spec import HeadsSpec
from hf_heads.core.dense import AttentionShape, DenseAttention
from hf_heads.modeling.configuration import HeadsConfig


def share_weights(model: PreTrainedModel) -> PreTrainedModel:
    """A second model of the same structure over the same tensors: changing modules of one leaves the other alone."""
    shared = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
    return copy.deepcopy(model, shared)


def read_block(block: Block) -> DenseAttention:
    """The weights of a block as a neutral record, be it the host's own or converted before."""
    if isinstance(block.module, HeadsAttention):
        return block.module.to_dense(block.output)
    return read_host(block.module, block.site, block.output)


def block_shape(block: Block) -> AttentionShape:
    """The sizes of a block, be it the host's own or converted before; `heads` is what it has now."""
    if isinstance(block.module, HeadsAttention):
        return block.module.shape
    return host_shape(block.module, block.site, block.output)


def block_size(block: Block) -> tuple[int, int]:
    """Parameters of a block, output projection included, and the numbers that it caches per token."""
    shape = block_shape(block)
    if isinstance(block.module, HeadsAttention):
        return block.module.spec.parameters(shape), block.module.spec.cache_per_token(shape)
    return shape.parameters, shape.cache_per_token


def beside(block: Block) -> set[str]:
    """Names, inside the block, of the parameters that no method replaces: norms, tables of positions."""
    ours = {*block.site.projections, block.site.query, block.site.key, block.site.value, block.site.output}
    own = block.module.kept if isinstance(block.module, HeadsAttention) else dict(block.module.named_children())
    return {
        f"{name}.{inner}" for name in own if name not in ours for inner in block.module.get_submodule(name).state_dict()
    }


def block_specs(model: PreTrainedModel) -> dict[str, HeadsSpec]:
    """The settings of the converted blocks of a model."""
    return model.config.block_specs() if isinstance(model.config, HeadsConfig) else {}


def inertia_by_name(model: PreTrainedModel) -> dict[str, int]:
    """The parameters that several heads of a block share, by name, and how many times larger than they act they are."""
    if not block_specs(model):
        return {}
    found = {}
    for block in find_blocks(model):
        if isinstance(block.module, HeadsAttention):
            shared = block.module.shared
            for name, _ in block.module.named_parameters():
                if name in shared or name.partition(".")[0] in shared:
                    found[f"{block.path}.{name}"] = block.module.inertia
    return found
