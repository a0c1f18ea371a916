"""Derived model types: the host's own classes with re-parametrized attention.

For every class that a host has in any Auto mapping there is one of ours, made from it when the first config of the
derived type is built, and registered through the public `register` of that Auto class.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_heads.attention.hosts.blocks import Block, find_blocks
from hf_heads.attention.hosts.reading import argument_names
from hf_heads.attention.hosts.sites import AttentionAdapter
from hf_heads.attention.hosts.table import adapter_of, architectures
from hf_heads.attention.module import HeadsAttention, linear
from hf_heads.attention.spec import HeadsSpec
from hf_heads.core.errors import HeadsError
from hf_heads.core.vocabulary import PREFIX
from hf_heads.methods.registry import all_methods, get_method
from hf_heads.modeling import internals
from hf_heads.modeling.auto_classes import auto_classes, auto_mappings
from hf_heads.modeling.configuration import building_ours, config_class, derived_config


class HeadsModel(PreTrainedModel):
    """What every derived model class has on top of its host's: blocks that are swapped after construction."""

    _supports_flash_attn = False
    _supports_flex_attn = False
    config: Any

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        with building_ours():
            super().__init__(config, *args, **kwargs)
        graft(self, config.block_specs())
        for block in find_blocks(self):
            if isinstance(block.module, HeadsAttention):
                for module in [*block.module.modules(), block.output]:
                    if not any(parameter.is_meta for parameter in module.parameters()):
                        internals.initialize(self, module)

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, HeadsAttention):
            module.init_weights()

    @classmethod
    def from_pretrained(cls, *args: Any, output_loading_info: bool = False, **kwargs: Any) -> Any:
        """Load a converted checkpoint; refuses one whose attention weights and `heads` section do not fit.

        Raises:
            HeadsError: attention weights are missing, left over or of another shape than `config.json` says.
        """
        load: Callable[..., Any] = functools.partial(super().from_pretrained, *args, output_loading_info=True)
        try:
            model, info = load(**kwargs)
        except RuntimeError:
            # It does not say which weights have other shapes; those outside of the attention are the host's matter.
            if kwargs.get("ignore_mismatched_sizes"):
                raise
            check_loaded(*load(**{**kwargs, "ignore_mismatched_sizes": True}))
            raise
        check_loaded(model, info)
        return (model, info) if output_loading_info else model


def check_loaded(model: PreTrainedModel, info: dict[str, Any]) -> None:
    """Refuse a model some of whose attention weights did not come from the checkpoint.

    Raises:
        HeadsError: names the first such weight.
    """
    inside = tuple(f"{path}." for block in find_blocks(model) for path in (block.path, block.output_path))
    made, kind = (model.config.architectures or [""])[0], type(model).__name__
    other = made.startswith("Heads") and made != kind
    hint = f"; it names {made}, not {kind}: load it with hf_heads.models.{made}" if other else ""
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        for key in info[kind]:
            name = key if isinstance(key, str) else key[0]
            if name.startswith(inside):
                raise HeadsError(
                    f"attention weight '{name}' is among the {kind.replace('_', ' ')}: "
                    f"the weights do not fit the heads section of config.json{hint}"
                )


_derived: set[str] = set()
_deriving: set[str] = set()


def derive(config: type[Any]) -> None:
    """Make and register the model classes of a derived config class; done once, when a first config is built."""
    if config.model_type in _derived | _deriving:
        return
    _deriving.add(config.model_type)  # classes that are made build configs themselves
    try:
        adapter = architectures()[config.model_type.removeprefix(PREFIX)]
        for auto_name, native_name in auto_classes(adapter).items():
            model = model_class(getattr(adapter.modeling, native_name))
            auto_mappings()[auto_name].register(config, model, exist_ok=True)
        _register_processors(adapter, config)
        _derived.add(config.model_type)
    finally:
        _deriving.discard(config.model_type)


def _register_processors(adapter: AttentionAdapter, config: type[Any]) -> None:
    """Let tokenizers and processors load from a folder of a derived type, as they do for the host's type."""
    from transformers.models.auto import image_processing_auto, processing_auto, tokenization_auto  # slow

    native = next(base for base in config.__mro__ if getattr(base, "model_type", None) == adapter.model_type)
    for mapping in (
        tokenization_auto.TOKENIZER_MAPPING,
        image_processing_auto.IMAGE_PROCESSOR_MAPPING,
        processing_auto.PROCESSOR_MAPPING,
    ):
        if native in mapping and (found := mapping[native]) is not None:
            mapping.register(config, found, exist_ok=True)


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
        "__init__": _constructor(native),
    }
    made = _made[name] = type(name, (HeadsModel, native), namespace)
    # Renamings of checkpoint keys are looked up by class name, then by model type.
    for own, host in ((name, native.__name__), (PREFIX + adapter.model_type, adapter.model_type)):
        internals.rename_keys_like(own, host)
    return made


def _constructor(native: type[PreTrainedModel]) -> Callable[..., None]:
    """`HeadsModel`'s constructor with the signature of the host's, where its options are looked up."""

    @functools.wraps(native.__init__)
    def construct(self: HeadsModel, *args: Any, **kwargs: Any) -> None:
        HeadsModel.__init__(self, *args, **kwargs)

    return construct


def attention_class(native: type[nn.Module], method: str) -> type[HeadsAttention]:
    """The class that takes the place of a host's attention class, `CollabBertSelfAttention` for BERT and collab."""
    mixin = get_method(method).attention
    name = _attention_prefix(mixin) + native.__name__
    if name in _made:
        return _made[name]
    namespace = {
        "__module__": "hf_heads.models",
        "__qualname__": name,
        "__doc__": f"{mixin.__name__} in the place of {native.__name__}.",
        "arguments": argument_names(native),
    }
    made = _made[name] = type(name, (mixin, native), namespace)
    return made


def _attention_prefix(mixin: type[HeadsAttention]) -> str:
    return mixin.__name__.removesuffix("Attention")


def native_attention(module: nn.Module) -> type[nn.Module]:
    """The host's attention class of a module, be it one of ours or the host's own."""
    return next(
        base
        for base in type(module).__mro__
        if issubclass(base, nn.Module) and base is not nn.Module and not issubclass(base, HeadsAttention)
    )


def class_by_name(name: str) -> type | None:
    """A derived config, model or attention class by its name, or None."""
    for adapter in architectures().values():
        if name == config_class(adapter).__name__:
            return config_class(adapter)
        native = getattr(adapter.modeling, name.removeprefix("Heads"), None)
        if name.startswith("Heads") and isinstance(native, type) and issubclass(native, PreTrainedModel):
            return model_class(native)
        for method in all_methods():
            prefix = _attention_prefix(get_method(method).attention)
            native = getattr(adapter.modeling, name.removeprefix(prefix), None)
            if name.startswith(prefix) and isinstance(native, type) and issubclass(native, nn.Module):
                return attention_class(native, method)
    return None


def graft(model: PreTrainedModel, specs: dict[str, HeadsSpec]) -> None:
    """Put re-parametrized attention into a model in place; new parameters are uninitialised.

    Inner models that are the host's own become ours as well: they initialise their own children, and record their
    outputs, by their class.

    Args:
        model: a model of a derived class.
        specs: resolved settings by block name.

    Raises:
        HeadsError: a name is no attention block of this model.
    """
    blocks = {block.name: block for block in find_blocks(model)}
    # A class may hold a part of its architecture only (a decoder alone, say), but of that part all blocks.
    parts = {name.partition(".")[0] for name in blocks}
    for name in specs:
        if name not in blocks and (name.partition(".")[0] in parts or adapter_of(model.config).site(name) is None):
            raise HeadsError(f"config.json: heads names '{name}', which is no attention block of this model")
    for name, spec in specs.items():
        if name in blocks:
            replace_block(model, blocks[name], spec)
    for module in model.modules():
        if isinstance(module, PreTrainedModel) and not isinstance(module, HeadsModel):
            internals.become(module, model_class(type(module)))


def replace_block(model: PreTrainedModel, block: Block, spec: HeadsSpec) -> HeadsAttention:
    """Swap one block for an uninitialised module of the spec's method; returns the new module."""
    made = attention_class(native_attention(block.module), spec.method)
    reference = block.output.weight
    with torch.device(reference.device), _default_dtype(reference.dtype):
        module = made(block.module, block.site, block.kind, block.output, spec)
    module.train(block.module.training)
    model.set_submodule(block.path, module)
    internals.forget_captures(model)
    shape = module.shape
    width = shape.heads * shape.value_dim
    if not isinstance(block.output, nn.Linear) or block.output.in_features != width:
        with torch.device(reference.device), _default_dtype(reference.dtype):
            output = linear(width, shape.output_width, bias=shape.biases.output)
        model.set_submodule(block.output_path, output)
    return module


class _default_dtype:
    """Torch's default dtype within a `with` block."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def __enter__(self) -> None:
        self.before = torch.get_default_dtype()
        torch.set_default_dtype(self.dtype)

    def __exit__(self, *_: Any) -> None:
        torch.set_default_dtype(self.before)


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
    """Give a model, and every module that holds its config, a derived config with these settings."""
    before, config = model.config, derived_config(model.config, specs)
    config.architectures = [f"Heads{native_model(type(model)).__name__}"]
    for module in model.modules():
        if getattr(module, "config", None) is before or isinstance(module, (PreTrainedModel, HeadsAttention)):
            module.config = config


def native_model(made: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """The host's model class behind a derived one; a host's own class is its own."""
    return next(base for base in made.__mro__ if issubclass(base, PreTrainedModel) and not issubclass(base, HeadsModel))


def is_causal_lm(model: PreTrainedModel) -> bool:
    """Whether a model predicts every token from those before it, so that its labels are shifted by one."""
    served = auto_classes(adapter_of(model.config)).get("AutoModelForCausalLM")
    return native_model(type(model)).__name__ == served and not model.config.is_encoder_decoder
