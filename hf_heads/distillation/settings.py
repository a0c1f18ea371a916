"""How to heal: the settings of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from hf_heads.errors import HeadsError
from hf_heads.vocabulary import LOSSES

Train = Literal["attention", "all"]
Optimizer = Literal["muon", "adamw"]
Precision = Literal["float32", "bfloat16", "float16"]
TRAIN, OPTIMIZERS, PRECISIONS = get_args(Train), get_args(Optimizer), get_args(Precision)


@dataclass(frozen=True)
class DistillSettings:
    """How to heal.

    Attributes:
        losses: weights by name, see `LOSSES`; what suits the models where empty, see `default_losses`.
        train: `attention` (projections of the converted blocks, output projections included) or `all` parameters.
        optimizer: `muon` (matrices by orthogonalized momentum, the rest by AdamW) or `adamw`.
        learning_rate: the highest; 1e-3 for attention alone and 1e-4 for all parameters when None.
        batch_size: examples a process takes at once.
        accumulate: batches whose gradients are added up for a step.
        epochs: rounds over the data, unless `steps` says how many steps.
        steps: optimizer steps.
        minutes: stop after so much time even if steps are left; the learning rate falls by what comes first.
        evaluations: how often the drift on held-out examples is measured, evenly over the run; the best is kept.
        patience: stop after so many evaluations without a new best; None never does.
        warmup: steps in which the learning rate rises.
        temperature: of the softmax of logits.
        precision: `float32`, or `bfloat16` or `float16` mixed.
        gradient_checkpointing: store less, compute more.
        seed: of the order of the data.
    """

    losses: Mapping[str, float] = field(default_factory=dict)
    train: Train = "attention"
    optimizer: Optimizer = "muon"
    learning_rate: float | None = None
    batch_size: int = 64
    accumulate: int = 1
    epochs: float = 5.0
    steps: int | None = None
    minutes: float | None = None
    evaluations: int = 10
    patience: int | None = None
    warmup: int = 20
    temperature: float = 1.0
    precision: Precision = "float32"
    gradient_checkpointing: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.losses:
            check_losses(self.losses)
        for name, choices in (("train", TRAIN), ("optimizer", OPTIMIZERS), ("precision", PRECISIONS)):
            if getattr(self, name) not in choices:
                raise HeadsError(f"{name} is {getattr(self, name)!r}, expected one of {', '.join(choices)}")
        if not self.warmup >= 0:
            raise HeadsError(f"warmup {self.warmup} is negative; 0 starts with the highest learning rate")
        for name in ("batch_size", "accumulate", "epochs", "evaluations", "temperature"):
            if not getattr(self, name) > 0:
                raise HeadsError(f"{name.replace('_', '-')} {getattr(self, name)} is not positive")
        for name in ("learning_rate", "steps", "minutes", "patience"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise HeadsError(f"{name.replace('_', '-')} {getattr(self, name)} is not positive")


def check_losses(weights: Mapping[str, float]) -> None:
    """Raises HeadsError where a loss is unknown, a weight negative or none is left."""
    if unknown := [name for name in weights if name not in LOSSES]:
        raise HeadsError(f"no loss '{unknown[0]}'. Losses: {', '.join(LOSSES)}")
    if wrong := [name for name, weight in weights.items() if not weight >= 0]:
        raise HeadsError(f"the weight of the loss '{wrong[0]}' is {weights[wrong[0]]}; it must be 0 or more")
    if not any(weights.values()):
        raise HeadsError(f"no loss has a weight; name some of {', '.join(LOSSES)}")
