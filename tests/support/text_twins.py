"""Tiny twins of the other architectures for text: encoders, encoder-decoders, decoders."""

from __future__ import annotations

from functools import partial
from typing import Any

from transformers import PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
)

from hf_heads.jobs.contract import Twin
from tests.support.twins import HEADS, LAYERS, WIDTH, text_inputs, text_to_text_inputs

TEXT: dict[str, Any] = dict(
    vocab_size=99,
    hidden_size=WIDTH,
    num_hidden_layers=LAYERS,
    num_attention_heads=HEADS,
    intermediate_size=48,
    max_position_embeddings=40,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)
TRANSLATOR: dict[str, Any] = dict(
    vocab_size=99,
    d_model=WIDTH,
    encoder_layers=LAYERS,
    decoder_layers=LAYERS,
    encoder_attention_heads=HEADS,
    decoder_attention_heads=HEADS,
    encoder_ffn_dim=48,
    decoder_ffn_dim=48,
    max_position_embeddings=40,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
    decoder_start_token_id=2,
    forced_eos_token_id=None,
)


def made(auto: Any, model_type: str, settings: dict[str, Any]) -> PreTrainedModel:
    """A model of a type by the Auto class that serves it."""
    config = CONFIG_MAPPING[model_type](**settings)
    config.architectures = []  # transformers reads it where an Auto class serves several
    return auto.from_config(config)


def twin(auto: Any, model_type: str, settings: dict[str, Any], inputs: Any = text_inputs) -> Twin:
    """A twin by its Auto class and config."""
    return Twin(model_type, model_type, partial(made, auto, model_type, settings), inputs)


def _translator(model_type: str, settings: dict[str, Any] = TRANSLATOR) -> PreTrainedModel:
    drops = {"encoder_layerdrop": 0.0, "decoder_layerdrop": 0.0}  # M2M-100 leaves layers out at random in training
    model = made(AutoModelForSeq2SeqLM, model_type, {**settings, **drops})
    model.generation_config.max_length = 24
    return model


_SPECIAL: dict[str, Any] = dict(pad_token_id=0, bos_token_id=1, eos_token_id=2)
_GPT: dict[str, Any] = dict(vocab_size=99, n_positions=40, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS, **_SPECIAL)
_LLAMA: dict[str, Any] = {**TEXT, "num_key_value_heads": 2, "head_dim": 8, "tie_word_embeddings": False}
_T5: dict[str, Any] = dict(
    vocab_size=99, d_model=WIDTH, d_kv=8, d_ff=48, num_layers=LAYERS, num_heads=HEADS, decoder_start_token_id=0
)
_ENCODERS = "camembert data2vec-text electra ernie layoutlm roberta xlm-roberta xlm-roberta-xl"
_TRANSLATORS = "bart blenderbot blenderbot-small m2m_100 mbart pegasus plbart"
TEXT_TWINS: dict[str, Twin] = {
    one.name: one
    for one in (
        *(twin(AutoModelForMaskedLM, name, TEXT) for name in _ENCODERS.split()),
        *(Twin(name, name, partial(_translator, name), text_to_text_inputs) for name in _TRANSLATORS.split()),
        twin(AutoModelForCausalLM, "bert-generation", {**TEXT, "is_decoder": True}),
        twin(
            AutoModelForMaskedLM,
            "distilbert",
            dict(vocab_size=99, dim=WIDTH, n_layers=LAYERS, n_heads=HEADS, hidden_dim=48, max_position_embeddings=40),
        ),
        twin(AutoModelForCausalLM, "opt", {**TEXT, "ffn_dim": 48, "word_embed_proj_dim": WIDTH}),
        twin(AutoModelForCausalLM, "biogpt", TEXT),
        twin(
            AutoModelForCausalLM,
            "xglm",
            dict(
                vocab_size=99,
                d_model=WIDTH,
                num_layers=LAYERS,
                attention_heads=HEADS,
                ffn_dim=48,
                max_position_embeddings=40,
            ),
        ),
        twin(AutoModelForCausalLM, "gpt2", _GPT),
        twin(AutoModelForCausalLM, "gpt_bigcode", _GPT),
        twin(
            AutoModelForCausalLM,
            "gpt_neo",
            {
                **_SPECIAL,
                **dict(
                    vocab_size=99, max_position_embeddings=40, hidden_size=WIDTH, num_layers=LAYERS, num_heads=HEADS
                ),
                **dict(intermediate_size=48, attention_types=[[["global", "local"], 1]], window_size=4),
            },
        ),
        twin(
            AutoModelForCausalLM,
            "bloom",
            dict(vocab_size=99, hidden_size=WIDTH, n_layer=LAYERS, n_head=HEADS, **_SPECIAL),
        ),
        twin(AutoModelForMaskedLM, "albert", {**TEXT, "embedding_size": 16, "num_hidden_layers": 3}),
        *(twin(AutoModelForCausalLM, name, _LLAMA) for name in ["gemma", "granite", "llama", "mistral", "phi3"]),
        *(twin(AutoModelForCausalLM, name, {**_LLAMA, "max_window_layers": LAYERS}) for name in ("qwen2", "qwen3")),
        twin(AutoModelForCausalLM, "phi", {**TEXT, "num_key_value_heads": 2}),
        twin(AutoModelForCausalLM, "gpt_neox", TEXT),
        twin(
            AutoModelForMaskedLM,
            "modernbert",
            {**TEXT, "cls_token_id": 3, "sep_token_id": 2, "local_attention": 8, "global_attn_every_n_layers": 2},
        ),
        twin(AutoModelForMaskedLM, "esm", {**TEXT, "position_embedding_type": "rotary", "mask_token_id": 4}),
        Twin("t5", "t5", partial(_translator, "t5", _T5), text_to_text_inputs),
        Twin("mt5", "mt5", partial(_translator, "mt5", _T5), text_to_text_inputs),
    )
}
