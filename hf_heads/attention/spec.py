"""`HeadsSpec`: the settings of one block, which are a command's options and a config's entries."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from types import UnionType
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self, Union, get_args, get_origin, get_type_hints

from hf_heads.core.errors import HeadsError
from hf_heads.core.numbers import Number, shown

if TYPE_CHECKING:
    from hf_heads.core.dense import AttentionShape, DenseAttention
    from hf_heads.core.statistics import BlockStatistics


def option(
    default: Any,
    text: str,
    *,
    stored: bool = True,
    command: bool = True,
    told: bool = True,
    choices: tuple[str, ...] | None = None,
    at_least: float | None = None,
    at_most: float | None = None,
) -> Any:
    """A field of a spec, checked when the spec is built: by its annotation, and by what is said here.

    Args:
        default: its value when nothing is said; `MISSING` where something must be.
        text: what it means, for the command line's help.
        stored: it is an entry of the config.
        command: it is an option of the command line.
        told: it is among the settings when a block is described in words.
        choices: the words that it may be.
        at_least, at_most: bounds of a number.
    """
    said = {"help": text, "stored": stored, "command": command, "told": told, "choices": choices}
    return field(default=default, metadata={**said, "at_least": at_least, "at_most": at_most})


class RankHeads(Protocol):
    """Measures how much heads matter; returns all heads of the blocks, (block, place), the least important first."""

    def __call__(
        self,
        names: Sequence[str],
        *,
        rule: str,
        steps: int,
        keep: float,
        normalize: bool,
        scores: str | None,
        unit: str = "example",
        least: int = 0,
    ) -> Sequence[tuple[str, int]]:
        """See `hf_heads.rank_heads`; `scores` names a file with what it found before."""
        ...


@dataclass(frozen=True)
class BlockProfile:
    """What planning knows of a block before anything is converted.

    Attributes:
        before: the block's settings if it was converted before.
        trial: converts this block alone with the given settings and returns how far the model's output then is from
            the original's, as a share of its variance; None without data.
    """

    shape: AttentionShape
    dense: DenseAttention
    statistics: BlockStatistics
    before: HeadsSpec | None = None
    trial: Callable[[Any], float] | None = None


@dataclass(frozen=True)
class HeadsSpec:
    """One block's settings. Fields are the command's options and, once resolved, the config's entries."""

    method: ClassVar[str]
    heads: int | None = option(
        None, "number of heads; the host's when not given", command=False, told=False, at_least=0
    )

    def __post_init__(self) -> None:
        for item in fields(self):
            object.__setattr__(self, item.name, _checked(type(self), item, getattr(self, item.name)))

    @classmethod
    def block_type(cls) -> type[HeadsSpec]:
        """The type of the settings of one block, which says what these cannot lack any more; for methods to say."""
        return HeadsSpec

    @classmethod
    def resolved(cls) -> type[HeadsSpec]:
        """The type of these settings once they are those of one block: `block_type`, or this class where it is one."""
        base = cls.block_type()
        if issubclass(cls, base):
            return cls
        return base if issubclass(base, cls) else _joined(base, cls)

    def settle(self, **values: Any) -> Any:
        """These settings, with `values`, as those of one block."""
        stated = {item.name: getattr(self, item.name) for item in fields(self)}
        return self.resolved()(**{**stated, **values})

    def resolve(
        self, shape: AttentionShape, where: str = "the block", before: HeadsSpec | None = None
    ) -> HeadsSpec | None:
        """The settings of one block: all that depends on its shape filled in and checked.

        Args:
            shape: the block's sizes as it is now.
            where: the block's name, for messages.
            before: its settings if it was converted before.

        Returns:
            Settings of the type `resolved`; None where they are found by `plan`, from all blocks together.

        Raises:
            HeadsError: the settings do not fit the shape; the message names the limit.
        """
        self.check_heads(shape, where)
        return self.settle(heads=shape.heads)

    def for_scratch(self, shape: AttentionShape) -> HeadsSpec:
        """These (resolved) settings as those of a block that starts from nothing, where that makes a difference."""
        return self

    def check_heads(self, shape: AttentionShape, where: str) -> None:
        """Refuse another number of heads than the block's."""
        if self.heads not in (None, shape.heads):
            raise HeadsError(f"{self.method} keeps the number of heads, which is {shape.heads} in {where}")

    def doubt(self, error: float) -> str | None:
        """What a user should be told of a block that lost so much in its conversion with data; None: nothing."""
        return None

    def plan(self, blocks: Mapping[str, BlockProfile], rank_heads: RankHeads) -> dict[str, HeadsSpec]:
        """Settings for every block of a model, for methods that spread a total over the blocks.

        Args:
            blocks: what is known of each block.
            rank_heads: orders the heads of blocks by importance, which is measured when it is called.
        """
        found = {name: self.resolve(block.shape, name, block.before) for name, block in blocks.items()}
        return {name: spec for name, spec in found.items() if spec is not None}

    def needs_profiles(self) -> bool:
        """Whether `plan` wants statistics of all blocks of the original model first."""
        return False

    def reshape(self, shape: AttentionShape) -> AttentionShape:
        """The sizes of the new block, from those of the host's."""
        return dataclasses.replace(shape, heads=shape.heads if self.heads is None else self.heads)

    def keep_exact(self, heads: tuple[int, ...], shape: AttentionShape, where: str) -> HeadsSpec:
        """These (resolved) settings, with some of the block's heads left exactly as they are.

        Args:
            heads: by their places in the block as it is before the conversion.
            shape: the block's sizes.
            where: the block's name, for messages.

        Raises:
            HeadsError: the method cannot, or not at this size; the message says what to do.
        """
        raise HeadsError(f"{self.method} cannot leave single heads of {where} exact")

    def keeps_heads(self) -> bool:
        """Whether the method can leave single heads exact, where the sizes allow it."""
        return type(self).keep_exact is not HeadsSpec.keep_exact

    def keeps_matching(self, shape: AttentionShape) -> bool:
        """Whether heads of a block that match stay exact where the data are pairs of texts, unless told otherwise."""
        return False

    def refits(self) -> bool:
        """Whether the output projection is refitted after conversion, unless the caller forbids it."""
        return True

    def refines(self) -> bool:
        """Whether scores may be refined to the original's attention maps, of a method that allows it."""
        return True

    def weighs_tokens(self) -> bool:
        """Whether the refit weighs tokens by how much the model's output depends on them: a backward pass more."""
        return False

    def uses_data(self) -> bool:
        """Whether calibration data makes a difference with these settings."""
        return True

    def choice(self) -> str:
        """How these settings choose what is lost, for reports; empty where there is nothing to choose."""
        return ""

    def needs_labels(self) -> bool:
        """Whether planning wants batches with labels for the model's loss."""
        return False

    def parameters(self, shape: AttentionShape) -> int:
        """Parameters of a block with these (resolved) settings, output projection included."""
        raise NotImplementedError

    def cache_per_token(self, shape: AttentionShape) -> int:
        """Numbers kept per token in a key-value cache."""
        raise NotImplementedError

    def to_config(self) -> dict[str, Any]:
        """The entry of `config.json`."""
        stored = {item.name: getattr(self, item.name) for item in fields(self) if item.metadata.get("stored", True)}
        plain = {name: list(value) if isinstance(value, tuple) else value for name, value in stored.items()}
        return {"method": self.method, **{name: value for name, value in plain.items() if value is not None}}

    @classmethod
    def from_mapping(cls, entries: Mapping[str, Any], where: str = "heads") -> Self:
        """A spec from an entry of `config.json` or of a recipe, without its `method`.

        Raises:
            HeadsError: an unknown name or a value of the wrong type.
        """
        known = [item.name for item in fields(cls)]
        if unknown := [name for name in entries if name not in known]:
            raise HeadsError(f"{where}: {cls.method} has no setting '{unknown[0]}'. Known: {', '.join(known)}")
        if missing := [item.name for item in fields(cls) if item.default is MISSING and item.name not in entries]:
            raise HeadsError(f"{where}: {missing[0]} is missing")
        try:
            return cls(**entries)
        except HeadsError as error:
            raise HeadsError(f"{where}: {error}") from None


def by_pattern(spec: object) -> dict[str, HeadsSpec]:
    """Settings by block name pattern; those for all blocks stand under `*`.

    Raises:
        HeadsError: it is neither settings nor a mapping to some.
    """
    if isinstance(spec, HeadsSpec):
        return {"*": spec}
    found = dict(spec) if isinstance(spec, Mapping) else {}
    if not found or not all(isinstance(name, str) and isinstance(one, HeadsSpec) for name, one in found.items()):
        raise HeadsError(
            f"spec is {spec!r}, expected settings such as CollabSpec(rank=96), or a dict of block patterns and settings"
        )
    return found


_joined_types: dict[type[HeadsSpec], type[HeadsSpec]] = {}
_found_kinds: dict[type[HeadsSpec], dict[str, tuple[type, ...]]] = {}


def _joined(base: type[HeadsSpec], spec: type[HeadsSpec]) -> type[HeadsSpec]:
    """The type of one block's settings for a spec that another package derived from a method's own."""

    def reduce(self: HeadsSpec) -> tuple[Any, ...]:  # a class that is made here is not found by its name
        return _rebuilt, (spec, {item.name: getattr(self, item.name) for item in fields(self)})

    if spec not in _joined_types:
        made = type(f"Resolved{spec.__name__}", (base, spec), {"__module__": spec.__module__, "__reduce__": reduce})
        _joined_types[spec] = dataclass(frozen=True, kw_only=True)(made)
    return _joined_types[spec]


def _rebuilt(spec: type[HeadsSpec], values: dict[str, Any]) -> HeadsSpec:
    return spec.resolved()(**values)


def _checked(spec: type[HeadsSpec], item: Field[Any], value: Any) -> Any:
    """The value of a setting, a list of numbers as a tuple.

    Raises:
        HeadsError: it is of another type than the field's, no word of its choices, or out of its bounds.
    """
    said, kinds = item.metadata, _kinds(spec)[item.name]
    if value is None and type(None) in kinds:
        return None
    if (choices := said.get("choices")) and value not in choices:
        raise HeadsError(f"{item.name} is {value!r}, expected one of {', '.join(choices)}")
    if tuple in kinds and isinstance(value, (list, tuple)) and all(type(part) is int for part in value):
        return tuple(value)
    if kinds and (type(value) not in kinds or isinstance(value, tuple)):
        names = ("a list of int" if kind is tuple else kind.__name__ for kind in kinds if kind is not type(None))
        raise HeadsError(f"{item.name} is {value!r}, expected {' or '.join(names)}")
    if type(value) in (int, float):
        least, most = said.get("at_least"), said.get("at_most")
        above, below = -math.inf if least is None else least, math.inf if most is None else most
        if not Number(above, below).allows(value):
            bounds = f"{above:g} to {below:g}" if most is not None else f"{above:g} or more"
            expected = bounds if least is not None else "a finite number"
            raise HeadsError(f"{item.name} is {shown(value)}, expected {expected}")
    return value


def _kinds(spec: type[HeadsSpec]) -> dict[str, tuple[type, ...]]:
    """The plain types that the annotations of a spec's fields allow; none of a field with another annotation."""
    if spec in _found_kinds:  # resolving annotations takes longer than all other checks together
        return _found_kinds[spec]
    hints, found = get_type_hints(spec), {}
    for item in fields(spec):
        hint = hints[item.name]
        parts = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        kinds = [tuple if get_origin(part) is tuple else part for part in parts]
        plain = all(kind in (int, float, str, bool, tuple, type(None)) for kind in kinds)
        found[item.name] = tuple([*kinds, int] if float in kinds else kinds) if plain else ()
    _found_kinds[spec] = found
    return found
