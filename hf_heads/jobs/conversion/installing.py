"""New modules and their weights into a model, in place of a block's."""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_heads.attention.hosts.blocks import Block, find_blocks
from hf_heads.attention.spec import HeadsSpec
from hf_heads.core.dense import DenseAttention, merge_heads
from hf_heads.core.errors import HeadsError
from hf_heads.modeling.blocks import read_block
from hf_heads.modeling.grafting import replace_block


def install(model: PreTrainedModel, name: str, spec: HeadsSpec, weights: dict[str, torch.Tensor]) -> Block:
    """Swap the block called `name` for a module with these weights; returns the block as it is now."""
    before = block_called(model, name)
    module = replace_block(model, before, spec)
    value = None if "value" in module.replaces else module.value_projection
    if value is not None and value is not getattr(before.module, before.site.value, None):  # nothing of it is left
        weights = {**value_output_weights(read_block(before)), **weights}
    block = block_called(model, name)
    load_weights(block, weights)
    return block


def block_called(model: PreTrainedModel, name: str) -> Block:
    """The block of a model by its name."""
    return next(block for block in find_blocks(model) if block.name == name)


def value_output_weights(dense: DenseAttention) -> dict[str, torch.Tensor]:
    """A standard block's value and output projections as tensors for `load_weights`."""
    return {
        "value.weight": merge_heads(dense.value),
        "value.bias": dense.value_bias.flatten(),
        "output.weight": dense.output.flatten(0, 1).T,
        "output.bias": dense.output_bias,
    }


def load_weights(block: Block, weights: dict[str, torch.Tensor]) -> None:
    """Give a block new tensors, `query.*`, `key.*`, `value.*` and `output.*` of the host's own projections among them.

    Parameters are replaced, not written into: a projection may share its tensors with the original model. A bias that
    the host does not have is left out if it is zero.
    """
    for name, tensor in weights.items():
        owner, _, leaf = name.rpartition(".")
        if owner == "output":
            module: nn.Module = block.output
        elif owner in ("query", "key", "value"):
            module = getattr(block.module, getattr(block.site, owner))
        else:
            module = block.module.get_submodule(owner)
        before = getattr(module, leaf)
        if before is None and not tensor.any():
            continue
        expected = None if before is None else tuple(before.shape)
        if expected != tuple(tensor.shape):
            raise HeadsError(f"{block.name}: {name} has shape {tuple(tensor.shape)}, expected {expected}")
        new = tensor.detach().to(device=block.output.weight.device, dtype=before.dtype).contiguous().clone()
        setattr(module, leaf, nn.Parameter(new, before.requires_grad) if isinstance(before, nn.Parameter) else new)
