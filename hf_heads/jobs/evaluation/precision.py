"""What a model loses in lower precision: its outputs there against its own in float32."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_heads.core.batches import Batch
from hf_heads.core.vocabulary import INT8, PRECISIONS
from hf_heads.jobs.evaluation.drift import Drift, measure_drift


def lowered(model: PreTrainedModel, precision: str) -> PreTrainedModel:
    """A copy of a model in a lower precision.

    Args:
        model: in float32; it stays as it is.
        precision: one of `PRECISIONS`. In int8 the weights of linear maps are rounded to 8 bits, each output's row by
            its largest number, and all else stays: what a kernel adds by rounding activations is not in it.
    """
    assert precision in PRECISIONS
    found = copy.deepcopy(model)
    if precision != INT8:
        return found.to(getattr(torch, precision))
    with torch.no_grad():
        for module in found.modules():
            if isinstance(module, nn.Linear) and module.weight.numel():
                module.weight.copy_(round_rows(module.weight))
    return found


def round_rows(weight: Tensor, bits: int = 8) -> Tensor:
    """A matrix whose rows are multiples of their largest entry / (2^(bits - 1) - 1)."""
    step = weight.abs().amax(-1, keepdim=True).clamp_min(1e-30) / (2 ** (bits - 1) - 1)
    return (weight / step).round() * step


def precision_drift(model: PreTrainedModel, batches: Sequence[Batch], precision: str) -> Drift:
    """How far a model's outputs in a lower precision are from its own in float32."""
    return measure_drift(lowered(model, precision), model, batches)
