"""`HeadsSpec`: the settings of one block, which are a command's options and a config's entries."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

from hf_heads.errors import HeadsError

if TYPE_CHECKING:
    from hf_heads.core.dense import AttentionShape, DenseAttention
    from hf_heads.core.statistics import BlockStatistics


def option(
    default: Any, text: str, *, stored: bool = True, command: bool = True, choices: tuple[str, ...] | None = None
) -> Any:
    """A field of a spec.

    Args:
        default: its value when nothing is said.
        text: what it means, for the command line's help.
        stored: it is an entry of the config.
        command: it is an option of the command line.
        choices: the words that it may be.
    """
    return field(default=default, metadata={"help": text, "stored": stored, "command": command, "choices": choices})


class RankHeads(Protocol):
    """Measures how much heads matter; returns all heads of the blocks, (block, place), the least important first."""

    def __call__(
        self, names: Sequence[str], *, rule: str, steps: int, keep: float, normalize: bool, scores: str | None
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
    heads: int | None = option(None, "number of heads; the host's when not given", command=False)

    def resolve(self, shape: AttentionShape, where: str = "the block", before: HeadsSpec | None = None) -> Self:
        """The same settings with all that depends on the block's shape filled in and checked.

        Args:
            shape: the block's sizes as it is now.
            where: the block's name, for messages.
            before: its settings if it was converted before.

        Raises:
            HeadsError: the settings do not fit the shape; the message names the limit.
        """
        if self.heads not in (None, shape.heads):
            raise HeadsError(f"{self.method} keeps the number of heads, which is {shape.heads} in {where}")
        return dataclasses.replace(self, heads=shape.heads)

    def plan(self, blocks: Mapping[str, BlockProfile], rank_heads: RankHeads) -> dict[str, Self]:
        """Settings for every block of a model, for methods that spread a total over the blocks.

        Args:
            blocks: what is known of each block.
            rank_heads: orders the heads of blocks by importance, which is measured when it is called.
        """
        return {name: self.resolve(block.shape, name, block.before) for name, block in blocks.items()}

    def needs_profiles(self) -> bool:
        """Whether `plan` wants statistics of all blocks of the original model first."""
        return False

    def reshape(self, shape: AttentionShape) -> AttentionShape:
        """The sizes of the new block, from those of the host's."""
        return dataclasses.replace(shape, heads=shape.heads if self.heads is None else self.heads)

    def refits(self) -> bool:
        """Whether the output projection is refitted after conversion, unless the caller forbids it."""
        return True

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
        known = {item.name: item for item in fields(cls)}
        settings: dict[str, Any] = {}
        for name, value in entries.items():
            if name not in known:
                raise HeadsError(f"{where}: {cls.method} has no setting '{name}'. Known: {', '.join(known)}")
            choices = known[name].metadata.get("choices")
            if choices and value not in choices:
                raise HeadsError(f"{where}: {name} is {value!r}, expected one of {', '.join(choices)}")
            wanted: tuple[type, ...] = (str,) if choices else _types(known[name].type)
            settings[name] = value
            if tuple in wanted and isinstance(value, list) and all(type(part) is int for part in value):
                settings[name] = tuple(value)
            elif value is not None and (type(value) not in wanted or type(value) is tuple):
                names = " or ".join("a list of int" if kind is tuple else kind.__name__ for kind in wanted)
                raise HeadsError(f"{where}: {name} is {value!r}, expected {names}")
        return cls(**settings)


def _types(annotation: Any) -> tuple[type, ...]:
    """The plain types that an annotation of a spec's field allows."""
    kinds: dict[str, type] = {"int": int, "float": float, "str": str, "bool": bool, "tuple[int, ...]": tuple}
    found = [kinds[part.strip()] for part in str(annotation).split("|") if part.strip() in kinds]
    return tuple([*found, int] if float in found else found)
