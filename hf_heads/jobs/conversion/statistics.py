"""What the data says about a block: moments of its inputs and of its attention, streamed through the model.

Only sums are kept, in float64.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hf_heads.attention.hosts.blocks import Block
from hf_heads.attention.hosts.parts import hook
from hf_heads.core.batches import Batch, token_rows
from hf_heads.core.dense import DenseAttention
from hf_heads.core.errors import HeadsError
from hf_heads.core.statistics import BlockStatistics, Moments
from hf_heads.jobs.conversion.stepping import Stepper, Stop, real_queries, received_mask


def collect_statistics(
    model: PreTrainedModel, block: Block, dense: DenseAttention, batches: Sequence[Batch]
) -> BlockStatistics:
    """Statistics of a block alone: the model runs up to it; see `statistics_of`."""
    with Stepper(model, batches, [block.name]) as stepper:
        return statistics_of(block, dense, stepper.at(block.name))


def statistics_of(block: Block, dense: DenseAttention, stops: Iterable[Stop]) -> BlockStatistics:
    """Moments of a block's inputs, how far each head's attention moves its output, and what heads have in common.

    Args:
        block: the block; its module must still be the one that `dense` describes.
        dense: the block's weights.
        stops: batches that wait at the block; earlier blocks are as they will be.

    Raises:
        HeadsError: no batch reaches the block.
    """
    shape = dense.shape
    query = Moments(shape.query_width)
    key = Moments(shape.key_width) if block.kind == "cross" else query
    energy, sums = (torch.zeros(shape.heads, dtype=torch.float64) for _ in range(2))
    alike = torch.zeros(shape.heads, shape.heads, dtype=torch.float64)
    cross = torch.zeros(shape.query_width, shape.heads, dtype=torch.float64)
    gram = dense.output @ dense.output.mT
    for stop in stops:
        hidden_states = stop.hidden_states
        memory = stop.arguments.get(block.site.memory) if block.site.memory else None
        memory = hidden_states if memory is None else memory
        mask, real = received_mask(block, stop, memory.shape[1]), real_queries(block, stop)
        query.update(token_rows(hidden_states, real))
        if block.kind == "cross":
            key.update(token_rows(memory, seen_keys(mask, memory)))
        scores = block_scores(block, dense, stop, memory)
        scores = scores if mask is None else scores + mask
        weights = scores.softmax(-1).nan_to_num(0.0)
        found = head_energy(dense, gram, weights, memory), scores.logsumexp(-1).nan_to_num(0.0, neginf=0.0)
        reach, logs = (token_rows(one.transpose(1, 2), real).double().cpu() for one in found)
        energy += reach.sum(0)
        sums += logs.sum(0)
        cross += token_rows(hidden_states, real).double().cpu().T @ logs
        by_query = weights.transpose(1, 2)
        by_query = by_query.flatten(0, 1) if real is None else by_query[real]
        alike += (by_query @ by_query.mT).sum(0).double().cpu()
    if not query.weight:
        raise HeadsError(
            f"the calibration data never reaches {block.name}: leave it out (blocks '!{block.name}'), give data that "
            "does, or work from the weights alone"
        )
    sums = sums / query.weight
    cross = cross / query.weight - torch.outer(query.mean, sums)
    return BlockStatistics(query, key, energy / query.weight, alike / query.weight, sums, cross)


def block_scores(block: Block, dense: DenseAttention, stop: Stop, memory: Tensor) -> Tensor:
    """A block's scores before mask and softmax, (batch, heads, target, source), with positions where it has them.

    Args:
        memory: the key-side inputs, (batch, source, key_width).
    """
    if block.site.encode is None:
        return dense.scores(stop.hidden_states, memory)
    sides = {}
    for side, inputs in (("query", stop.hidden_states), ("key", memory)):
        states = torch.einsum("btd,hde->bhte", inputs, getattr(dense, side)) + getattr(dense, f"{side}_bias")[:, None]
        sides[side] = hook(block.site.encode)(block.module, side, states, stop.arguments)
    return dense.scale * sides["query"] @ sides["key"].mT


def seen_keys(mask: Tensor | None, memory: Tensor) -> Tensor | None:
    """Which keys any query sees, boolean (batch, source), by a mask as `received_mask` gives it."""
    if mask is None:
        return None
    return (mask.amax((1, 2)) > -torch.inf).expand(memory.shape[:2])


def head_energy(dense: DenseAttention, gram: Tensor, weights: Tensor, memory: Tensor) -> Tensor:
    """sum_j p_ij |(v_j - v_i) O_h|^2 of every query and head, where v_i = sum_j p_ij v_j.

    Args:
        gram: (heads, value_dim, value_dim), O_h O_h^T.
        weights: p, (batch, heads, target, source)
        memory: (batch, source, key_width)

    Returns:
        (batch, heads, target)
    """
    values = dense.values(memory)
    squares = ((values @ gram) * values).sum(-1)
    mean = weights @ values
    return (weights @ squares[..., None]).squeeze(-1) - ((mean @ gram) * mean).sum(-1)
