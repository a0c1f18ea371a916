"""What a row of the table of architectures is made of. No method is known here, and no torch."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

Kind = Literal["self", "causal", "cross"]
Hook = str | Callable[..., Any]  # a function, or the name of one in `hf_heads.attention.hosts.parts`
Modality = Literal["text", "image", "audio", "text-to-text", "audio-to-text", "text-image"]
WRITES = ("text-to-text", "audio-to-text")  # an encoder reads, and a decoder needs targets to run


# What some architectures ask of a method, and why one that does not say that it can (`About.handles`) cannot be used.
NEEDS = {
    "rotary": "queries and keys are turned by their positions after projection, so heads cannot share one key space; "
    "what sharing it pair by pair of channels loses is in docs/decoders.md",
    "groups": "several query heads read one key and value head, which this method would take apart",
    "pairs": "its row turns queries and keys by a function of its own, of which this method knows nothing",
}
_PAIRS = ("rotary", "normed_rotary")  # functions of `hosts.parts` that turn pairs of channels


@dataclass(frozen=True)
class AttentionSite:
    """One place of an architecture where attention happens.

    Attributes:
        kind: self-attention, causal self-attention or cross-attention.
        pattern: regular expression for the module's name inside the base model.
        query, key, value: names of the three projections inside the attention module; where the host has one for all
            of them, those that a converted block has in its place.
        output: path of the output projection; a leading `../` starts at the parent of the attention module.
        heads: attribute of the host's module that holds the number of heads; dots lead further, as in
            `config.num_attention_heads`.
        kv_heads: the same for the heads of keys and values, where several query heads read one.
        scale: attribute with the factor on the scores, or a function (see `encode`) of the host's module.
        fused: name of the one projection that makes queries, keys and values, in that order.
        interleaved: a fused projection makes them head by head, or a function that says so of the host's module.
        of_heads: what the mask or `bias` adds to the scores is not the same for all heads.
        encode: turns queries, and keys before they are cached, by their positions, or norms them:
            `encode(module, side, states, given)`, of states (batch, heads, length, width) and the arguments of the
            module's forward by name. As all functions here, it may be the name of one in `hosts.parts`.
        bias: what positions add to the scores: `bias(module, given, past, target, source)`, (batch or 1, heads of the
            host or 1, target or 1, source), additive; `past` tokens are in the cache already.
        after: what the module does behind the output projection: `after(module, output, given)`.
        returns: what it returns: `returns(module, output, weights, given)`; output and weights when None.
        weights: the place of the attention weights in that.
        memory: the forward argument with the key-side inputs, for cross-attention.
        mask: the forward argument with the mask.
        index: attribute with the number of the layer in the cache.
        query_mask: the model input that tells padding from tokens on the query side, for cross-attention, whose own
            mask is about its keys.
    """

    kind: Kind
    pattern: str
    query: str = "q_proj"
    key: str = "k_proj"
    value: str = "v_proj"
    output: str = "out_proj"
    heads: str = "num_heads"
    kv_heads: str | None = None
    scale: Hook = "scaling"
    fused: str | None = None
    interleaved: bool | Hook = False
    encode: Hook | None = None
    bias: Hook | None = None
    of_heads: bool = False
    after: Hook | None = None
    returns: Hook | None = None
    weights: int = 1
    memory: str | None = None
    mask: str = "attention_mask"
    index: str = "layer_idx"
    query_mask: str = "attention_mask"

    @property
    def output_inside(self) -> bool:
        """Whether the output projection belongs to the attention module itself."""
        return not self.output.startswith("../")

    @property
    def needs(self) -> tuple[str, ...]:
        """What a method must be able to do here, see `NEEDS`."""
        name = getattr(self.encode, "__name__", self.encode)
        asked = {
            "rotary": self.encode is not None,
            "groups": self.kv_heads is not None,
            "pairs": self.encode is not None and name not in _PAIRS,
        }
        return tuple(name for name, wanted in asked.items() if wanted)

    @property
    def projections(self) -> tuple[str, ...]:
        """Names of the host's own projections of queries, keys and values."""
        return (self.query, self.key, self.value) if self.fused is None else (self.fused,)

    def output_name(self, block: str) -> str:
        """Full name of the output projection of the block called `block`."""
        if self.output_inside:
            return f"{block}.{self.output}"
        return f"{block.rpartition('.')[0]}.{self.output.removeprefix('../')}"


@dataclass(frozen=True)
class AttentionAdapter:
    """A row of the table: one architecture.

    Attributes:
        model_type: the model type of transformers.
        modality: what its inputs are.
        sites: where its attention is; the first matching site wins.
        decoder_flag: config field that turns the encoder's self-attention causal, if there is one.
        package: the package NAME with the modules modeling_NAME and configuration_NAME; where transformers has the
            model type when None.
        parts: model classes that are a part of the base model, with the part's name in it.
        positions: config field with the number of positions, if there is one; dots lead further.
        after_padding: the first of them has the number after the padding token's id, as in RoBERTa.
        runs: the first parts of blocks' names in the order in which they run, where modules stand in another.
        also: what inputs of its have besides, made from a config and a batch by a function; see
            `hf_heads.attention.hosts.parts`, of which the name is enough.
        refuses: by method, why it cannot be used here, beyond what the sites say.
    """

    model_type: str
    modality: Modality
    sites: tuple[AttentionSite, ...]
    decoder_flag: str | None = None
    package: str | None = None
    parts: tuple[tuple[str, str], ...] = ()
    positions: str = "max_position_embeddings"
    after_padding: bool = False
    runs: tuple[str, ...] = ()
    also: Hook | None = None
    refuses: Mapping[str, str] = field(default_factory=dict, hash=False)

    @cached_property
    def config_name(self) -> str | None:
        """The name of the architecture's own config class; None where a package of its own has it."""
        names = _auto_configs().CONFIG_MAPPING_NAMES
        return None if self.package else names.get(self.model_type)

    @cached_property
    def configuration(self) -> Any:
        """The module with the architecture's config class."""
        if self.package:
            return importlib.import_module(f"{self.package}.configuration_{self.package.rpartition('.')[2]}")
        name = _auto_configs().model_type_to_module_name(self.model_type)
        found = getattr(importlib.import_module(f"transformers.models.{name}"), str(self.config_name))
        return importlib.import_module(found.__module__)

    @cached_property
    def modeling(self) -> Any:
        """The module with the architecture's model classes (importing it is slow)."""
        package, _, name = self.configuration.__name__.rpartition(".")
        return importlib.import_module(f"{package}.{name.replace('configuration_', 'modeling_', 1)}")

    def limit(self, config: Any) -> int | None:
        """The most tokens that a model with this config takes; None where nothing limits them."""
        found = config
        for part in self.positions.split("."):
            found = getattr(found, part, None)
        if not isinstance(found, int):
            return None
        return found - (config.pad_token_id or 0) - 1 if self.after_padding else found

    def site(self, name: str) -> AttentionSite | None:
        """The site of the module called `name` (inside the base model), or None."""
        return next((site for site in self.sites if re.fullmatch(site.pattern, name)), None)


def _auto_configs() -> Any:
    """Transformers' table of configs."""
    return importlib.import_module("transformers.models.auto.configuration_auto")
