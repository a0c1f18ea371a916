"""Derived configs: a host's own config with one more field, `heads`, that says what every attention block is.

`config.json` then holds

    "model_type": "heads_bert",
    "heads": {"format": 1, "blocks": {"encoder.layer.0.attention.self": {"method": "collab", "rank": 96, ...}, ...}}
"""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
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
from hf_heads.modeling.auto_classes import auto_classes

FORMAT = 1
_STUB = "heads_remote"
GUARD = (
    "this checkpoint has re-parametrized attention heads and a native class would load it with random attention; "
    "`import hf_heads` and load it with AutoModel or any AutoModelForX"
)

_building_ours: ContextVar[bool] = ContextVar("_building_ours", default=False)


@contextmanager
def building_ours() -> Iterator[None]:
    """While a class of ours builds itself from its host's parts, these may take its config."""
    token = _building_ours.set(True)
    try:
        yield
    finally:
        _building_ours.reset(token)


class HeadsConfig:
    """What every derived config has on top of its host's.

    Attributes:
        heads: the config section described above; None or an empty section is the host's own attention.
    """

    heads: dict[str, Any] | None
    model_type: str
    _name_or_path: str

    def __post_init__(self, **kwargs: Any) -> None:
        kwargs.pop("auto_map", None)  # as the guard, for those who load the file without us
        super().__post_init__(**internals.without_guard(kwargs))  # type: ignore[misc]
        self.block_specs()
        models.deriver(type(self))

    @property
    def name_or_path(self) -> str:
        """Where the config came from.

        Raises:
            HeadsError: a host's own class, or one derived from it, reads this to build a model without our attention.
        """
        model = None if _building_ours.get() else internals.model_being_built(sys._getframe(1))
        if model is not None and self.block_specs():
            host = architectures()[self.model_type.removeprefix(PREFIX)].modeling.__name__
            if any(base.__module__ == host for base in type(model).__mro__):
                raise HeadsError(f"{type(model).__name__} cannot be built from a {type(self).__name__}: {GUARD}")
        return self._name_or_path

    @name_or_path.setter
    def name_or_path(self, value: Any) -> None:
        self._name_or_path = str(value)

    def block_specs(self) -> dict[str, HeadsSpec]:
        """The settings of every converted block by name.

        Raises:
            HeadsError: the section is malformed or of a format newer than this package.
        """
        return parse_heads(self.heads)

    def to_dict(self) -> dict[str, Any]:
        """The config as written to `config.json`, with what makes other ways of loading it safe."""
        entries: dict[str, Any] = super().to_dict()  # type: ignore[misc]
        if self.heads:
            return {**internals.guarded(entries, GUARD), "auto_map": auto_map(type(self))}
        return entries

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """Write `config.json`, and beside it the module that `trust_remote_code=True` looks for."""
        super().save_pretrained(save_directory, *args, **kwargs)  # type: ignore[misc]
        if self.heads:
            write_stub(Path(save_directory), type(self))


def parse_heads(heads: Any) -> dict[str, HeadsSpec]:
    """The settings of every block from a config's `heads` section.

    Raises:
        HeadsError: the section is malformed or of a format newer than this package.
    """
    if not heads:
        return {}
    version = heads.get("format")
    if not isinstance(version, int) or version < 1:
        raise HeadsError(f"config.json: heads.format is {version!r}, expected a number from 1 to {FORMAT}")
    if version > FORMAT:
        raise HeadsError(
            f"config.json: heads.format {version} is newer than this hf-heads reads ({FORMAT}); upgrade hf-heads"
        )
    blocks = heads.get("blocks")
    if not isinstance(blocks, dict) or set(heads) - {"format", "blocks"}:
        raise HeadsError("config.json: heads must hold format and blocks, and nothing else")
    specs = {}
    for name, entry in blocks.items():
        if not isinstance(entry, dict) or "method" not in entry:
            raise HeadsError(f"config.json: heads.blocks['{name}'] names no method")
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


def host_config_class(adapter: AttentionAdapter) -> type[PreTrainedConfig] | None:
    """The host's own config class; None while its module is still being imported."""
    configs = (
        value
        for value in vars(adapter.configuration).values()
        if isinstance(value, type) and issubclass(value, PreTrainedConfig)
    )
    return next((value for value in configs if value.model_type == adapter.model_type), None)


@cache
def config_class(adapter: AttentionAdapter) -> type[HeadsConfig]:
    """The derived config class of an architecture, `HeadsBertConfig` for bert."""
    native = host_config_class(adapter)
    assert native is not None
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


def auto_map(config: type[HeadsConfig]) -> dict[str, str]:
    """The `auto_map` of `config.json`: which class of the stub serves which Auto class."""
    adapter = architectures()[config.model_type.removeprefix(PREFIX)]
    names = {name: f"Heads{native}" for name, native in auto_classes(adapter).items()}
    return {
        "AutoConfig": f"{_STUB}.{config.__name__}",
        **{auto: f"{_STUB}.{name}" for auto, name in names.items()},
    }


def write_stub(directory: Path, config: type[HeadsConfig]) -> None:
    """Write the module through which `trust_remote_code=True` reaches hf_heads."""
    names = sorted({entry.rpartition(".")[2] for entry in auto_map(config).values()})
    (directory / f"{_STUB}.py").write_text(
        '"""Reaches hf-heads (pip install hf-heads), where the classes of this checkpoint are made."""\n\n'
        f"from hf_heads.models import {', '.join(names)}  # noqa: F401\n",
        encoding="utf-8",
    )


def register_configs() -> None:
    """Tell transformers' AutoConfig of every derived model type whose host's config can be had by now."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING, AutoConfig  # which imports us on its way

    for adapter in architectures().values():
        model_type = PREFIX + adapter.model_type
        if model_type not in CONFIG_MAPPING and host_config_class(adapter) is not None:
            AutoConfig.register(model_type, config_class(adapter))
