"""How to heal: the settings of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from hf_heads.core.errors import HeadsError
from hf_heads.core.numbers import SEED, Number, shown
from hf_heads.core.vocabulary import LESSONS, LOSSES

Train = Literal["attention", "all"]
Optimizer = Literal["muon", "adamw"]
Precision = Literal["float32", "bfloat16", "float16"]

NUMBERS = {
    "learning_rate": Number(0, 100, above=True),
    "batch_size": Number(1, 65_536, whole=True),
    "accumulate": Number(1, 65_536, whole=True),
    "epochs": Number(0, 1_000_000, above=True),
    "steps": Number(1, 100_000_000, whole=True),
    "minutes": Number(0, 1_000_000, above=True),
    "evaluations": Number(1, 10_000, whole=True),
    "patience": Number(1, 10_000, whole=True),
    "warmup": Number(0, 100_000_000, whole=True),
    "temperature": Number(0, 10_000, above=True),
    "seed": SEED,
}
SECONDS = Number(0, 60_000_000, above=True)  # of healing right after a conversion
_OPTIONAL = ("learning_rate", "steps", "minutes", "patience", "warmup")
WEIGHT = Number(0, 1_000_000)  # of a loss
TRAIN, OPTIMIZERS, PRECISIONS = get_args(Train), get_args(Optimizer), get_args(Precision)


@dataclass(frozen=True)
class DistillSettings:
    """How to heal.

    Attributes:
        losses: weights by name, see `LOSSES`; what suits the models where empty, see `default_losses`.
        train: `attention` (projections of the converted blocks, output projections included) or `all` parameters.
        optimizer: `adamw`, or `muon` (matrices by orthogonalized momentum, the rest by AdamW), whose steps take longer.
        learning_rate: the highest. None takes 1e-3 for attention alone and 1e-4 for all parameters, and the less the
            nearer a model is to its original, down to three tenths of it, see `rate_from_start`.
        batch_size: examples a process takes at once.
        accumulate: batches whose gradients are added up for a step.
        epochs: rounds over the data, unless `steps` says how many steps.
        steps: optimizer steps.
        minutes: stop after so much time even if steps are left; the learning rate falls by what comes first.
        evaluations: how often the drift on held-out examples is measured, evenly over the run; the best is kept.
        patience: stop after so many evaluations without a new best; None never does.
        warmup: steps in which the learning rate rises, however long the run is; None takes 20 steps or a tenth of the
            run, whichever is over sooner.
        temperature: of the softmax of logits.
        precision: `float32`, or `bfloat16` or `float16` mixed.
        teacher_outputs: where what the teacher says of an example is until it is seen again, one of `LESSONS`: keeping
            it saves all of the teacher's forward passes after the first round. Results are the same but for rounding.
        gradient_checkpointing: store less, compute more.
        seed: of the order of the data.
    """

    losses: Mapping[str, float] = field(default_factory=dict)
    train: Train = "attention"
    optimizer: Optimizer = "adamw"
    learning_rate: float | None = None
    batch_size: int = 32
    accumulate: int = 1
    epochs: float = 5.0
    steps: int | None = None
    minutes: float | None = None
    evaluations: int = 10
    patience: int | None = None
    warmup: int | None = None
    temperature: float = 1.0
    precision: Precision = "float32"
    teacher_outputs: str = "auto"
    gradient_checkpointing: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.losses:
            check_losses(self.losses)
        allowed_words = {
            "train": TRAIN,
            "optimizer": OPTIMIZERS,
            "precision": PRECISIONS,
            "teacher_outputs": tuple(LESSONS),
        }
        for name, choices in allowed_words.items():
            if getattr(self, name) not in choices:
                raise HeadsError(f"{name} is {getattr(self, name)!r}, expected one of {', '.join(choices)}")
        for name, allowed in NUMBERS.items():
            value = getattr(self, name)
            if value is not None or name not in _OPTIONAL:
                allowed.check(name.replace("_", "-"), value)


def check_losses(weights: Mapping[str, float]) -> None:
    """Raises HeadsError where a loss is unknown, a weight out of bounds or none is left."""
    if not isinstance(weights, Mapping):
        raise HeadsError(f"losses is {shown(weights)}, expected weights by name, as in {{'output': 1, 'hidden': 1}}")
    if unknown := [name for name in weights if name not in LOSSES]:
        raise HeadsError(f"no loss '{unknown[0]}'. Losses: {', '.join(LOSSES)}")
    for name, weight in weights.items():
        WEIGHT.check(f"the weight of the loss '{name}'", weight)
    if not any(weights.values()):
        raise HeadsError(f"no loss has a weight; name some of {', '.join(LOSSES)}")
