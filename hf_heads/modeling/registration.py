"""Registers the derived configs as soon as, and no sooner than, transformers' table of configs is imported.

Importing it costs seconds; a program that imports hf_heads and never loads a model should not pay that. Nor are the
config classes of all architectures made then: each is when a checkpoint first asks for it. PEFT's tables of default
targets learn of the derived types in the same way.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

from hf_heads import models

_CONFIGS = "transformers.models.auto.configuration_auto"


_TARGETS = "peft.utils.constants"


class _RegisterAfterwards(importlib.abc.Loader):
    """The loader of a table, with our registration after it."""

    def __init__(self, loader: importlib.abc.Loader, then: Callable[[ModuleType], None]) -> None:
        self.loader, self.then = loader, then

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        self.then(module)


class _Finder(importlib.abc.MetaPathFinder):
    """Wraps the loaders of the tables."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name not in _TABLES:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _RegisterAfterwards(spec.loader, _TABLES[name])
        return spec


def _register(configs: Any) -> None:
    from hf_heads.attention.hosts.table import architectures  # looks through all that is installed
    from hf_heads.core.vocabulary import PREFIX  # see above
    from hf_heads.modeling.internals import register_config  # see above

    for model_type, adapter in architectures().items():
        if adapter.package or model_type in configs.CONFIG_MAPPING_NAMES:  # an older transformers may not know it
            register_config(configs.CONFIG_MAPPING, PREFIX + model_type, _config_class)


def _offer_targets(_: Any) -> None:
    from hf_heads.attention.hosts.table import architectures  # looks through all that is installed
    from hf_heads.modeling.peft_targets import offer_targets  # see above

    for adapter in architectures().values():
        offer_targets(adapter)


_TABLES: dict[str, Callable[[Any], None]] = {_CONFIGS: _register, _TARGETS: _offer_targets}


def _config_class(model_type: str) -> type[Any]:
    from hf_heads.modeling.configuration import derived_class  # needs transformers, which is there by now

    return derived_class(model_type)


def _class_by_name(name: str) -> type | None:
    from hf_heads.modeling.classes import class_by_name  # takes seconds, and only who unpickles a class needs it

    return class_by_name(name)


def _derive(config: type[Any]) -> None:
    from hf_heads.modeling.classes import derive  # takes seconds, and only who builds a config needs it

    derive(config)


def register() -> None:
    """Register now in the tables that are there, and in others when they are imported."""
    vars(models).update(resolver=_class_by_name, deriver=_derive)
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
    if hasattr(sys.modules.get(_CONFIGS), "CONFIG_MAPPING"):
        _register(sys.modules[_CONFIGS])
    if hasattr(sys.modules.get(_TARGETS), "TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING"):
        _offer_targets(sys.modules[_TARGETS])
