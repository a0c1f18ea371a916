"""Head masks: heads scaled or switched off for as long as a `with` block lasts, in any model with an adapter."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_heads.attention.hosts.blocks import Block, find_blocks
from hf_heads.core.errors import HeadsError
from hf_heads.modeling.blocks import block_shape

Mask = Tensor | Mapping[Any, Tensor]


@contextmanager
def head_mask(model: PreTrainedModel, mask: Mask) -> Iterator[None]:
    """Multiply what every attention head puts out by a factor: 1 keeps it, 0 switches it off.

    The factor acts on a head's output right before the output projection, which is the same as multiplying its
    attention weights; the weights that `output_attentions=True` returns stay unmasked. Works in `eager` and `sdpa`,
    with caches, and is differentiable in the mask. Masks of nested blocks multiply.

    Args:
        model: a model of an architecture with an adapter, native or converted.
        mask: a tensor (heads,) for all blocks, or (blocks, heads) with a row for every block in the order of
            `hf_heads.find_blocks`; or a mapping from blocks, by name or by the number of their layer, to
            tensors (heads,), or (batch, heads) for factors of every example's own.

    Raises:
        HeadsError: a block that does not exist, or a mask of another size.
    """
    masks = masks_by_block(model, mask)
    with ExitStack() as stack:
        for block in find_blocks(model):
            if block.name in masks:
                stack.enter_context(_scaled(block.output, masks[block.name]))
        yield


@contextmanager
def _scaled(output: nn.Module, mask: Tensor) -> Iterator[None]:
    """Scale the heads that go into an output projection."""

    def scale(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        context = args[0]
        factor = mask.to(context.device, context.dtype)
        if not factor.shape[-1]:
            return args
        factor = factor[:, None] if factor.ndim == 2 else factor  # (batch, 1, heads) or (heads,)
        heads = context.unflatten(-1, (factor.shape[-1], -1))
        return ((heads * factor[..., None]).flatten(-2), *args[1:])

    handle = output.register_forward_pre_hook(scale)
    try:
        yield
    finally:
        handle.remove()


def masks_by_block(model: PreTrainedModel, mask: Mask) -> dict[str, Tensor]:
    """A mask in any of the forms of `head_mask` as a mapping from block names, checked.

    Raises:
        HeadsError: see `head_mask`.
    """
    blocks = find_blocks(model)
    if isinstance(mask, Tensor):
        if mask.ndim == 2 and len(mask) != len(blocks):
            raise HeadsError(f"the head mask has {len(mask)} rows, but the model has {len(blocks)} attention blocks")
        if mask.ndim not in (1, 2):
            raise HeadsError(f"the head mask has shape {tuple(mask.shape)}, expected (heads,) or (blocks, heads)")
        rows = mask.expand(len(blocks), -1)
        found = {block.name: row for block, row in zip(blocks, rows, strict=True)}
    else:
        found = {find_block(blocks, key).name: value for key, value in mask.items()}
    for block in blocks:
        heads = block_shape(block).heads
        given = found.get(block.name)
        if given is not None and (given.ndim not in (1, 2) or given.shape[-1] != heads):
            raise HeadsError(f"{block.name} has {heads} heads, but its mask has shape {tuple(given.shape)}")
    return found


def find_block(blocks: list[Block], key: str | int) -> Block:
    """A block by its name, or the self-attention of a layer by the layer's number.

    Raises:
        HeadsError: there is none, or the number stands for several.
    """
    names = [block.name for block in blocks]
    if isinstance(key, str):
        if key not in names:
            raise HeadsError(f"there is no attention block '{key}'. Blocks: {', '.join(names[:4])} ... ({len(names)})")
        return blocks[names.index(key)]
    found = [block for block in blocks if block.kind != "cross" and layer_number(block.name) == key]
    if not found:
        count = len({layer_number(name) for name in names})
        raise HeadsError(f"there is no layer {key}; layers are numbered 0 to {count - 1}")
    if len(found) > 1:
        raise HeadsError(f"layer {key} could be {' or '.join(block.name for block in found)}: use the block's name")
    return found[0]


def layer_number(name: str) -> int:
    """The number in a block's name."""
    found = re.search(r"\.(\d+)\.", f".{name}.")
    return int(found[1]) if found else 0
