"""Everything of transformers that is not public and that we rest on: one small wrapper each, with a test each.

No other module names these things; what they do is pinned by `tests/modeling/test_internals.py`, which runs on the
lowest and the newest version that we support.

Imports of what takes seconds stand inside the functions: configs are made in programs that never load a model.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from types import FrameType

    from torch import nn
    from transformers import PreTrainedModel

_GUARD_KEY = "fusion_config"


def mappings_of_auto_classes() -> dict[str, Any]:
    """Transformers' model Auto classes by name."""
    auto = importlib.import_module("transformers.models.auto.modeling_auto")
    return {
        name: value
        for name, value in vars(auto).items()
        if name.startswith("AutoModel") and getattr(value, "_model_mapping", None) is not None
    }


def served_classes(auto_class: Any, model_type: str) -> tuple[str, ...]:
    """The names of the classes that an Auto class makes of a model type, the one that it prefers first."""
    native = auto_class._model_mapping._model_mapping.get(model_type)
    return (native,) if isinstance(native, str) else tuple(native or ())


def serve(auto_class: Any, config: type[Any], models: Sequence[type[Any]]) -> None:
    """Have an Auto class make one of these models of a config: the one that the config names, or else the first."""
    auto_class.register(config, models[0], exist_ok=True)
    if len(models) > 1:
        auto_class._model_mapping._extra_content[config] = tuple(models)


class _Configs(dict[str, Any]):
    """Config classes by model type, some of which are made when they are first asked for."""

    def __getitem__(self, key: str) -> Any:
        value = super().__getitem__(key)
        if isinstance(value, _Later):
            value = self[key] = value.make(key)
        return value

    def __iter__(self) -> Iterator[str]:  # which also has a copy ask for each of them
        return iter(list(super().__iter__()))

    def values(self) -> Any:
        return (value for _, value in self.items())

    def items(self) -> Any:
        """Those that are there first: who looks for the type of a config in hand finds it without making others."""
        stored = list(super().items())
        for key, value in sorted(stored, key=lambda item: isinstance(item[1], _Later)):
            yield key, self[key] if isinstance(value, _Later) else value


class _Later(NamedTuple):
    make: Callable[[str], type[Any]]


def register_config(mapping: Any, model_type: str, make: Callable[[str], type[Any]]) -> None:
    """Have AutoConfig know a model type whose config class is made when it is first asked for.

    `AutoConfig.register` takes finished classes, and forty of them import forty modules, which takes a second.

    Args:
        mapping: transformers' `CONFIG_MAPPING`.
        model_type: registered by somebody else before, it is left alone.
        make: gives the class of a model type.
    """
    if not isinstance(mapping._extra_content, _Configs):
        mapping._extra_content = _Configs(mapping._extra_content)
    if model_type not in mapping:
        mapping._extra_content[model_type] = _Later(make)


def become(model: PreTrainedModel, made: type[PreTrainedModel]) -> None:
    """Give a model another class, and have its outputs recorded as that class says."""
    from transformers.utils.output_capturing import _CAN_RECORD_REGISTRY  # takes seconds

    model.__class__ = made
    # By the class's name in all versions; since 5.23 a dict that takes the model and names its class by itself.
    dict.__setitem__(_CAN_RECORD_REGISTRY, str(made), model._can_record_outputs)


def forget_captures(model: PreTrainedModel) -> None:
    """Have a model put the hooks that record its outputs on anew: modules that were exchanged since have none."""
    for module in model.modules():
        module.__dict__.pop("_output_capturing_hooks_installed", None)
        for key, hook in list(module._forward_hooks.items()):
            if getattr(hook, "__module__", "") == "transformers.utils.output_capturing":
                del module._forward_hooks[key]


def initialize(model: PreTrainedModel, module: nn.Module) -> None:
    """Start a module's parameters as `model` starts those of its class, once more where that was done before."""
    module._is_hf_initialized = False  # type: ignore[assignment]
    model._initialize_weights(module)


def unsaved_keys(model: PreTrainedModel) -> tuple[str, ...]:
    """Patterns of tensors that a model never saves, since it computes them."""
    return tuple(getattr(model, "_keys_to_ignore_on_save", None) or ())


def saves_an_adapter(model: PreTrainedModel) -> bool:
    """Whether `save_pretrained` writes an adapter of PEFT and no model, since one was added to it."""
    return bool(getattr(model, "_hf_peft_config_loaded", False))


def attention_implementation(config: Any) -> str:
    """`eager`, `sdpa` or another, as it was chosen for a model with this config."""
    return config._attn_implementation


def copy_choices(source: Any, config: Any) -> None:
    """Give a config what another one was told at run time: the attention implementation, and where it came from."""
    config._attn_implementation = source._attn_implementation
    config._name_or_path = getattr(source, "_name_or_path", "")


def guarded(entries: dict[str, Any], message: str) -> dict[str, Any]:
    """The entries of a `config.json` that a native class refuses to load weights for, with `message` in the error.

    transformers hands a fusion that it does not know to its loader, which raises with the fusion's name: the only
    place where a native class that is about to fill our checkpoint's attention with random numbers can be made to stop.
    """
    return {**entries, _GUARD_KEY: {message: True}}


def without_guard(entries: dict[str, Any]) -> dict[str, Any]:
    """The entries of a config as a class of ours takes them."""
    return {name: value for name, value in entries.items() if name != _GUARD_KEY}


def model_being_built(frame: FrameType) -> Any:
    """The model whose constructor runs in a frame, or None.

    `PreTrainedModel.__init__` reads the `name_or_path` of its config before anything else of it: the only place where
    a config can tell that a native class is about to build a model from it.
    """
    loaded = sys.modules.get("transformers.modeling_utils")
    while frame.f_code.co_name == "__getattribute__" and frame.f_back is not None:  # the config's own, on the way
        frame = frame.f_back
    model = frame.f_locals.get("self") if frame.f_code.co_name == "__init__" else None
    return model if loaded is not None and isinstance(model, loaded.PreTrainedModel) else None


def rename_keys_like(own: str, host: str) -> None:
    """Rename checkpoint keys for `own`, a class name or a model type, as transformers does for `host`.

    ViT's `attention.query` also matches the start of our `attention.query_embedding`, which transformers before 5.24
    then loses: no renaming touches such a name. What is written is the same with and without that.
    """
    from transformers.conversion_mapping import (  # takes seconds
        get_checkpoint_conversion_mapping,
        register_checkpoint_conversion_mapping,
    )

    if (mapping := get_checkpoint_conversion_mapping(host)) is not None:
        register_checkpoint_conversion_mapping(own, [_sparing_ours(one) for one in mapping], overwrite=True)


def _sparing_ours(transform: Any) -> Any:
    from transformers.core_model_loading import WeightRenaming  # takes seconds

    if type(transform) is not WeightRenaming:
        return transform
    sources, targets = transform._original_source_patterns, transform._original_target_patterns
    spared = [f"{one}(?!_embedding)" if one[-1].isalnum() else one for one in sources]
    return WeightRenaming(source_patterns=spared, target_patterns=list(targets))


@dataclass(frozen=True)
class KeyNames:
    """How transformers renames the keys of a checkpoint's files for a model, and back."""

    model: PreTrainedModel
    forth: tuple[list[Any], list[Any]]
    back: tuple[list[Any], list[Any]]
    state: dict[str, Any]

    @classmethod
    def of(cls, model: PreTrainedModel) -> KeyNames:
        """The renamings of a model's class and parts."""
        from transformers.conversion_mapping import get_model_conversion_mapping  # takes seconds

        forth = get_model_conversion_mapping(model, add_legacy=True)
        back = [one.reverse_transform() for one in get_model_conversion_mapping(model, add_legacy=False)[::-1]]
        return cls(model, _sorted_by_kind(forth), _sorted_by_kind(back), model.state_dict())

    def in_model(self, name: str) -> str:
        """What the model calls a tensor of the files."""
        from transformers.core_model_loading import rename_source_key  # takes seconds

        return rename_source_key(name, *self.forth, self.model.base_model_prefix, self.state)[0]

    def in_file(self, name: str) -> str:
        """What `save_pretrained` calls a tensor of the model."""
        from transformers.core_model_loading import rename_source_key  # takes seconds

        return rename_source_key(name, *self.back, reverse=True)[0]


def _sorted_by_kind(transforms: list[Any]) -> tuple[list[Any], list[Any]]:
    from transformers.core_model_loading import WeightConverter, WeightRenaming  # takes seconds

    renamings, converters = (
        [one for one in transforms if isinstance(one, kind)] for kind in (WeightRenaming, WeightConverter)
    )
    return renamings, converters
