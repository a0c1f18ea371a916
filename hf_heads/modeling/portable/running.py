"""Derived classes that need no registry: what the file beside a checkpoint has on top of the code that all share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from torch import nn
from transformers import PreTrainedModel

from hf_heads.attention.hosts.table import AttentionAdapter
from hf_heads.attention.module import HeadsAttention
from hf_heads.core.errors import HeadsError
from hf_heads.modeling.grafting import GraftedModel, attention_name
from hf_heads.modeling.guarded import GuardedConfig, block_entries
from hf_heads.modeling.peft_targets import offer_targets

if TYPE_CHECKING:
    from hf_heads.attention.spec import HeadsSpec


class PortableConfig(GuardedConfig):
    """A derived config that carries the code of its classes from folder to folder.

    Attributes:
        heads_row: where the architecture keeps its attention.
        heads_methods: by name, the methods that the code knows: their attention and their settings.
        heads_classes: which class serves which Auto class.
    """

    heads_row: ClassVar[AttentionAdapter]
    heads_methods: ClassVar[dict[str, tuple[type[HeadsAttention], type[HeadsSpec]]]]
    heads_classes: ClassVar[dict[str, str]]

    def __post_init__(self, **kwargs: Any) -> None:
        kwargs.setdefault("auto_map", self.remote_classes())  # where the Auto classes look for a config's model
        super().__post_init__(**kwargs)
        offer_targets(self.heads_row)  # of PEFT, if it is imported by now

    @classmethod
    def heads_adapter(cls) -> AttentionAdapter:
        """The row of the architecture."""
        return cls.heads_row

    def block_specs(self) -> dict[str, HeadsSpec]:
        """The settings of every converted block by name.

        Raises:
            HeadsError: the section is malformed, of a newer format, or of a method that this code does not have.
        """
        specs = {}
        for name, entry in block_entries(self.heads).items():
            where, method = f"config.json: heads.blocks['{name}']", entry["method"]
            if method not in self.heads_methods:
                raise HeadsError(
                    f"{where} is of the method {method!r}, which this code does not have: install hf-heads"
                )
            try:
                specs[name] = self.heads_methods[method][1](**{key: entry[key] for key in entry if key != "method"})
            except TypeError as error:
                raise HeadsError(f"{where}: {error}") from None
        return specs

    def remote_classes(self) -> dict[str, str]:
        """The `auto_map` of `config.json`: which class of this code serves which Auto class."""
        return {auto: f"{Path(__file__).stem}.{name}" for auto, name in self.heads_classes.items()}

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """Write `config.json`, and this code beside it."""
        super().save_pretrained(save_directory, *args, **kwargs)  # type: ignore[misc]
        code = Path(__file__)
        (Path(save_directory) / code.name).write_text(code.read_text(encoding="utf-8"), encoding="utf-8")

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoConfig") -> None:
        """Nothing to do: what is written names all classes, where transformers would name the loaded one alone."""


class PortableModel(GraftedModel):
    """A model of a derived type whose classes stand in this file."""

    def attention_class(self, native: type[nn.Module], method: str) -> type[HeadsAttention]:
        """The class of a method that takes the place of a host's attention class."""
        mixin = self.config.heads_methods[method][0]
        doc = f"{mixin.__name__} in the place of {native.__name__}."
        return _made(attention_name(mixin, native.__name__), (mixin, native), __doc__=doc)

    def model_class(self, native: type[PreTrainedModel]) -> type[GraftedModel]:
        """The derived class of one of the host's model classes."""
        doc = f"{native.__name__} with re-parametrized attention heads."
        return _made(f"Heads{native.__name__}", (PortableModel, native), __doc__=doc, config_class=type(self.config))

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoModel") -> None:
        """Nothing to do, as for the config."""


def _made(name: str, bases: tuple[type, ...], **namespace: Any) -> Any:
    """A class by its name in this module, where pickle finds it; made when it is first asked for."""
    if name not in globals():
        globals()[name] = type(name, bases, {"__module__": __name__, "__qualname__": name, **namespace})
    return globals()[name]
