"""The derived classes by name (`HeadsBertModel`, `CollabMarianAttention`, ...), made when they are first asked for.

Classes that are made at run time pickle, and are found by transformers, only if their module hands them out by name.
Making them needs transformers, which takes seconds to import: `hf_heads.modeling.registration` says how it is done.
"""

from __future__ import annotations

from typing import Any


def resolver(name: str) -> type | None:
    """A derived class by its name; replaced at registration."""
    return None


def deriver(config: type[Any]) -> None:
    """Makes and registers the model classes of a derived config class; replaced at registration."""


def __getattr__(name: str) -> Any:
    if name.startswith("__") or (made := resolver(name)) is None:
        raise AttributeError(f"module 'hf_heads.models' has no attribute '{name}'")
    return made
