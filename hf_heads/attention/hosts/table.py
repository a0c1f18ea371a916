"""The table of architectures: where each one keeps its attention. No method is known here, and no torch.

A new architecture is a row in `ADAPTERS` and a tiny twin in `tests/support/`.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection
from dataclasses import replace
from functools import cache, partial
from importlib.metadata import entry_points
from typing import Any, Literal

from hf_heads.attention.hosts.sites import NEEDS, AttentionAdapter, AttentionSite, Kind, Modality
from hf_heads.core.errors import HeadsError
from hf_heads.core.nearest import did_you_mean

_named = partial(AttentionSite, query="query", key="key", value="value", heads="num_attention_heads")
_bert_site = partial(_named, output="../output.dense")
_vit_site = partial(AttentionSite, "self", output="o_proj", heads="num_attention_heads")
_decoder_site = partial(AttentionSite, query_mask="decoder_attention_mask")

# Architectures that keep their attention where another one does are a word in its row.
_LIKE_BERT = "bert bert-generation electra ernie layoutlm"
_LIKE_ROBERTA = "camembert data2vec-text roberta xlm-roberta xlm-roberta-xl"
_LIKE_WAV2VEC2 = "data2vec-audio hubert unispeech unispeech-sat wav2vec2"
_LIKE_MARIAN = {
    "bart": "Bart",
    "blenderbot": "Blenderbot",
    "blenderbot-small": "BlenderbotSmall",
    "m2m_100": "M2M100",
    "marian": "Marian",
    "mbart": "MBart",
    "pegasus": "Pegasus",
    "plbart": "PLBart",
}


def _like_bert(model_type: str, after_padding: bool = False) -> AttentionAdapter:
    layer = r"encoder\.layer\.\d+"
    sites = (
        _bert_site("self", rf"{layer}\.attention\.self"),
        _bert_site("cross", rf"{layer}\.crossattention\.self", memory="encoder_hidden_states"),
    )
    return AttentionAdapter(model_type, "text", sites, decoder_flag="is_decoder", after_padding=after_padding)


def _like_marian(model_type: str, name: str) -> AttentionAdapter:
    sites = (
        AttentionSite("self", r"encoder\.layers\.\d+\.self_attn"),
        _decoder_site("causal", r"decoder\.layers\.\d+\.self_attn"),
        _decoder_site("cross", r"decoder\.layers\.\d+\.encoder_attn", memory="key_value_states"),
    )
    parts = ((f"{name}Encoder", "encoder"), (f"{name}Decoder", "decoder"))
    return AttentionAdapter(model_type, "text-to-text", sites, parts=parts)


def _image(model_type: str, pattern: str, **more: Any) -> AttentionAdapter:
    return AttentionAdapter(model_type, "image", (_vit_site(pattern, **more),))


def _sound(model_type: str) -> AttentionAdapter:
    return AttentionAdapter(model_type, "audio", (AttentionSite("self", r"encoder\.layers\.\d+\.attention"),))


_TOWER_KINDS: dict[str, dict[str, Kind]] = {
    "clip": {"text": "causal", "vision": "self"},
    "siglip": {"text": "self", "vision": "self"},
}


def _tower_site(name: str, tower: str, before: str = "") -> AttentionSite:
    return AttentionSite(_TOWER_KINDS[name][tower], rf"{before}encoder\.layers\.\d+\.self_attn", scale="scale")


def _tower(name: str, tower: Literal["text", "vision"]) -> AttentionAdapter:
    modality: Modality = "text" if tower == "text" else "image"
    return AttentionAdapter(f"{name}_{tower}_model", modality, (_tower_site(name, tower),))


def _two_towers(name: str) -> AttentionAdapter:
    sites = tuple(_tower_site(name, tower, rf"{tower}_model\.") for tower in ("text", "vision"))
    positions = "text_config.max_position_embeddings"
    return AttentionAdapter(name, "text-image", sites, positions=positions, runs=("vision_model", "text_model"))


_ONE_KEY = "all of its heads read one key and value head already"
_gpt_site = partial(AttentionSite, "causal", after="resid_dropout")
_bigcode_site = _gpt_site(
    r"h\.\d+\.attn", fused="c_attn", output="c_proj", kv_heads="kv_heads", interleaved="made_head_by_head"
)
_neo_site = _gpt_site(r"h\.\d+\.attn\.attention", scale="no_scale", index="layer_id", bias="local_window")
_bloom_site = partial(AttentionSite, "causal", r"h\.\d+\.self_attention", output="dense", scale="inv_norm_factor")(
    fused="query_key_value", interleaved=True, bias="alibi", after="residual", of_heads=True
)
_albert_site = _named(
    "self",
    r"encoder\.albert_layer_groups\.\d+\.albert_layers\.\d+\.attention",
    output="dense",
    after="residual_and_norm",
)
_esm_site = _bert_site(
    "self", r"encoder\.layer\.\d+\.attention\.self", encode="rotary", scale="root_of_attention_head_size"
)

_LIKE_LLAMA = "gemma granite llama mistral qwen2"
_NEOX: dict[str, Any] = {
    "fused": "query_key_value",
    "interleaved": True,
    "output": "dense",
    "kv_heads": None,
}
_MODERN: dict[str, Any] = {
    "fused": "Wqkv",
    "output": "Wo",
    "kv_heads": None,
    "scale": "root_of_head_dim",
    "after": "out_drop",
}


def _like_llama(
    model_type: str, pattern: str = r"layers\.\d+\.self_attn", kind: Kind = "causal", **changes: Any
) -> AttentionAdapter:
    heads = {"heads": "config.num_attention_heads", "kv_heads": "config.num_key_value_heads"}
    settings = {**heads, "output": "o_proj", "encode": "rotary", **changes}
    return AttentionAdapter(model_type, "text", (AttentionSite(kind, pattern, **settings),))


def _like_t5(model_type: str) -> AttentionAdapter:
    site = partial(AttentionSite, query="q", key="k", value="v", output="o", heads="n_heads", mask="mask")
    site = partial(site, bias="relative_positions", of_heads=True, returns="with_positions", weights=2)
    causal = partial(site, query_mask="decoder_attention_mask")
    sites = (
        site("self", r"encoder\.block\.\d+\.layer\.0\.SelfAttention"),
        causal("causal", r"decoder\.block\.\d+\.layer\.0\.SelfAttention"),
        causal("cross", r"decoder\.block\.\d+\.layer\.1\.EncDecAttention", memory="key_value_states"),
    )
    return AttentionAdapter(model_type, "text-to-text", sites)


ADAPTERS: dict[str, AttentionAdapter] = {
    adapter.model_type: adapter
    for adapter in (
        *(_like_bert(model_type) for model_type in _LIKE_BERT.split()),
        *(_like_bert(model_type, after_padding=True) for model_type in _LIKE_ROBERTA.split()),
        AttentionAdapter(
            "distilbert",
            "text",
            (
                AttentionSite(
                    "self", r"transformer\.layer\.\d+\.attention", "q_lin", "k_lin", "v_lin", "out_lin", heads="n_heads"
                ),
            ),
        ),
        _image("vit", r"layers\.\d+\.attention"),
        _image("vit_msn", r"layers\.\d+\.attention"),
        _image("deit", r"layers\.\d+\.attention"),
        _image("ijepa", r"layers\.\d+\.attention"),
        _image("dinov2", r"encoder\.layer\.\d+\.attention"),
        _image("dinov2_with_registers", r"encoder\.layer\.\d+\.attention"),
        *(_like_marian(*names) for names in _LIKE_MARIAN.items()),
        _image("beit", r"layers\.\d+\.attention", of_heads=True),
        replace(_image("vit_mae", r"layers\.\d+\.attention"), also="patch_noise"),
        *(_sound(model_type) for model_type in _LIKE_WAV2VEC2.split()),
        replace(_like_marian("whisper", "Whisper"), modality="audio-to-text", positions="max_target_positions"),
        *(_tower(name, kind) for name in ("clip", "siglip") for kind in ("text", "vision")),
        *(_two_towers(name) for name in ("clip", "siglip")),
        AttentionAdapter("gpt2", "text", (_gpt_site(r"h\.\d+\.attn", fused="c_attn", output="c_proj"),)),
        AttentionAdapter("gpt_bigcode", "text", (_bigcode_site,), refuses={"mhe": _ONE_KEY}),
        AttentionAdapter("gpt_neo", "text", (_neo_site,)),
        AttentionAdapter("bloom", "text", (_bloom_site,)),
        AttentionAdapter("albert", "text", (_albert_site,)),
        *(_like_llama(model_type) for model_type in _LIKE_LLAMA.split()),
        _like_llama("qwen3", encode="normed_rotary"),
        _like_llama("phi", encode="normed_rotary", output="dense"),
        _like_llama("phi3", fused="qkv_proj"),
        _like_llama("gpt_neox", r"layers\.\d+\.attention", **_NEOX),
        _like_llama("modernbert", r"layers\.\d+\.attn", kind="self", **_MODERN),
        replace(_like_bert("esm", after_padding=True), sites=(_esm_site,)),
        *(_like_t5(model_type) for model_type in ("t5", "mt5")),
        AttentionAdapter("opt", "text", (AttentionSite("causal", r"decoder\.layers\.\d+\.self_attn"),)),
        AttentionAdapter("biogpt", "text", (AttentionSite("causal", r"layers\.\d+\.self_attn"),)),
        AttentionAdapter("xglm", "text", (AttentionSite("causal", r"layers\.\d+\.self_attn"),)),
    )
}
_ROTARY = "no row says how it turns its keys by their positions"
_RELATIVE = "its scores depend on relative positions, which the decomposition of the weights does not see"
REFUSED: dict[str, str] = {
    "blip": "its captioners have blocks that BlipModel lacks, and no data here has images to write of",
    "roformer": _ROTARY,
    "deberta": _RELATIVE,
    "deberta-v2": _RELATIVE,
    "mpnet": _RELATIVE,
    "xlnet": _RELATIVE,
}


@cache
def architectures() -> dict[str, AttentionAdapter]:
    """All rows by model type: those of the table, and those of other packages (entry points `hf_heads.architectures`).

    A row of another package that cannot be loaded is left out with a warning: it must not stop every program that
    imports transformers.
    """
    found = dict(ADAPTERS)
    for point in entry_points(group="hf_heads.architectures"):
        try:
            adapter = point.load()
        except Exception as error:
            warnings.warn(f"hf-heads: the architecture '{point.name}' cannot be loaded: {error!r}", stacklevel=2)
            continue
        if not isinstance(adapter, AttentionAdapter) or adapter.model_type != point.name:
            warnings.warn(f"hf-heads: the entry point '{point.name}' is no AttentionAdapter of that type", stacklevel=2)
        elif point.name not in found:
            found[point.name] = adapter
    return found


def refusal(config: Any) -> str | None:
    """Why a model with this config cannot be converted, in one line, or None when it can.

    Args:
        config: a transformers config, native or of a derived model type.
    """
    model_type = config.model_type.removeprefix("heads_")
    reason = REFUSED.get(model_type)
    if reason is None and str(getattr(config, "position_embedding_type", None)).startswith("relative"):
        reason = _RELATIVE
    known = architectures()
    if reason is None and model_type not in known and getattr(config, "rope_parameters", None):
        reason = _ROTARY
    if reason is not None:
        return f"cannot convert '{model_type}': {reason}. Architectures that can: {', '.join(sorted(known))}"
    if model_type not in known:
        return (
            f"no adapter for '{model_type}'{did_you_mean(model_type, known)}. Known: {', '.join(sorted(known))}. "
            "Add a row in hf_heads/attention/hosts/table.py, "
            "or register one from a package of your own (hf_heads.extend)"
        )
    return None


def reasons_against(adapter: AttentionAdapter, name: str, handles: Collection[str]) -> str | None:
    """Why a method cannot be used on an architecture, or None where it can.

    Args:
        name: of the method.
        handles: which of `NEEDS` it can do.
    """
    wanted = {need: None for site in adapter.sites for need in site.needs}
    lacking = next((NEEDS[need] for need in wanted if need not in handles), None)
    return adapter.refuses.get(name, lacking)


def adapter_of(config: Any) -> AttentionAdapter:
    """The row for a model config.

    Raises:
        HeadsError: there is no row, or the architecture is refused, with the reason.
    """
    if message := refusal(config):
        raise HeadsError(message)
    return architectures()[config.model_type.removeprefix("heads_")]


def positions_of(config: Any) -> int | None:
    """The most tokens that a model with this config takes; None where nothing limits them.

    Args:
        config: a transformers config, native or of a derived model type, of a model or of its tower for texts.
    """
    adapter = architectures().get(config.model_type.removeprefix("heads_"))
    return None if adapter is None else adapter.limit(config)
