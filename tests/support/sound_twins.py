"""Tiny twins of the architectures for sounds, and for texts and images together."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModel,
    AutoModelForAudioClassification,
    AutoModelForSpeechSeq2Seq,
    PreTrainedModel,
    SiglipTextConfig,
    SiglipTextModel,
)

from hf_heads.jobs.contract import Twin
from tests.support.image_twins import IMAGE
from tests.support.text_twins import TEXT, TRANSLATOR, made, twin
from tests.support.twins import HEADS, LAYERS, WIDTH, image_inputs, text_inputs, text_to_text_inputs

_SOUND: dict[str, Any] = dict(
    hidden_size=WIDTH,
    num_hidden_layers=LAYERS,
    num_attention_heads=HEADS,
    intermediate_size=48,
    conv_dim=(8, 8),
    conv_stride=(2, 2),
    conv_kernel=(3, 3),
    num_feat_extract_layers=2,
    num_conv_pos_embeddings=4,
    num_conv_pos_embedding_groups=2,
    num_codevectors_per_group=6,
    codevector_dim=8,
    tdnn_dim=(8, 8),
    tdnn_kernel=(3, 1),
    tdnn_dilation=(1, 1),
    classifier_proj_size=8,
    proj_codevector_dim=8,
    vocab_size=12,
    num_labels=5,
    layerdrop=0.0,
    apply_spec_augment=False,
)
_HEARD: dict[str, Any] = {
    **TRANSLATOR,
    "num_mel_bins": 8,
    "max_source_positions": 12,
    "max_target_positions": 40,
    "classifier_proj_size": 8,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
}


def _sounds() -> dict[str, Tensor]:
    """Two sounds, the second of which ends before the first, so that frames of it are padding."""
    generator = torch.Generator().manual_seed(5)
    mask = torch.ones(3, 100, dtype=torch.long)
    mask[1, 60:] = 0
    return {"input_values": torch.randn(3, 100, generator=generator), "attention_mask": mask}


def _spectra() -> dict[str, Tensor]:
    decoder = {name: value for name, value in text_to_text_inputs().items() if name.startswith("decoder")}
    generator = torch.Generator().manual_seed(5)
    return {"input_features": torch.randn(3, 8, 24, generator=generator), **decoder}


def _whisper() -> PreTrainedModel:
    model = made(AutoModelForSpeechSeq2Seq, "whisper", _HEARD)
    model.generation_config.max_length = 24
    model.generation_config.no_timestamps_token_id = 90
    return model


def _texts_and_images() -> dict[str, Tensor]:
    return {**text_inputs(), **image_inputs()}


def _two_towers(model_type: str) -> Twin:
    towers = {"text_config": {**TEXT, "projection_size": WIDTH}, "vision_config": IMAGE, "projection_dim": 16}
    return twin(AutoModel, model_type, towers, _texts_and_images)


SOUND_TWINS: dict[str, Twin] = {
    one.name: one
    for one in (
        *(
            twin(AutoModelForAudioClassification, name, _SOUND, _sounds)
            for name in ("data2vec-audio", "hubert", "unispeech", "unispeech-sat", "wav2vec2")
        ),
        Twin("whisper", "whisper", _whisper, _spectra),
        _two_towers("clip"),
        _two_towers("siglip"),
        twin(AutoModel, "clip_text_model", TEXT),
        twin(AutoModel, "clip_vision_model", IMAGE, image_inputs),
        twin(AutoModel, "siglip_vision_model", IMAGE, image_inputs),
        Twin("siglip_text_model", "siglip_text_model", lambda: SiglipTextModel(SiglipTextConfig(**TEXT)), text_inputs),
    )
}
