"""Derived model types: the host's own classes with re-parametrized attention.

For every class that a host has in any Auto mapping there is one of ours, made from it when the first config of the
derived type is built, and registered through the public `register` of that Auto class.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import PreTrainedModel

from hf_heads.attention.hosts.sites import AttentionAdapter
from hf_heads.attention.hosts.table import adapter_of, architectures
from hf_heads.attention.module import HeadsAttention
from hf_heads.attention.spec import HeadsSpec
from hf_heads.core.vocabulary import PREFIX
from hf_heads.methods.registry import all_methods, get_method
from hf_heads.modeling import internals
from hf_heads.modeling.auto_classes import auto_classes, auto_mappings, host_config_class, native_class, served_classes
from hf_heads.modeling.configuration import config_class, derived_config
from hf_heads.modeling.grafting import (
    GraftedModel,
    attention_name,
    graft,
    is_native,
    register_processors,
)
from hf_heads.modeling.new_card import new_card


class HeadsModel(GraftedModel):
    """What every derived model class has on top of its host's."""

    def attention_class(self, native: type[nn.Module], method: str) -> type[HeadsAttention]:
        """The class that takes the place of a host's attention class, see `attention_class`."""
        return attention_class(native, method)

    def model_class(self, native: type[PreTrainedModel]) -> type[GraftedModel] | None:
        """The derived class of one of the host's model classes, see `model_class`; None where there is no row."""
        known = getattr(native.config_class, "model_type", None) in architectures()
        return model_class(native) if known else None

    def new_card(self) -> str:
        """A card of the blocks' settings and, where it is known, of the model that was converted."""
        return new_card(self.config.block_specs(), str(self.name_or_path), native_model(type(self)).__name__)


_derived: set[str] = set()
_deriving: set[str] = set()


def derive(config: type[Any]) -> None:
    """Make and register the model classes of a derived config class; done once, when a first config is built."""
    if config.model_type in _derived | _deriving:
        return
    _deriving.add(config.model_type)  # classes that are made build configs themselves
    try:
        adapter = architectures()[config.model_type.removeprefix(PREFIX)]
        for auto_name, names in served_classes(adapter).items():
            made = [model_class(native_class(adapter, name)) for name in names]
            internals.serve(auto_mappings()[auto_name], config, made)
        register_processors(config, adapter.model_type)
        _derived.add(config.model_type)
    finally:
        _deriving.discard(config.model_type)


_made: dict[str, Any] = {}  # the classes made so far, by name


def model_class(native: type[PreTrainedModel]) -> type[HeadsModel]:
    """The derived class of one of the host's model classes, `HeadsBertModel` for `BertModel`."""
    name = f"Heads{native.__name__}"
    if name in _made:
        return _made[name]
    adapter = architectures()[native.config_class.model_type]  # type: ignore[union-attr]
    namespace = {
        "__module__": "hf_heads.models",
        "__qualname__": name,
        "__doc__": f"{native.__name__} with re-parametrized attention heads.",
        "config_class": config_class(adapter),
    }
    made = _made[name] = type(name, (HeadsModel, native), namespace)
    # Renamings of checkpoint keys are looked up by class name, then by model type.
    internals.rename_keys_like(PREFIX + adapter.model_type, adapter.model_type)
    return made


def attention_class(native: type[nn.Module], method: str) -> type[HeadsAttention]:
    """The class that takes the place of a host's attention class, `CollabBertSelfAttention` for BERT and collab."""
    mixin = get_method(method).attention
    name = attention_name(mixin, native.__name__)
    if name in _made:
        return _made[name]
    namespace = {
        "__module__": "hf_heads.models",
        "__qualname__": name,
        "__doc__": f"{mixin.__name__} in the place of {native.__name__}.",
    }
    made = _made[name] = type(name, (mixin, native), namespace)
    return made


def class_by_name(name: str) -> type | None:
    """A derived config, model or attention class by its name, or None."""
    for adapter in _candidates(name):
        if name == f"Heads{host_config_class(adapter).__name__}":
            return config_class(adapter)
        native = getattr(adapter.modeling, name.removeprefix("Heads"), None)
        if name.startswith("Heads") and isinstance(native, type) and issubclass(native, PreTrainedModel):
            return model_class(native)
        for method in all_methods():
            prefix = attention_name(get_method(method).attention, "")
            native = getattr(adapter.modeling, name.removeprefix(prefix), None)
            if name.startswith(prefix) and isinstance(native, type) and issubclass(native, nn.Module):
                return attention_class(native, method)
    return None


def _candidates(name: str) -> list[AttentionAdapter]:
    """The architectures that a derived class of this name may be of: to look into all would import them all."""
    rows = (adapter for adapter in architectures().values() if adapter.config_name or adapter.package)
    stems = {adapter: (adapter.config_name or "").removesuffix("Config") for adapter in rows}
    return sorted((one for one, stem in stems.items() if stem in name), key=lambda one: -len(stems[one]))


def adopt(model: PreTrainedModel) -> None:
    """Turn a model of a native class into one of ours in place, with no block converted yet.

    Raises:
        HeadsError: there is no adapter for the architecture.
    """
    adapter_of(model.config)
    if isinstance(model, HeadsModel):
        return
    set_specs(model, {})
    internals.become(model, model_class(type(model)))
    graft(model, {})


def set_specs(model: PreTrainedModel, specs: dict[str, HeadsSpec]) -> None:
    """Give a model, and every module that holds its config, a derived config with these settings.

    Modules may hold a config inside the model's, of a tower, or a copy of the model's that differs in its choices.
    """
    config = derived_config(model.config, specs)
    config.architectures = [f"Heads{native_model(type(model)).__name__}"]
    before = model.config
    made = {id(before): config, **{id(getattr(before, name)): getattr(config, name) for name in before.sub_configs}}
    kept = [before]  # as long as its id counts
    for module in model.modules():
        own = getattr(module, "config", None)
        if own is None or getattr(own, "model_type", None) is None:
            continue
        if id(own) not in made and own.model_type.removeprefix(PREFIX) == config.model_type.removeprefix(PREFIX):
            made[id(own)] = derived_config(own, specs)
            kept.append(own)
        module.config = made.get(id(own), own)


def native_model(made: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """The host's model class behind a derived one; a host's own class is its own."""
    return next(base for base in made.__mro__ if is_native(base))


def is_causal_lm(model: PreTrainedModel) -> bool:
    """Whether a model predicts every token from those before it, so that its labels are shifted by one."""
    served = auto_classes(adapter_of(model.config)).get("AutoModelForCausalLM")
    return native_model(type(model)).__name__ == served and not model.config.is_encoder_decoder
