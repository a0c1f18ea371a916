"""What the data says about a block: moments of its inputs and of its attention, streamed through the model.

Only sums are kept, in float64.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hf_heads.attention.hosts.blocks import Block
from hf_heads.core.batches import Batch, token_rows
from hf_heads.core.dense import DenseAttention
from hf_heads.core.errors import HeadsError
from hf_heads.core.statistics import BlockStatistics, Moments
from hf_heads.jobs.conversion.stepping import Stepper, Stop


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
        query_mask, key_mask = stop.batch.get(block.site.query_mask), stop.batch.get(block.site.key_mask)
        memory = stop.arguments.get(block.site.memory) if block.site.memory else None
        memory = hidden_states if memory is None else memory
        query.update(token_rows(hidden_states, query_mask))
        if block.kind == "cross":
            key.update(token_rows(memory, key_mask))
        allowed = allowed_keys(block, hidden_states, memory, key_mask)
        scores = dense.scores(hidden_states, memory).masked_fill(~allowed, -torch.inf)
        weights = scores.softmax(-1).nan_to_num(0.0)
        found = head_energy(dense, gram, weights, memory), scores.logsumexp(-1).nan_to_num(0.0, neginf=0.0)
        reach, logs = (token_rows(one.transpose(1, 2), query_mask).double().cpu() for one in found)
        energy += reach.sum(0)
        sums += logs.sum(0)
        cross += token_rows(hidden_states, query_mask).double().cpu().T @ logs
        by_query = weights.transpose(1, 2)
        by_query = by_query.flatten(0, 1) if query_mask is None else by_query[query_mask.bool()]
        alike += (by_query @ by_query.mT).sum(0).double().cpu()
    if not query.weight:
        raise HeadsError(
            f"the calibration data never reaches {block.name}: leave it out (blocks '!{block.name}'), give data that "
            "does, or work from the weights alone"
        )
    sums = sums / query.weight
    cross = cross / query.weight - torch.outer(query.mean, sums)
    return BlockStatistics(query, key, energy / query.weight, alike / query.weight, sums, cross)


def allowed_keys(block: Block, hidden_states: Tensor, memory: Tensor, key_mask: Tensor | None) -> Tensor:
    """Which key a query may see, (batch or 1, 1, target or 1, source)."""
    target, source = hidden_states.shape[1], memory.shape[1]
    allowed = torch.ones(1, 1, target, source, dtype=torch.bool, device=memory.device)
    if block.kind == "causal":
        allowed = allowed.tril()
    if key_mask is not None:
        allowed = allowed & key_mask.bool().to(memory.device)[:, None, None]
    return allowed


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
