"""The methods: built in, one file each, or registered by another package under the entry point `hf_heads.methods`.

The package is itself a mapping from names to methods: `list(hf_heads.methods)`, `hf_heads.methods["collab"]`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType

from hf_heads.attention.spec import HeadsSpec
from hf_heads.methods.base import Method
from hf_heads.methods.registry import all_methods, get_method, load


class _Methods(ModuleType):
    """This package as a mapping; a method's file is imported when it is first asked for."""

    def __getitem__(self, name: str) -> Method:
        if name not in self:
            raise KeyError(name)
        return load(name)

    def __iter__(self) -> Iterator[str]:
        return iter(all_methods())

    def __contains__(self, name: object) -> bool:
        return name in all_methods()

    def __len__(self) -> int:
        return len(all_methods())


sys.modules[__name__].__class__ = _Methods
__all__ = ["HeadsSpec", "Method", "all_methods", "get_method"]
