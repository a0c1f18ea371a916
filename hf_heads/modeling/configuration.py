"""Derived configs: a host's own config with one more field, `heads`, that says what every attention block is.

`config.json` then holds

    "model_type": "heads_bert",
    "heads": {"format": 1, "blocks": {"encoder.layer.0.attention.self": {"method": "collab", "rank": 96, ...}, ...}}
"""

from __future__ import annotations

import copy
import os
from functools import cache
from pathlib import Path
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from hf_heads import models
from hf_heads.attention.hosts.sites import AttentionAdapter
from hf_heads.attention.hosts.table import architectures
from hf_heads.attention.spec import HeadsSpec
from hf_heads.core.errors import HeadsError
from hf_heads.core.vocabulary import PREFIX
from hf_heads.methods.registry import get_method
from hf_heads.modeling import internals
from hf_heads.modeling.auto_classes import host_config_class
from hf_heads.modeling.guarded import FORMAT, GuardedConfig, block_entries
from hf_heads.modeling.portable.writing import derived_classes, module_name, write_code


class HeadsConfig(GuardedConfig):
    """What every derived config has on top of its host's; its classes are made and registered with the first one."""

    def __post_init__(self, **kwargs: Any) -> None:
        kwargs.pop("auto_map", None)  # as the guard, for those who load the file without us
        super().__post_init__(**kwargs)
        models.deriver(type(self))

    @classmethod
    def heads_adapter(cls) -> AttentionAdapter:
        """The row of the architecture."""
        return architectures()[cls.model_type.removeprefix(PREFIX)]

    def block_specs(self) -> dict[str, HeadsSpec]:
        """The settings of every converted block by name.

        Raises:
            HeadsError: the section is malformed or of a format newer than this package.
        """
        return parse_heads(self.heads)

    def remote_classes(self) -> dict[str, str]:
        """The `auto_map` of `config.json`: which class of the code beside it serves which Auto class."""
        adapter = self.heads_adapter()
        module = module_name(adapter, self._methods())
        names = {"AutoConfig": type(self).__name__, **derived_classes(adapter)}
        return {auto: f"{module}.{name}" for auto, name in names.items()}

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """Write `config.json`, and beside it the module that `trust_remote_code=True` looks for."""
        super().save_pretrained(save_directory, *args, **kwargs)  # type: ignore[misc]
        if self.heads:
            write_code(Path(save_directory), self.heads_adapter(), self._methods())

    def _methods(self) -> tuple[str, ...]:
        return tuple(sorted({spec.method for spec in self.block_specs().values()}))


def parse_heads(heads: Any) -> dict[str, HeadsSpec]:
    """The settings of every block from a config's `heads` section.

    Raises:
        HeadsError: the section is malformed or of a format newer than this package.
    """
    specs = {}
    for name, entry in block_entries(heads).items():
        settings = {key: value for key, value in entry.items() if key != "method"}
        method = get_method(entry["method"])
        spec = method.spec.resolved().from_mapping(settings, where=f"config.json: heads.blocks['{name}']")
        if spec.heads is None or spec.heads < 0:
            raise HeadsError(f"config.json: heads.blocks['{name}'] does not say how many heads it has")
        specs[name] = spec
    return specs


def heads_section(specs: dict[str, HeadsSpec]) -> dict[str, Any]:
    """The config section that `parse_heads` reads."""
    return {"format": FORMAT, "blocks": {name: spec.to_config() for name, spec in specs.items()}}


def derived_class(model_type: str) -> type[HeadsConfig]:
    """The derived config class of a derived model type."""
    return config_class(architectures()[model_type.removeprefix(PREFIX)])


@cache
def config_class(adapter: AttentionAdapter) -> type[HeadsConfig]:
    """The derived config class of an architecture, `HeadsBertConfig` for bert."""
    native = host_config_class(adapter)
    name = f"Heads{native.__name__}"
    namespace = {
        "__module__": "hf_heads.models",
        "__qualname__": name,
        "__doc__": f"{native.__name__} with the settings of re-parametrized attention heads.",
        "__annotations__": {"heads": dict[str, Any] | None},
        "model_type": PREFIX + adapter.model_type,
        "heads": None,
    }
    # `strict`, which makes transformers check field types, is not inherited.
    return strict(type(name, (HeadsConfig, native), namespace))


def native_entries(config: PreTrainedConfig) -> dict[str, Any]:
    """The entries of a config, native or derived, that its host's own config class takes."""
    ours = ("model_type", "heads", "auto_map", "transformers_version")
    entries = internals.without_guard(copy.deepcopy(config.to_dict()))
    return {name: value for name, value in entries.items() if name not in ours}


def derived_config(config: PreTrainedConfig, specs: dict[str, HeadsSpec]) -> Any:
    """A derived config with everything of `config` and the settings of the converted blocks."""
    adapter = architectures()[config.model_type.removeprefix(PREFIX)]
    made = config_class(adapter)(**native_entries(config), heads=heads_section(specs))  # type: ignore[call-arg]
    internals.copy_choices(config, made)
    return made
