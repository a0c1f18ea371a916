"""How to heal: the settings of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import TrainingArguments

from hf_heads.distillation.losses import check_losses
from hf_heads.distillation.trainer import NEVER
from hf_heads.errors import HeadsError

Train = Literal["attention", "all"]


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
    optimizer: Literal["muon", "adamw"] = "muon"
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
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    gradient_checkpointing: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.losses:
            check_losses(self.losses)
        for name in ("batch_size", "accumulate", "epochs", "evaluations", "temperature"):
            if not getattr(self, name) > 0:
                raise HeadsError(f"{name.replace('_', '-')} {getattr(self, name)} is not positive")
        for name in ("learning_rate", "steps", "minutes", "patience"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise HeadsError(f"{name.replace('_', '-')} {getattr(self, name)} is not positive")

    def arguments(self, folder: Path, **more: Any) -> TrainingArguments:
        """The settings as `TrainingArguments`; `more` has the last word."""
        given: dict[str, Any] = {
            "output_dir": str(folder),
            "per_device_train_batch_size": self.batch_size,
            "gradient_accumulation_steps": self.accumulate,
            "num_train_epochs": self.epochs,
            "max_steps": self.steps or -1,
            "bf16": self.precision == "bfloat16",
            "fp16": self.precision == "float16",
            "seed": self.seed,
            "learning_rate": self.learning_rate or (1e-3 if self.train == "attention" else 1e-4),
            "weight_decay": 0.0,
            "adam_epsilon": 1e-6,
            "max_grad_norm": 0.0,  # both optimizers take steps of the same size whatever the gradient's
            "dataloader_pin_memory": torch.cuda.is_available(),
            "eval_strategy": "steps",
            "eval_steps": NEVER,
            "save_strategy": "steps",
            "save_steps": NEVER,
            "save_total_limit": 1,
            "load_best_model_at_end": True,
            "metric_for_best_model": "drift",
            "greater_is_better": False,
            "dataloader_drop_last": True,
            "remove_unused_columns": False,
            "logging_steps": 10,
            "disable_tqdm": True,
            "report_to": "none",
        }
        if self.gradient_checkpointing:
            given |= {"gradient_checkpointing": True}
        return TrainingArguments(**{**given, **more})
