"""Tiny twins of every architecture, made in memory: all biases non-zero, a padding mask present."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertLMHeadModel,
    MarianConfig,
    MarianMTModel,
    PreTrainedModel,
    ViTConfig,
    ViTForImageClassification,
)

from hf_heads.jobs.contract import Twin
from hf_heads.jobs.contract import randomize as randomize

HEADS, WIDTH, LAYERS = 4, 32, 2


def bert_config(**changes: Any) -> BertConfig:
    return BertConfig(
        vocab_size=99,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=48,
        max_position_embeddings=40,
        **changes,
    )


def vit_config() -> ViTConfig:
    return ViTConfig(
        image_size=16,
        patch_size=4,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=48,
        num_labels=5,
        encoder_stride=4,
    )


def marian_config() -> MarianConfig:
    return MarianConfig(
        vocab_size=99,
        decoder_vocab_size=99,
        d_model=WIDTH,
        encoder_layers=LAYERS,
        decoder_layers=LAYERS,
        encoder_attention_heads=HEADS,
        decoder_attention_heads=HEADS,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        max_position_embeddings=40,
        pad_token_id=98,
        decoder_start_token_id=98,
        eos_token_id=0,
        forced_eos_token_id=None,
    )


def marian() -> MarianMTModel:
    """A translator that says how long its outputs may get, as those on the hub do."""
    model = MarianMTModel(marian_config())
    model.generation_config.max_length = 24
    return model


def _ids(batch: int, length: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, 98, (batch, length), generator=generator)
    mask = torch.ones(batch, length, dtype=torch.long)
    mask[1, length - 3 :] = 0
    return ids, mask


def text_inputs() -> dict[str, Tensor]:
    ids, mask = _ids(3, 9, 1)
    return {"input_ids": ids, "attention_mask": mask}


def _decoder() -> dict[str, Tensor]:
    memory = torch.randn(3, 7, WIDTH, generator=torch.Generator().manual_seed(2))
    return {**text_inputs(), "encoder_hidden_states": memory, "encoder_attention_mask": _ids(3, 7, 3)[1]}


def text_to_text_inputs() -> dict[str, Tensor]:
    ids, mask = _ids(3, 6, 4)
    return {**text_inputs(), "decoder_input_ids": ids, "decoder_attention_mask": mask}


def image_inputs() -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(5))}


TWINS = {
    twin.name: twin
    for twin in (
        Twin("bert", "bert", lambda: BertForMaskedLM(bert_config()), text_inputs),
        Twin(
            "bert-decoder",
            "bert",
            lambda: BertLMHeadModel(bert_config(is_decoder=True, add_cross_attention=True)),
            _decoder,
        ),
        Twin("vit", "vit", lambda: ViTForImageClassification(vit_config()), image_inputs),
        Twin("marian", "marian", marian, text_to_text_inputs),
    )
}


def logits(model: PreTrainedModel, inputs: dict[str, Tensor]) -> Tensor:
    """The model's main output where there is no padding."""
    with torch.no_grad():
        output = model(**inputs)[0]
    mask = inputs.get("decoder_attention_mask", inputs.get("attention_mask"))
    fits = mask is not None and output.ndim == 3 and mask.shape == output.shape[:2]
    return output[mask.bool()] if fits else output


def fit(model: PreTrainedModel, inputs: dict[str, Tensor], steps: int, learning_rate: float) -> list[float]:
    """Train a model to tell its own inputs, and return the loss of every step."""
    optimizer, losses = torch.optim.Adam(model.parameters(), learning_rate), []
    for _ in range(steps):
        loss = model(**inputs, labels=inputs["input_ids"]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses
