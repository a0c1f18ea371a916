"""A block's settings in words, and which method can be used where."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from hf_heads.attention.hosts.table import architectures, reasons_against
from hf_heads.methods.registry import about, all_methods


def settings_text(block: dict[str, Any]) -> str:
    """A block's settings in a few words, such as `collab rank 96 cp, 12 heads`."""
    names = [item.name for item in fields(about(block["method"]).spec) if item.metadata["told"]]
    stored = {name: block[name] for name in names if name in block}
    words = [value if isinstance(value, str) else f"{name} {value}" for name, value in stored.items()]
    return " ".join([block["method"], *words]) + f", {block['heads']} heads"


def refusals() -> dict[str, dict[str, str | None]]:
    """By architecture and method, why the one does not allow the other; None where it does."""
    methods = {name: about(name) for name in all_methods()}
    return {
        model_type: {
            name: method.reason_against.get(model_type) or reasons_against(adapter, name, method.handles)
            for name, method in methods.items()
        }
        for model_type, adapter in sorted(architectures().items())
    }
