"""Registers the derived configs as soon as, and no sooner than, transformers' Auto classes are imported.

Importing them costs seconds; a program that imports hf_heads and never loads a model should not pay that. Hosts' config
modules and the Auto modules import each other, in an order that depends on what the program asks for first; so after
each of them we register what is complete by then.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import re
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from hf_heads import models

_CONFIGS = "transformers.models.auto.configuration_auto"
_MODELS = "transformers.models.auto.modeling_auto"
_WATCHED = re.compile(rf"{re.escape(_MODELS)}|transformers\.models\.\w+\.configuration_\w+")
_running: set[str] = set()


class _RegisterAfterwards(importlib.abc.Loader):
    """The loader of a watched module, with our registration after it."""

    def __init__(self, loader: importlib.abc.Loader) -> None:
        self.loader = loader

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        _running.add(module.__name__)
        try:
            self.loader.exec_module(module)
        finally:
            _running.discard(module.__name__)
        _register()


class _Finder(importlib.abc.MetaPathFinder):
    """Wraps the loaders of the watched modules."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if not _WATCHED.fullmatch(name):
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _RegisterAfterwards(spec.loader)
        return spec


def _register() -> None:
    if _CONFIGS not in sys.modules or _running & {_CONFIGS, _MODELS, __name__}:
        return
    _running.add(__name__)  # registering imports watched modules itself
    try:
        from hf_heads.modeling.configuration import register_configs  # needs transformers, which is there by now

        register_configs()
    finally:
        _running.discard(__name__)


def _class_by_name(name: str) -> type | None:
    from hf_heads.modeling.classes import class_by_name  # takes seconds, and only who unpickles a class needs it

    return class_by_name(name)


def _derive(config: type[Any]) -> None:
    from hf_heads.modeling.classes import derive  # takes seconds, and only who builds a config needs it

    derive(config)


def register() -> None:
    """Register now what can be, and the rest when its modules are imported."""
    vars(models).update(resolver=_class_by_name, deriver=_derive)
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
    _register()
