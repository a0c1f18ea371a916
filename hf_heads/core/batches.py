"""Batches of a model's forward arguments, the outputs they give, and what is no padding."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, stack

Batch = Mapping[str, Tensor]  # keyword arguments of a model's forward
Progress = Callable[[str, int, int], None]  # called with (what, done, total)


def token_rows(states: Tensor, mask: Tensor | None) -> Tensor:
    """The vectors at positions that are no padding, (count, width)."""
    return states.flatten(0, -2) if mask is None else states[mask.bool().to(states.device)]


def thin(batch: Batch, every: int) -> dict[str, Tensor]:
    """One example in `every` of a batch."""
    return {name: value[::every] for name, value in batch.items()}


def main_output(model: Any, batch: Batch) -> tuple[Tensor, bool]:
    """The main output of a model of transformers, and whether it is logits (else its last hidden state).

    Of two towers it is an embedding of each, (batch, 2, width): their logits compare all examples with all.
    """
    outputs = model(**{name: _fitting(value, model) for name, value in batch.items()})
    if "text_embeds" in outputs and "image_embeds" in outputs:
        return stack([outputs["text_embeds"], outputs["image_embeds"]], 1), False
    return (outputs["logits"], True) if "logits" in outputs else (outputs[0], False)


def _fitting(value: Tensor, model: Any) -> Tensor:
    """An input where the model is, images in its precision."""
    return value.to(model.device, model.dtype) if value.is_floating_point() else value.to(model.device)


def output_mask(batch: Batch, output: Tensor) -> Tensor | None:
    """The mask that fits the positions of an output (batch, length, width); None when it has no positions."""
    for name in ("decoder_attention_mask", "attention_mask"):
        mask = batch.get(name)
        if mask is not None and output.ndim == 3 and mask.shape == output.shape[:2]:
            return mask
    return None


def mean_pool(states: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over the tokens of each example, (batch, width), from (batch, length, width) and a mask of tokens."""
    if mask is None:
        return states.mean(1)
    weights = mask[..., None].to(states)
    return (states * weights).sum(1) / weights.sum(1)
