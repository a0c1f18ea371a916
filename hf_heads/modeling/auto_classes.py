"""Transformers' Auto classes, and what they hold for an architecture."""

from __future__ import annotations

from functools import cache
from typing import Any

from transformers import PreTrainedConfig

from hf_heads.attention.hosts.sites import AttentionAdapter
from hf_heads.modeling import internals


@cache
def auto_mappings() -> dict[str, Any]:
    """Transformers' model Auto classes by name."""
    return internals.mappings_of_auto_classes()


@cache
def auto_classes(adapter: AttentionAdapter) -> dict[str, str]:
    """The names of an architecture's classes by the Auto class that they serve."""
    found = {name: internals.served_class(auto, adapter.model_type) for name, auto in auto_mappings().items()}
    return {name: native for name, native in found.items() if native is not None}


def host_config_class(adapter: AttentionAdapter) -> type[PreTrainedConfig] | None:
    """The host's own config class; None while its module is still being imported."""
    configs = (
        value
        for value in vars(adapter.configuration).values()
        if isinstance(value, type) and issubclass(value, PreTrainedConfig)
    )
    return next((value for value in configs if value.model_type == adapter.model_type), None)
