"""The methods: built in, one file each, or registered by another package under the entry point `hf_heads.methods`."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.metadata import entry_points

from ..errors import HeadsError
from .base import HeadsSpec, Method

_BUILT_IN = {"collab": "collab", "low-rank": "low_rank"}


class _Methods(Mapping[str, Method]):
    """Methods by name; a method's file is imported when it is first asked for."""

    def __getitem__(self, name: str) -> Method:
        if name not in self._names():
            raise KeyError(name)
        return _load(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names())

    def __len__(self) -> int:
        return len(self._names())

    @staticmethod
    def _names() -> list[str]:
        return sorted({*_BUILT_IN, *(point.name for point in entry_points(group="hf_heads.methods"))})


@cache
def _load(name: str) -> Method:
    if name in _BUILT_IN:
        method = importlib.import_module(f".{_BUILT_IN[name]}", __name__).METHOD
    else:
        (point,) = (point for point in entry_points(group="hf_heads.methods") if point.name == name)
        method = point.load()
    assert isinstance(method, Method)
    return method


methods: Mapping[str, Method] = _Methods()


def get_method(name: object) -> Method:
    """The method called `name`.

    Raises:
        HeadsError: there is none.
    """
    if name not in methods:
        raise HeadsError(f"unknown method {name!r}. Known: {', '.join(methods)}")
    return methods[str(name)]


__all__ = ["HeadsSpec", "Method", "get_method", "methods"]
