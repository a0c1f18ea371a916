"""Inputs for the attention blocks of a model alone, to compare them with formulas written out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hf_heads.attention.hosts.blocks import Block, find_blocks
from tests.support.twins import WIDTH


@dataclass(frozen=True)
class BlockInputs:
    """Two examples for a block, the second of them padded.

    Attributes:
        x, memory: inputs of the query side and of the key side, (batch, target or source, width).
        allowed: what may be attended to, boolean, broadcastable to (batch, target, source).
    """

    block: Block
    x: Tensor
    memory: Tensor
    allowed: Tensor

    @property
    def boolean(self) -> Tensor:
        """The mask as fused attention takes it, (batch, 1, 1 or target, source)."""
        return self.allowed[:, None]

    @property
    def additive(self) -> Tensor:
        """The mask as eager attention takes it."""
        return torch.zeros(self.boolean.shape).masked_fill(~self.boolean, torch.finfo(torch.float32).min)

    def output(self, mask: Tensor | None) -> Tensor:
        """What the block gives, with the output projection where that belongs to it."""
        inputs = {self.block.site.memory: self.memory} if self.block.kind == "cross" else {}
        return self.block.module(self.x, **({} if mask is None else {"attention_mask": mask}), **inputs)[0]

    def expected(self, contexts: Tensor) -> Tensor:
        """What the block should give where these, (batch, heads, target, value_dim), are what its heads give."""
        joined = contexts.transpose(1, 2).flatten(2).to(self.x.dtype)
        return self.block.output(joined) if self.block.site.output_inside else joined


def block_inputs(model: PreTrainedModel, dtype: torch.dtype = torch.float32) -> Iterator[BlockInputs]:
    """The same random inputs for every block of a model."""
    generator = torch.Generator().manual_seed(5)
    x, y = (torch.randn(2, length, WIDTH, generator=generator, dtype=dtype) for length in (5, 7))
    padding = torch.ones(2, 1, 7, dtype=torch.bool)
    padding[1, :, 5:] = False
    for block in find_blocks(model):
        memory = y if block.kind == "cross" else x
        allowed = padding[..., : memory.shape[1]]
        if block.kind == "causal":
            allowed = allowed & torch.ones(5, 5, dtype=torch.bool).tril()
        yield BlockInputs(block, x, memory, allowed)
