"""Batches of a training loader's data, drawn beside the run that it serves."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset
from transformers import PreTrainedModel

from hf_heads.core.errors import HeadsError


def drawn_batches(loader: Any, model: PreTrainedModel, count: int, seed: int) -> list[dict[str, Tensor]]:
    """Up to `count` batches of a loader's data set, other than those that it gives next: it is not asked.

    The draw depends on the seed alone, so that a run that was resumed gets the same batches. Seeds Python's, numpy's
    and torch's random numbers, which collators use.

    Args:
        loader: a `DataLoader`, or accelerate's in its place.
        model: what the batches are for; an encoder-decoder's get `decoder_input_ids` where there are labels only.

    Raises:
        HeadsError: the data set can only be iterated, or its batches are not a mapping to tensors.
    """
    data = getattr(loader, "dataset", None)
    if data is None or isinstance(data, IterableDataset) or not hasattr(data, "__len__"):
        raise HeadsError(
            "the training data can only be iterated, so that batches to convert on cannot be drawn from it: give "
            "ConvertCallback(calibration=batches)"
        )
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    batch_sampler = getattr(loader, "batch_sampler", None)
    size = getattr(batch_sampler, "batch_size", None) or getattr(loader, "total_batch_size", None) or 8
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))[: count * size].tolist()
    batches = []
    for begin in range(0, len(order), size):
        rows = [data[index] for index in order[begin : begin + size]]
        batch = loader.collate_fn(rows)
        if not hasattr(batch, "items"):
            raise HeadsError(
                f"the training data come as {type(batch).__name__}, not as a mapping to tensors: give "
                "ConvertCallback(calibration=batches)"
            )
        batches.append(_for_model({name: one for name, one in batch.items() if isinstance(one, Tensor)}, model))
    return batches


def _for_model(batch: dict[str, Tensor], model: PreTrainedModel) -> dict[str, Tensor]:
    """A batch that runs without its labels, too."""
    labels = batch.get("labels")
    if not getattr(model.config, "is_encoder_decoder", False) or labels is None or "decoder_input_ids" in batch:
        return batch
    shifted: Any = model
    mask = (labels != -100).flip(1).cumsum(1).flip(1).clamp_max(1)  # up to the last that is to be said
    return {
        **batch,
        "decoder_input_ids": shifted.prepare_decoder_input_ids_from_labels(labels),
        "decoder_attention_mask": mask,
    }
