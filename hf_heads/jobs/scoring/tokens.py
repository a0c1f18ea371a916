"""How much a model's output depends on what each attention block puts out at each token."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_heads.attention.hosts.blocks import Block, find_blocks
from hf_heads.core.batches import Batch
from hf_heads.jobs.scoring.sensitivity import measured_output, probe_output

_FLOOR, _CEILING = 1e-2, 30.0


def token_weights(
    model: PreTrainedModel, batches: Sequence[Batch], names: Sequence[str], seed: int = 0
) -> dict[str, list[Tensor]]:
    """What errors at each token count for, by one backward pass for all blocks.

    |df/dz_i| of what a block puts out at token i, f a random direction of the model's output (the pooled embedding, the
    logits, the hidden states): the root of a Fisher weight. The weight itself is that of one drawn direction, and
    trusting it to the full keeps less.

    Args:
        model: in evaluation mode; it is left as it is.
        batches: keyword arguments of its forward.
        names: of the blocks.
        seed: of the directions.

    Returns:
        By block, for each batch weights of (batch, target), whose squares have mean one over all tokens that the output
        depends on; none of a batch that never reaches the block.
    """
    generator = torch.Generator().manual_seed(seed)
    blocks = [block for block in find_blocks(model) if block.name in set(names)]
    squares: dict[str, list[Tensor]] = {block.name: [] for block in blocks}
    for batch in batches:
        with torch.enable_grad(), _kept_outputs(model, blocks) as outputs:
            probe = probe_output(*measured_output(model, batch), generator)
            gradients = torch.autograd.grad(probe, list(outputs.values()), allow_unused=True)
        found = dict(zip(outputs, gradients, strict=True))
        for block in blocks:
            gradient = found.get(block.name)
            if gradient is None:  # never reached, or nothing that the output depends on
                squares[block.name].append(torch.empty(0))
                continue
            squares[block.name].append(gradient.square().sum(-1))  # zero at padding, on which nothing depends
    return {name: _levelled(several) for name, several in squares.items()}


def _levelled(squares: Sequence[Tensor]) -> list[Tensor]:
    """Roots of squares relative to their mean, bounded."""
    count = sum(int((one > 0).sum()) for one in squares)
    mean = sum(float(one.sum()) for one in squares) / max(count, 1)
    return [(one / max(mean, 1e-300) + _FLOOR).sqrt().clamp_max(_CEILING) for one in squares]


@contextmanager
def _kept_outputs(model: PreTrainedModel, blocks: Sequence[Block]) -> Iterator[dict[str, Tensor]]:
    """What each block's output projection gives, with gradients for it alone, within a `with` block."""
    before = [(one, one.requires_grad) for one in model.parameters()]
    kept: dict[str, Tensor] = {}

    def keeper(name: str) -> Callable[..., None]:
        def keep(_: nn.Module, args: Any, output: Tensor) -> None:
            kept[name] = output if output.requires_grad else output.requires_grad_()

        return keep

    handles = [block.output.register_forward_hook(keeper(block.name)) for block in blocks]
    try:
        for one, _ in before:
            one.requires_grad_(False)
        yield kept
    finally:
        for handle in handles:
            handle.remove()
        for one, wanted in before:
            one.requires_grad_(wanted)
