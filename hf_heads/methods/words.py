"""A block's settings in words."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from hf_heads.methods.registry import about


def settings_text(block: dict[str, Any]) -> str:
    """A block's settings in a few words, such as `collab rank 96 cp, 12 heads`."""
    names = [item.name for item in fields(about(block["method"]).spec) if item.name != "heads"]
    stored = {name: block[name] for name in names if name in block}
    words = [value if isinstance(value, str) else f"{name} {value}" for name, value in stored.items()]
    return " ".join([block["method"], *words]) + f", {block['heads']} heads"
