"""Tiny twins of the other architectures for images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.models.auto.modeling_auto import AutoModel, AutoModelForImageClassification

from tests.support.text_twins import Twin, twin
from tests.support.twins import HEADS, LAYERS, WIDTH, image_inputs

IMAGE: dict[str, Any] = dict(
    image_size=16,
    patch_size=4,
    hidden_size=WIDTH,
    num_hidden_layers=LAYERS,
    num_attention_heads=HEADS,
    intermediate_size=48,
    num_labels=5,
)
_RELATIVE = {  # segmentation reads four layers
    **IMAGE,
    "num_hidden_layers": 4,
    "out_indices": [1, 2, 3, 4],
    "use_relative_position_bias": True,
    "vocab_size": 12,
}
_PIXELS = {
    "decoder_hidden_size": 16,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 16,
}


def _masked_inputs() -> dict[str, Tensor]:
    return {**image_inputs(), "noise": torch.rand(3, 16, generator=torch.Generator().manual_seed(6))}


IMAGE_TWINS: dict[str, Twin] = {
    one.name: one
    for one in (
        *(
            twin(AutoModelForImageClassification, name, IMAGE, image_inputs)
            for name in ("deit", "dinov2", "dinov2_with_registers", "ijepa", "vit_msn")
        ),
        twin(AutoModelForImageClassification, "beit", _RELATIVE, image_inputs),
        twin(AutoModel, "vit_mae", {**IMAGE, **_PIXELS}, _masked_inputs),
    )
}
