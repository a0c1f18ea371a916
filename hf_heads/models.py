"""The derived classes by name (`HeadsBertModel`, `CollabMarianAttention`, ...), made when they are first asked for.

Classes that are made at run time pickle, and are found by transformers, only if their module hands them out by name.
"""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    from hf_heads.modeling.classes import class_by_name

    if name.startswith("__") or (made := class_by_name(name)) is None:
        raise AttributeError(f"module 'hf_heads.models' has no attribute '{name}'")
    return made
