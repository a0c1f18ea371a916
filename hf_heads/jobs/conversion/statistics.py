"""What the data says about a block: moments of its inputs and of its attention, streamed through the model.

Only sums are kept, in float64.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

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
from hf_heads.jobs.team import Team

_PIECE = 2**20  # scores at a time: more than fit into a cache take longer


def collect_statistics(
    model: PreTrainedModel, block: Block, dense: DenseAttention, batches: Sequence[Batch]
) -> BlockStatistics:
    """Statistics of a block alone: the model runs up to it; see `statistics_of`."""
    with Stepper(model, batches, [block.name]) as stepper:
        return statistics_of(block, dense, stepper.at(block.name))


def statistics_of(
    block: Block, dense: DenseAttention, stops: Iterable[Stop], team: Team | None = None
) -> BlockStatistics:
    """Moments of a block's inputs, how far each head's attention moves its output, and what heads have in common.

    Args:
        block: the block; its module must still be the one that `dense` describes.
        dense: the block's weights.
        stops: batches that wait at the block; earlier blocks are as they will be.
        team: the processes that share the batches, whose sums are added.

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
        for rows, scores in scores_in_pieces(block, dense, stop, memory):
            part = None if mask is None else mask if len(mask) == 1 else mask[rows]
            here = None if real is None else real[rows]
            weights, logs = _softmax(scores, part)
            if here is not None:
                weights *= here[:, None, :, None]
            found = head_energy(dense, gram, weights, memory[rows]), logs
            reach, logs = (token_rows(one.transpose(1, 2), here).double().cpu() for one in found)
            energy += reach.sum(0)
            sums += logs.sum(0)
            cross += token_rows(hidden_states[rows], here).double().cpu().T @ logs
            flat = weights.flatten(2)
            alike += (flat @ flat.mT).sum(0).double().cpu()
    if team is not None and team.size > 1:
        sides = [query] if key is query else [query, key]
        query, key = (added := [_added(one, team) for one in sides])[0], added[-1]
        energy, sums, alike, cross = team.sum(energy, sums, alike, cross)
    if not query.weight:
        raise HeadsError(
            f"the calibration data never reaches {block.name}: leave it out (blocks '!{block.name}'), give data that "
            "does, or work from the weights alone"
        )
    sums = sums / query.weight
    cross = cross / query.weight - torch.outer(query.mean, sums)
    return BlockStatistics(query, key, energy / query.weight, alike / query.weight, sums, cross)


def _added(own: Moments, team: Team) -> Moments:
    """The moments of what all processes have seen."""
    found = Moments(own.width)
    weight, found.total, found.outer = team.sum(torch.tensor(own.weight, dtype=torch.float64), own.total, own.outer)
    found.weight = float(weight)
    return found


def _softmax(scores: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Attention and the logarithms of its denominators; zeros in rows in which all is hidden. Overwrites scores."""
    if mask is not None:
        scores += mask
    weights = scores.softmax(-1)
    logs = scores.amax(-1) - weights.amax(-1).log()
    return (weights, logs) if mask is None else (weights.nan_to_num_(0.0), logs.nan_to_num_(0.0))


def scores_in_pieces(block: Block, dense: DenseAttention, stop: Stop, memory: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """A block's scores before mask and softmax, (rows, heads, target, source), some rows of the batch at a time.

    Args:
        memory: the key-side inputs, (batch, source, key_width).
    """
    hidden_states, encode = stop.hidden_states, block.site.encode
    sides = {}
    if encode is not None:
        for side, inputs in (("query", hidden_states), ("key", memory)):
            states = torch.einsum("btd,hde->bhte", inputs, getattr(dense, side))
            states = states + getattr(dense, f"{side}_bias")[:, None]
            sides[side] = hook(encode)(block.module, side, states, stop.arguments)
    rows = max(1, _PIECE // max(dense.shape.heads * hidden_states.shape[1] * memory.shape[1], 1))
    for first in range(0, len(hidden_states), rows):
        piece = slice(first, first + rows)
        if encode is None:
            yield piece, dense.scores(hidden_states[piece], memory[piece])
        else:
            yield piece, dense.scale * sides["query"][piece] @ sides["key"][piece].mT


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
