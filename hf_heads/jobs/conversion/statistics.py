"""What the data says about a block: moments of its inputs and of its attention, streamed through the model.

Only sums are kept (float64), never the activations: the model runs again, up to the block at hand, for each of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_heads.attention.hosts.blocks import Block
from hf_heads.core.batches import Batch, token_rows
from hf_heads.core.dense import DenseAttention
from hf_heads.core.errors import HeadsError
from hf_heads.core.statistics import BlockStatistics, Moments


class _Reached(Exception):
    """The block at hand has been seen; the rest of the model need not run."""


def run_to(model: PreTrainedModel, module: nn.Module, batch: Batch, see: Callable[..., None]) -> None:
    """Run a batch up to `module` and call `see(hidden_states, **keyword_arguments)` with what it is called with."""

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        names = ("hidden_states", "attention_mask")
        see(**dict(zip(names, args, strict=False)), **kwargs)
        raise _Reached

    handle = module.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        with torch.no_grad():
            model(**{name: value.to(model.device) for name, value in batch.items()})
    except _Reached:
        pass
    finally:
        handle.remove()


def collect_statistics(
    model: PreTrainedModel, block: Block, dense: DenseAttention, batches: Iterable[Batch]
) -> BlockStatistics:
    """Moments of a block's inputs, how far each head's attention moves its output, and what heads have in common.

    Args:
        model: the model, up to the block in the state in which it will run (earlier blocks converted).
        block: the block; its module must still be the one that `dense` describes.
        dense: the block's weights.
        batches: keyword arguments of the model's forward.
    """
    shape = dense.shape
    query = Moments(shape.query_width)
    key = Moments(shape.key_width) if block.kind == "cross" else query
    energy, sums = (torch.zeros(shape.heads, dtype=torch.float64) for _ in range(2))
    alike = torch.zeros(shape.heads, shape.heads, dtype=torch.float64)
    cross = torch.zeros(shape.query_width, shape.heads, dtype=torch.float64)
    gram = dense.output @ dense.output.mT
    for batch in batches:
        query_mask, key_mask = batch.get(block.site.query_mask), batch.get(block.site.key_mask)

        def see(hidden_states: Tensor, **kwargs: Any) -> None:
            nonlocal energy, alike, sums, cross
            memory = kwargs.get(block.site.memory) if block.site.memory else None
            memory = hidden_states if memory is None else memory
            query.update(token_rows(hidden_states, query_mask))  # noqa: B023
            if block.kind == "cross":
                key.update(token_rows(memory, key_mask))  # noqa: B023
            allowed = allowed_keys(block, hidden_states, memory, key_mask)  # noqa: B023
            scores = dense.scores(hidden_states, memory).masked_fill(~allowed, -torch.inf)
            weights = scores.softmax(-1).nan_to_num(0.0)
            found = head_energy(dense, gram, weights, memory), scores.logsumexp(-1).nan_to_num(0.0, neginf=0.0)
            reach, logs = (token_rows(one.transpose(1, 2), query_mask).double().cpu() for one in found)  # noqa: B023
            energy += reach.sum(0)
            sums += logs.sum(0)
            cross += token_rows(hidden_states, query_mask).double().cpu().T @ logs  # noqa: B023
            by_query = weights.transpose(1, 2)
            by_query = by_query.flatten(0, 1) if query_mask is None else by_query[query_mask.bool()]  # noqa: B023
            alike += (by_query @ by_query.mT).sum(0).double().cpu()

        run_to(model, block.module, batch, see)
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
