"""What to calibrate or measure on: a choice, before anything is read; no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_heads.core.errors import HeadsError
from hf_heads.core.numbers import EXAMPLES, SEED, Number
from hf_heads.core.vocabulary import NONE, RANDOM

EXAMPLES_USUAL = 512  # where nobody says otherwise
TOKENS_ENOUGH = 60_000  # of texts to calibrate on: where heads share what they have, fewer fit themselves alone
MAX_LENGTH = 512  # of texts, where nobody says otherwise and the model takes as many
TOKENS = Number(8, 131_072, whole=True)


@dataclass(frozen=True)
class CalibrationChoice:
    """What to calibrate on.

    Attributes:
        source: `random` (made from nothing, by a language model itself where it can), `none` (weights only) or what
            `datasets` loads: a file, a folder, or a hub id as NAME, NAME:SPLIT or NAME:SUBSET:SPLIT. Several in a tuple
            give an equal share of the examples each.
        columns: columns to read, nested ones as `translation.en` or `captions.0`; found when None. Of several sources,
            those that have none of them are read as if nothing was said.
        label: the column with labels, which is never read as an input; found where it is needed when None.
        samples: number of examples; when None 512, and of texts that a conversion is calibrated on as many more as it
            takes to come to `TOKENS_ENOUGH` from each source, as far as there are some.
        seed: of the choice of examples and of made data.
        pairs: whether two text columns are two segments of one sequence, or so many single texts; when None, as the
            checkpoint's class takes them, see `hf_heads.io.data.pairs`.
        max_length: the most tokens of a text; when None, what the model takes, up to 512.
        pack: join and cut a part of the texts to a mixture of lengths up to that, see `hf_heads.io.data.lengths`; else
            all stay as they are, and made ones are short. What is only measured on stays as it is in any case.

    Raises:
        HeadsError: a value of the wrong kind, or columns of no data.
    """

    source: str | tuple[str, ...] = RANDOM
    columns: tuple[str, ...] | None = None
    label: str | None = None
    samples: int | None = None
    seed: int = 0
    pairs: bool | None = None
    max_length: int | None = None
    pack: bool = True

    @property
    def sources(self) -> tuple[str, ...]:
        """All sources, one at least."""
        return (self.source,) if isinstance(self.source, str) else self.source

    @property
    def single(self) -> str:
        """The one source.

        Raises:
            HeadsError: there are several.
        """
        if len(self.sources) > 1:
            raise HeadsError(f"one data set at a time can be read here, not {len(self.sources)}: {self.sources}")
        return self.sources[0]

    @property
    def count(self) -> int:
        """How many examples to begin with."""
        return EXAMPLES_USUAL if self.samples is None else self.samples

    @property
    def made(self) -> bool:
        """Whether all of it is made from nothing."""
        return self.source == RANDOM

    def public(self) -> dict[str, Any]:
        """Plain values for reports, in which data of one's own is the last part of its path."""
        sources = [_public(source) for source in self.sources]
        columns = list(self.columns) if self.columns else None
        return {**vars(self), "columns": columns, "source": sources[0] if len(sources) == 1 else sources}

    def __post_init__(self) -> None:
        if isinstance(self.source, tuple) and len(self.source) == 1:
            object.__setattr__(self, "source", self.source[0])
        sources = self.source if isinstance(self.source, tuple) else (self.source,)
        if not sources or not all(isinstance(one, str) and one for one in sources):
            raise HeadsError(f"data is {self.source!r}, expected `random`, `none` or what `datasets` loads")
        if NONE in sources and len(sources) > 1:
            raise HeadsError("data is `none` and something else: leave one of the two out")
        if len(set(sources)) < len(sources):
            raise HeadsError("the same data is named twice: leave one of the two out")
        columns = self.columns
        if columns is not None and not (isinstance(columns, tuple) and all(isinstance(one, str) for one in columns)):
            raise HeadsError(f"columns is {columns!r}, expected names of columns, as in ('question', 'answer')")
        if not isinstance(self.label, str | None):
            raise HeadsError(f"label is {self.label!r}, expected the name of a column")
        if self.samples is not None:
            EXAMPLES.check("samples", self.samples)
        SEED.check("seed", self.seed)
        if not isinstance(self.pairs, bool | None):
            raise HeadsError(f"pairs is {self.pairs!r}, expected True, False, or None for what the checkpoint takes")
        if not isinstance(self.pack, bool):
            raise HeadsError(f"pack is {self.pack!r}, expected True or False")
        if self.max_length is not None:
            TOKENS.check("max_length", self.max_length)
        for name in ("columns", "label"):
            if getattr(self, name) is not None and self.source in (RANDOM, NONE):
                raise HeadsError(f"{name} says what to read of a data set, and '{self.source}' is none: name one")


def _public(source: str) -> str:
    """A source as others may read it: data of one's own is the last part of its path."""
    path = Path(source).expanduser()
    own = source not in (RANDOM, NONE) and (path.exists() or path.is_absolute())
    return path.name if own else source
