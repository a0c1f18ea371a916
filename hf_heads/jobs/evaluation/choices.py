"""What a comparison measures, and on what: a choice, before anything is read; no torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from hf_heads.core.errors import HeadsError
from hf_heads.core.numbers import EXAMPLES, Number, shown
from hf_heads.core.vocabulary import PRECISIONS
from hf_heads.io.data.choice import CalibrationChoice

AUTO = "auto"
BATCHES = (1, 8)
NUMBERS = {
    "beams": Number(1, 64, whole=True),
    "samples": EXAMPLES,
    "drift_samples": EXAMPLES,
    "resamples": Number(1, 100_000, whole=True),
    "seconds": Number(0, 86_400),
}
SIZES = {"lengths": Number(1, 131_072, whole=True), "batches": Number(1, 4096, whole=True)}


@dataclass(frozen=True)
class Choices:
    """What is compared, and on what.

    Attributes:
        data: the data of the drift and of the score: its source, columns, label and seed.
        metric: the task score, see `make_task`.
        beams: of the translations that BLEU scores.
        samples: examples that are scored; for pseudo-perplexity, tokens.
        drift_samples: examples that the drift is measured on.
        resamples: of the bootstrap.
        lengths: tokens of an example; None takes 32, 128 and 512 as far as the models go, and times up to 128.
        batches: examples at a time.
        seconds: of timing, for all models together at each batch and length.
        latency: whether to time at all.
        control: whether to measure the original with uniform attention as well.
        dtype: one of `PRECISIONS`, in which each model is compared with itself as well; None for none.

    Raises:
        HeadsError: a number of the wrong kind or out of its bounds.
    """

    data: CalibrationChoice = field(default_factory=CalibrationChoice)
    metric: str = AUTO
    beams: int = 1
    samples: int = 1000
    drift_samples: int = 256
    resamples: int = 1000
    lengths: tuple[int, ...] | None = None
    batches: tuple[int, ...] = BATCHES
    seconds: float = 2.0
    latency: bool = True
    control: bool = True
    dtype: str | None = None

    def __post_init__(self) -> None:
        for name, allowed in NUMBERS.items():
            allowed.check(name, getattr(self, name))
        if self.dtype not in (None, *PRECISIONS):
            raise HeadsError(f"dtype is {self.dtype!r}, expected one of {', '.join(PRECISIONS)}, or None")
        for name, allowed in SIZES.items():
            sizes = getattr(self, name)
            if name == "lengths" and sizes is None:
                continue
            if not isinstance(sizes, tuple) or not sizes:
                raise HeadsError(f"{name} is {shown(sizes)}, expected a tuple of numbers, as in (8, 32)")
            for size in sizes:
                allowed.check(f"one of {name}", size)
