"""What to calibrate or measure on: a choice, before anything is read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_heads.core.errors import HeadsError
from hf_heads.core.numbers import EXAMPLES, SEED
from hf_heads.core.vocabulary import NONE, RANDOM


@dataclass(frozen=True)
class CalibrationChoice:
    """What to calibrate on.

    Attributes:
        source: `random` (made from nothing), `none` (weights only) or what `datasets` loads: a file, a folder, or a hub
            id as NAME, NAME:SPLIT or NAME:SUBSET:SPLIT.
        columns: columns to read, nested ones as `translation.en`; found when None.
        label: the column with labels, which is never read as an input; found where it is needed when None.
        samples: number of examples.
        seed: of the choice of examples and of made data.

    Raises:
        HeadsError: a value of the wrong kind, or columns of no data.
    """

    source: str = RANDOM
    columns: tuple[str, ...] | None = None
    label: str | None = None
    samples: int = 512
    seed: int = 0

    def public(self) -> dict[str, Any]:
        """Plain values for reports, in which data of one's own is the last part of its path."""
        path = Path(self.source).expanduser()
        own = self.source not in (RANDOM, NONE) and (path.exists() or path.is_absolute())
        columns = list(self.columns) if self.columns else None
        return {**vars(self), "columns": columns, "source": path.name if own else self.source}

    def __post_init__(self) -> None:
        if not isinstance(self.source, str) or not self.source:
            raise HeadsError(f"data is {self.source!r}, expected `random`, `none` or what `datasets` loads")
        columns = self.columns
        if columns is not None and not (isinstance(columns, tuple) and all(isinstance(one, str) for one in columns)):
            raise HeadsError(f"columns is {columns!r}, expected names of columns, as in ('question', 'answer')")
        if not isinstance(self.label, str | None):
            raise HeadsError(f"label is {self.label!r}, expected the name of a column")
        EXAMPLES.check("samples", self.samples)
        SEED.check("seed", self.seed)
        for name in ("columns", "label"):
            if getattr(self, name) is not None and self.source in (RANDOM, NONE):
                raise HeadsError(f"{name} says what to read of a data set, and '{self.source}' is none: name one")
