"""Transformers' Auto classes, and what they hold for an architecture."""

from __future__ import annotations

import importlib
from functools import cache
from typing import Any

from transformers import PreTrainedConfig

from hf_heads.attention.hosts.sites import AttentionAdapter
from hf_heads.modeling import internals


@cache
def auto_mappings() -> dict[str, Any]:
    """Transformers' model Auto classes by name."""
    return internals.mappings_of_auto_classes()


def native_class(adapter: AttentionAdapter, name: str) -> Any:
    """A model class of an architecture, wherever transformers keeps it."""
    found = getattr(adapter.modeling, name, None)
    return getattr(importlib.import_module("transformers"), name) if found is None else found


@cache
def served_classes(adapter: AttentionAdapter) -> dict[str, tuple[str, ...]]:
    """The names of an architecture's classes by the Auto class that they serve, the one that it prefers first.

    Where none does, as for SigLIP's text model, AutoModel makes the derived ones all the same.
    """
    found = {name: internals.served_classes(auto, adapter.model_type) for name, auto in auto_mappings().items()}
    served = {
        name: own
        for name, natives in found.items()
        if (own := tuple(native for native in natives if _is_own(adapter, native)))
    }
    return served or {"AutoModel": _models_of(adapter)}


def _models_of(adapter: AttentionAdapter) -> tuple[str, ...]:
    """The names of the models that an architecture's module has for it."""
    from transformers import PreTrainedModel  # takes seconds

    return tuple(
        name
        for name, value in vars(adapter.modeling).items()
        if isinstance(value, type) and issubclass(value, PreTrainedModel) and _is_own(adapter, name)
    )


def _is_own(adapter: AttentionAdapter, name: str) -> bool:
    """Whether a class is this architecture's own, and not one that several of them share."""
    config = getattr(native_class(adapter, name), "config_class", None)
    return getattr(config, "model_type", None) == adapter.model_type


@cache
def auto_classes(adapter: AttentionAdapter) -> dict[str, str]:
    """The name of the architecture's class by the Auto class that prefers it."""
    return {auto: names[0] for auto, names in served_classes(adapter).items()}


def host_config_class(adapter: AttentionAdapter) -> type[PreTrainedConfig]:
    """The host's own config class."""
    configs = (
        value
        for value in vars(adapter.configuration).values()
        if isinstance(value, type) and issubclass(value, PreTrainedConfig)
    )
    return next(value for value in configs if value.model_type == adapter.model_type)
