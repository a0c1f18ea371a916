"""The methods by name: built in, or registered under the entry point `hf_heads.methods`."""

from __future__ import annotations

import importlib
from functools import cache
from importlib.metadata import entry_points

from hf_heads.errors import HeadsError
from hf_heads.methods.base import Method

_BUILT_IN = {"collab": "collab", "low-rank": "low_rank", "mgk": "mgk", "mhe": "mhe", "pruned": "pruned"}


@cache
def load(name: str) -> Method:
    """The method called `name`, which must exist; its file is imported when it is first asked for."""
    if name in _BUILT_IN:
        method = importlib.import_module(f"hf_heads.methods.{_BUILT_IN[name]}").METHOD
    else:
        (point,) = (point for point in entry_points(group="hf_heads.methods") if point.name == name)
        method = point.load()
    assert isinstance(method, Method)
    return method


def get_method(name: object) -> Method:
    """The method called `name`.

    Raises:
        HeadsError: there is none.
    """
    known = all_methods()
    if name not in known:
        raise HeadsError(f"unknown method {name!r}. Known: {', '.join(known)}")
    return load(str(name))


def all_methods() -> list[str]:
    """The names of all methods."""
    return sorted({*_BUILT_IN, *(point.name for point in entry_points(group="hf_heads.methods"))})
