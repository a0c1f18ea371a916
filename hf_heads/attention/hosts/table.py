"""The table of architectures: where each one keeps its attention. No method is known here, and no torch.

A new architecture is a row in `ADAPTERS` and a tiny twin in `tests/support/twins.py`.
"""

from __future__ import annotations

import warnings
from functools import cache, partial
from importlib.metadata import entry_points
from typing import Any

from hf_heads.attention.hosts.sites import AttentionAdapter, AttentionSite
from hf_heads.core.errors import HeadsError

_bert_site = partial(
    AttentionSite, query="query", key="key", value="value", output="../output.dense", heads="num_attention_heads"
)
_decoder_site = partial(AttentionSite, query_mask="decoder_attention_mask")
ADAPTERS: dict[str, AttentionAdapter] = {
    adapter.model_type: adapter
    for adapter in (
        AttentionAdapter(
            "bert",
            "text",
            (
                _bert_site("self", r"encoder\.layer\.\d+\.attention\.self"),
                _bert_site(
                    "cross",
                    r"encoder\.layer\.\d+\.crossattention\.self",
                    memory="encoder_hidden_states",
                ),
            ),
            decoder_flag="is_decoder",
        ),
        AttentionAdapter(
            "vit",
            "image",
            (AttentionSite("self", r"layers\.\d+\.attention", output="o_proj", heads="num_attention_heads"),),
        ),
        AttentionAdapter(
            "marian",
            "text-to-text",
            (
                AttentionSite("self", r"encoder\.layers\.\d+\.self_attn"),
                _decoder_site("causal", r"decoder\.layers\.\d+\.self_attn"),
                _decoder_site("cross", r"decoder\.layers\.\d+\.encoder_attn", memory="key_value_states"),
            ),
            parts=(("MarianEncoder", "encoder"), ("MarianDecoder", "decoder")),
        ),
    )
}
_ROTARY = "its keys are rotated by position after projection, so heads cannot share one key space"
_RELATIVE = "its scores depend on relative positions, which the decomposition of the weights does not see"
REFUSED: dict[str, str] = {
    "llama": _ROTARY,
    "mistral": _ROTARY,
    "qwen2": _ROTARY,
    "gpt_neox": _ROTARY,
    "modernbert": _ROTARY,
    "roformer": _ROTARY,
    "t5": _RELATIVE,
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
    if reason is None and str(getattr(config, "position_embedding_type", None) or "absolute") != "absolute":
        reason = _RELATIVE
    known = architectures()
    if reason is None and model_type not in known and getattr(config, "rope_parameters", None):
        reason = _ROTARY
    if reason is not None:
        return f"cannot convert '{model_type}': {reason}. Architectures that can: {', '.join(sorted(known))}"
    if model_type not in known:
        return (
            f"no adapter for '{model_type}'. Known: {', '.join(sorted(known))}. "
            "Add a row in hf_heads/attention/hosts/table.py, "
            "or register one from a package of your own (hf_heads.extend)"
        )
    return None


def adapter_of(config: Any) -> AttentionAdapter:
    """The row for a model config.

    Raises:
        HeadsError: there is no row, or the architecture is refused, with the reason.
    """
    if message := refusal(config):
        raise HeadsError(message)
    return architectures()[config.model_type.removeprefix("heads_")]
