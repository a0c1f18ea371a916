"""Transformers' Auto classes, and what they hold for an architecture."""

from __future__ import annotations

import importlib
from functools import cache
from typing import Any

from hf_heads.hosts.table import AttentionAdapter


@cache
def auto_mappings() -> dict[str, Any]:
    """Transformers' model Auto classes by name."""
    auto = importlib.import_module("transformers.models.auto.modeling_auto")
    return {
        name: value
        for name, value in vars(auto).items()
        if name.startswith("AutoModel") and getattr(value, "_model_mapping", None) is not None
    }


@cache
def auto_classes(adapter: AttentionAdapter) -> dict[str, str]:
    """The names of an architecture's classes by the Auto class that they serve."""
    found = {}
    for name, auto in auto_mappings().items():
        native = auto._model_mapping._model_mapping.get(adapter.model_type)
        if isinstance(native, str):
            found[name] = native
    return found
