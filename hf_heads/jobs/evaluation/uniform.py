"""Uniform attention: what a model is without learned scores, the control at the end of every axis of size.

With every query and key zero (scores of rank 0), each position attends alike to all that it may see.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_heads.attention.hosts.blocks import Block, find_blocks
from hf_heads.attention.hosts.reading import host_projections, host_shape
from hf_heads.attention.hosts.table import adapter_of
from hf_heads.attention.module import HeadsAttention
from hf_heads.core.errors import HeadsError
from hf_heads.modeling.blocks import share_weights

NAME = "uniform attention (rank 0)"


def uniform_attention(model: PreTrainedModel) -> PreTrainedModel:
    """A model of the same weights, all others shared, whose queries and keys are zero.

    Raises:
        HeadsError: blocks of the model are converted, and queries and keys not theirs alone.
    """
    check_native(model)
    found = share_weights(model)
    for block in find_blocks(found):
        if block.site.fused is not None:
            _zero_scores(block)
            continue
        for name in (block.site.query, block.site.key):
            before = getattr(block.module, name)
            zero = nn.Linear(before.in_features, before.out_features, before.bias is not None)
            for parameter in zero.parameters():
                nn.init.zeros_(parameter)
            setattr(block.module, name, zero.to(before.weight))
    return found.eval()


def _zero_scores(block: Block) -> None:
    """Zero the queries' rows of a projection that makes queries, keys and values at once: all scores are zero then."""
    name = str(block.site.fused)
    fused = copy.deepcopy(getattr(block.module, name))
    setattr(block.module, name, fused)
    with torch.no_grad():
        for part in host_projections(block.module, block.site)[0]:
            if part is not None:
                part.zero_()


def check_native(model: PreTrainedModel) -> None:
    """Refuse a model with converted blocks.

    Raises:
        HeadsError: names the first.
    """
    for block in find_blocks(model):
        if isinstance(block.module, HeadsAttention):
            raise HeadsError(
                f"uniform attention is the control of a model with standard heads, and {block.name} of the original "
                "is converted: leave the control out with --no-control"
            )


@dataclass(frozen=True)
class Saved:
    """What a standard block has no need of when its attention is uniform: queries and keys.

    Attributes:
        parameters: of their projections.
        cache: numbers of a token's keys.
    """

    parameters: int
    cache: int


def saved(block: Block) -> Saved:
    """What uniform attention saves in a standard block."""
    shape = host_shape(block.module, block.site, block.output)
    return Saved(shape.parameters - shape.value_parameters, shape.heads * shape.head_dim)


def saved_multiply_adds(model: PreTrainedModel, length: int) -> int:
    """Multiply-adds of all queries, keys and scores of a model with standard heads, for so many tokens on each side."""
    alone = adapter_of(model.config).modality == "text"  # without a memory, cross-attention does not run
    found = 0
    for block in find_blocks(model):
        if block.kind == "cross" and alone:
            continue
        shape = host_shape(block.module, block.site, block.output)
        width = shape.heads * shape.head_dim
        found += length * width * (shape.query_width + shape.key_width) + length**2 * width
    return found
