"""What every derived model is while it runs: its host's, with attention blocks that are swapped after construction."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_heads.attention.hosts.blocks import Block, blocks_of
from hf_heads.attention.hosts.sites import AttentionAdapter
from hf_heads.attention.module import HeadsAttention, linear
from hf_heads.core.errors import HeadsError
from hf_heads.modeling.guarded import building_ours
from hf_heads.modeling.internals import become, forget_captures, initialize, rename_keys_like, saves_an_adapter
from hf_heads.modeling.kept_card import ANY_ID, loaded_card, put_card, saved_again, use_text

if TYPE_CHECKING:
    from hf_heads.attention.spec import HeadsSpec

IMPLEMENTATIONS = ("eager", "sdpa")
# Of `from_pretrained`, where files come from.
_OF_FILES = ("revision", "subfolder", "token", "cache_dir", "local_files_only")


class GraftedModel(PreTrainedModel):
    """What a derived model class has on top of its host's, wherever it comes from.

    A class that is derived from a host's model class gets the signature of its constructor, where transformers looks
    up its options, and its renamings of checkpoint keys.

    Attributes:
        loaded_card: the model card that was beside what was loaded, and the config's section on the heads then.
    """

    _supports_flash_attn = False
    _supports_flex_attn = False
    config: Any
    loaded_card: tuple[str, Any] | None = None

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        with building_ours():
            super().__init__(config, *args, **kwargs)
        graft(self, config.block_specs())
        for block in blocks_of(self, config.heads_adapter()):
            if isinstance(block.module, HeadsAttention):
                for module in [*block.module.modules(), block.output]:
                    if not any(parameter.is_meta for parameter in module.parameters()):
                        initialize(self, module)
                if not any(parameter.is_meta for parameter in block.module.parameters()):
                    block.module.init_projections()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        native = next((base for base in cls.__bases__ if is_native(base)), None)
        if native is not None:
            cls.__init__ = _constructor(native)  # type: ignore[method-assign]
            rename_keys_like(cls.__name__, native.__name__)

    def attention_class(self, native: type[nn.Module], method: str) -> type[HeadsAttention]:
        """The class of a method that takes the place of a host's attention class."""
        raise NotImplementedError

    def model_class(self, native: type[PreTrainedModel]) -> type[GraftedModel] | None:
        """The derived class of one of the host's model classes; None of one that no row is about."""
        raise NotImplementedError

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, HeadsAttention):  # a host would start the projections that it knows
            module.init_weights()
            module.init_projections()
        else:
            super()._init_weights(module)

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
            model, info = load(**{**kwargs, "ignore_mismatched_sizes": True})
            check_loaded(model, info, model.config.heads_adapter())
            raise
        check_loaded(model, info, model.config.heads_adapter())
        options = {name: kwargs[name] for name in _OF_FILES if kwargs.get(name) is not None}
        card = loaded_card(str(model.name_or_path), **options)
        model.loaded_card = None if card is None else (card, model.config.heads)
        return (model, info) if output_loading_info else model

    def get_correct_attn_implementation(self, requested_attention: str | None, *args: Any, **kwargs: Any) -> str:
        """The implementation that is asked for, see transformers.

        Raises:
            HeadsError: re-parametrized attention does not have it.
        """
        if requested_attention not in (None, *IMPLEMENTATIONS):
            raise HeadsError(
                f"attn_implementation '{requested_attention}' is not one of re-parametrized attention, whose heads are "
                "not of the shape that such kernels take: give 'sdpa' (the default, which takes the fastest exact way "
                "for each block) or 'eager' (which returns attention weights)"
            )
        return super().get_correct_attn_implementation(requested_attention, *args, **kwargs)

    def new_card(self) -> str | None:
        """A card for what was loaded without one, or converted since; None where there is nothing to make it of."""
        return None

    def save_card(self, folder: str | os.PathLike[str], repo_id: str | None = None) -> None:
        """Write the model card into a folder that this model was saved to, see `put_card`.

        Args:
            folder: where it was saved.
            repo_id: where the folder goes, if to the hub.
        """
        if not self.config.heads or not os.path.isdir(folder):
            return
        classes = self.config.remote_classes()
        serving = sorted((one for one in classes if classes[one].endswith(f".{type(self).__name__}")), key=len)
        auto, code = [*serving, "AutoModel"][0], f"{classes['AutoConfig'].partition('.')[0]}.py"
        card, heads = self.loaded_card or ("", None)
        own = saved_again(card, auto) if heads == self.config.heads else self.new_card()
        if own is not None:
            any_id = ANY_ID if repo_id is None else f'"{repo_id}"'
            embedder = os.path.isfile(os.path.join(folder, "modules.json"))
            use = use_text(code if code.startswith("modeling_") else None, auto, any_id, embedder)
            put_card(os.fspath(folder), own, auto, use)

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], is_main_process: bool = True, *args: Any, **kwargs: Any
    ) -> None:
        """Save as the host does, and the model card as well."""
        super().save_pretrained(save_directory, is_main_process, *args, **kwargs)
        if is_main_process and not saves_an_adapter(self):
            self.save_card(save_directory)

    def _upload_modified_files(
        self, working_dir: str | os.PathLike[str], repo_id: str, *args: Any, **kwargs: Any
    ) -> Any:
        self.save_card(working_dir, repo_id)  # in the place of the one that transformers has put there
        return super()._upload_modified_files(working_dir, repo_id, *args, **kwargs)


def is_native(base: type) -> bool:
    """Whether a class is a host's own model class."""
    return issubclass(base, PreTrainedModel) and not issubclass(base, GraftedModel)


def _constructor(native: type[PreTrainedModel]) -> Callable[..., None]:
    """`GraftedModel`'s constructor with the signature of the host's."""

    @functools.wraps(native.__init__)
    def construct(self: GraftedModel, *args: Any, **kwargs: Any) -> None:
        GraftedModel.__init__(self, *args, **kwargs)

    return construct


def check_loaded(model: PreTrainedModel, info: dict[str, Any], adapter: AttentionAdapter) -> None:
    """Refuse a model, derived or native, some of whose attention weights did not come from the checkpoint.

    Raises:
        HeadsError: names the first such weight.
    """
    blocks = blocks_of(model, adapter)
    inside = tuple(f"{path}." for block in blocks for path in (block.path, block.output_path))
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


def attention_name(method: type[HeadsAttention], native: str) -> str:
    """The name of the class that takes the place of a host's attention class, `CollabBertSelfAttention`."""
    return method.__name__.removesuffix("Attention") + native


def native_attention(module: nn.Module) -> type[nn.Module]:
    """The host's attention class of a module, be it one of ours or the host's own."""
    return next(
        base
        for base in type(module).__mro__
        if issubclass(base, nn.Module) and base is not nn.Module and not issubclass(base, HeadsAttention)
    )


def graft(model: Any, specs: dict[str, HeadsSpec]) -> None:
    """Put re-parametrized attention into a model in place; new parameters are uninitialised.

    Inner models that are the host's own become ours as well: they initialise their own children, and record their
    outputs, by their class.

    Args:
        model: a model of a derived class.
        specs: resolved settings by block name.

    Raises:
        HeadsError: a name is no attention block of this model.
    """
    adapter = model.config.heads_adapter()
    blocks = {block.name: block for block in blocks_of(model, adapter)}
    # A class may hold a part of its architecture only (a decoder alone, say), but of that part all blocks.
    parts = {name.partition(".")[0] for name in blocks}
    for name in specs:
        if name not in blocks and (name.partition(".")[0] in parts or adapter.site(name) is None):
            raise HeadsError(f"config.json: heads names '{name}', which is no attention block of this model")
    for name, spec in specs.items():
        if name in blocks:
            replace_block(model, blocks[name], spec)
    for module in model.modules():
        if isinstance(module, PreTrainedModel) and not isinstance(module, GraftedModel):
            derived = model.model_class(type(module))
            if derived is not None:
                become(module, derived)


def replace_block(model: Any, block: Block, spec: HeadsSpec) -> HeadsAttention:
    """Swap one block for an uninitialised module of the spec's method; returns the new module."""
    made = model.attention_class(native_attention(block.module), spec.method)
    reference = block.output.weight
    with torch.device(reference.device), _default_dtype(reference.dtype):
        module = made(block.module, block.site, block.kind, block.output, spec)
    if not hasattr(module, "config"):  # which says how attention is computed
        module.config = model.config
    module.train(block.module.training)
    model.set_submodule(block.path, module)
    forget_captures(model)
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


def register_processors(config: type[Any], model_type: str) -> None:
    """Let tokenizers and processors load from a folder of a derived type, as they do for the host's type."""
    from transformers.models.auto import image_processing_auto, processing_auto, tokenization_auto  # slow

    native = next(base for base in config.__mro__ if getattr(base, "model_type", None) == model_type)
    for mapping in (
        tokenization_auto.TOKENIZER_MAPPING,
        image_processing_auto.IMAGE_PROCESSOR_MAPPING,
        processing_auto.PROCESSOR_MAPPING,
    ):
        if native in mapping and (found := mapping[native]) is not None:
            mapping.register(config, found, exist_ok=True)
