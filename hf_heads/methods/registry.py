"""The methods by name: built in, or registered under the entry point `hf_heads.methods`."""

from __future__ import annotations

import importlib
from functools import cache
from importlib.metadata import EntryPoint, entry_points

from hf_heads.core.errors import HeadsError
from hf_heads.core.nearest import did_you_mean
from hf_heads.methods.base import About, Method

_BUILT_IN = {"collab": "collab", "low-rank": "low_rank", "mgk": "mgk", "mhe": "mhe", "pruned": "pruned"}


def built_in(name: str) -> bool:
    """Whether the method called `name` is one of this package."""
    return name in _BUILT_IN


@cache
def registered() -> dict[str, EntryPoint]:
    """The methods of other packages; all that is installed is searched once, which takes a while."""
    return {point.name: point for point in entry_points(group="hf_heads.methods") if point.name not in _BUILT_IN}


@cache
def load(name: str) -> Method:
    """The method called `name`, which must exist; its file is imported when it is first asked for."""
    if name in _BUILT_IN:
        method = importlib.import_module(f"hf_heads.methods.{_BUILT_IN[name]}").METHOD
    else:
        method = registered()[name].load()
    assert isinstance(method, Method)
    return method


def get_method(name: object) -> Method:
    """The method called `name`.

    Raises:
        HeadsError: there is none.
    """
    return load(_known(name))


def about(name: object) -> About | Method:
    """The settings, title and paper of the method called `name`; imports no torch, unless another package does.

    Raises:
        HeadsError: there is none.
    """
    known = _known(name)
    if known in _BUILT_IN:
        return importlib.import_module(f"hf_heads.methods.settings.{_BUILT_IN[known]}").ABOUT
    return load(known)


def all_methods() -> list[str]:
    """The names of all methods."""
    return sorted({*_BUILT_IN, *registered()})


def _known(name: object) -> str:
    """The same name, if it is that of a method."""
    if isinstance(name, str) and (name in _BUILT_IN or name in registered()):
        return name
    raise HeadsError(f"unknown method {name!r}{did_you_mean(name, all_methods())}. Known: {', '.join(all_methods())}")
