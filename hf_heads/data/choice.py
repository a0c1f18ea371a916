"""What to calibrate or measure on: a choice, before anything is read."""

from __future__ import annotations

from dataclasses import dataclass

from hf_heads.vocabulary import RANDOM


@dataclass(frozen=True)
class CalibrationChoice:
    """What to calibrate on.

    Attributes:
        source: `random` (made from nothing), `none` (weights only) or what `datasets` loads.
        columns: columns to read; found when None.
        label: the column with labels, where they are needed; found when None.
        samples: number of examples.
        seed: of the choice of examples and of made data.
    """

    source: str = RANDOM
    columns: tuple[str, ...] | None = None
    label: str | None = None
    samples: int = 512
    seed: int = 0
