"""Healing: a converted model learns to do what its original does, on a `Trainer` of transformers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import Dataset, Sampler
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import TrainerState

from hf_heads.attention.hosts.blocks import find_blocks
from hf_heads.attention.hosts.table import adapter_of
from hf_heads.core.batches import Batch
from hf_heads.core.errors import HeadsError
from hf_heads.jobs.distillation.lessons import Lessons
from hf_heads.jobs.distillation.losses import Matching
from hf_heads.jobs.distillation.muon import Muon
from hf_heads.jobs.distillation.schedule import (
    LengthSampler,
    Patience,
    RunClock,
    rate_factor,
    rate_from_start,
    without_dropout,
)
from hf_heads.jobs.distillation.settings import DistillSettings, Train
from hf_heads.jobs.evaluation.drift import Reference
from hf_heads.modeling.auto_classes import auto_classes
from hf_heads.modeling.blocks import block_specs, inertia_by_name
from hf_heads.modeling.classes import native_model
from hf_heads.modeling.internals import unsaved_keys

RATES: dict[Train, float] = {"attention": 1e-3, "all": 1e-4}
_NUMBERS = "example_numbers"  # of a batch
NEVER = 10**9  # steps between what a callback decides instead


def training_arguments(settings: DistillSettings, folder: Path, **more: Any) -> TrainingArguments:
    """Settings of healing as `TrainingArguments`; `more` has the last word."""
    given: dict[str, Any] = {
        "output_dir": str(folder),
        "per_device_train_batch_size": settings.batch_size,
        "gradient_accumulation_steps": settings.accumulate,
        "num_train_epochs": settings.epochs,
        "max_steps": settings.steps or -1,
        "bf16": settings.precision == "bfloat16",
        "fp16": settings.precision == "float16",
        "seed": settings.seed,
        "learning_rate": settings.learning_rate or RATES[settings.train],
        "weight_decay": 0.0,
        "adam_beta2": 0.98,
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
    if settings.gradient_checkpointing:
        given |= {"gradient_checkpointing": True}
    return TrainingArguments(**{**given, **more})


def default_losses(model: PreTrainedModel, labels: bool = False) -> dict[str, float]:
    """Losses that did well for a model like this, see `scripts/run.py heal`."""
    losses = {"output": 1.0, "hidden": 1.0}
    adapter = adapter_of(model.config)
    if adapter.modality == "text" and native_model(type(model)).__name__ == auto_classes(adapter)["AutoModel"]:
        losses["embedding"] = 1.0
    return {**losses, "task": 1.0} if labels else losses


def trained_parameters(model: PreTrainedModel, train: Train) -> list[nn.Parameter]:
    """The parameters that are to be trained; the others are frozen, and so are those that the host never saves."""
    # Marian's position embeddings, say: they are made anew at loading, so that what was learned of them would be lost.
    unsaved = unsaved_keys(model)
    chosen = {one for name, one in model.named_parameters(remove_duplicate=False) if name not in unsaved}
    if train == "attention":
        converted = block_specs(model)
        chosen = {
            parameter
            for block in find_blocks(model)
            if block.name in converted
            for module in (block.module, block.output)
            for parameter in module.parameters()
        }
    # What is computed, as Marian's positions are, is not saved; yet transformers 5.24 loads it as if it were trainable.
    computed = set(getattr(model, "_keys_to_ignore_on_save", None) or ())
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter in chosen and parameter.is_floating_point() and name not in computed)
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


class DistillTrainer(Trainer):
    """A `Trainer` whose loss is the difference between a converted model and its original.

    Accelerate, mixed precision, gradient accumulation, several processes, resuming and logging are the Trainer's own.
    Evaluation measures `Drift` on held-out batches and, as `drift`, the squared error of the outputs as a share of
    their variance. The model that is left at the end is the one with the least KL of logits, with the least `drift`
    where there are no logits, or with the least loss where the task counts. Dropout is off.

    Args:
        model: the converted model; what `settings.train` leaves out is frozen.
        teacher: the original.
        settings: see `DistillSettings`.
        args: made from the settings when None; see `DistillSettings.arguments`.
        train_dataset: examples, each a dict; they have `input_ids` where there are texts to sort by length.
        data_collator: a list of examples -> keyword arguments of both models' forward, with masks, and `labels` where
            the task loss is wanted.
        held_out: batches as the collator makes them.
        folder: where checkpoints go, if `args` is None.
        report: called with (what, done, total).
        lessons: those of an earlier trainer with the same teacher, data and settings.
        runs: how many trainers there are to be with these.

    Raises:
        HeadsError: no held-out batches, too few examples for one step, or see `Matching`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        teacher: PreTrainedModel,
        settings: DistillSettings,
        *,
        train_dataset: Sequence[Any],
        data_collator: Any,
        held_out: Sequence[Batch],
        args: TrainingArguments | None = None,
        folder: Path | str = "distillation",
        report: Any = None,
        lessons: Lessons | None = None,
        runs: int = 1,
    ) -> None:
        if not held_out:
            raise HeadsError("healing needs examples to hold out, by which it knows when to stop; give more data")
        self.settings = settings
        args = args or training_arguments(settings, Path(folder))
        self.clock = RunClock(settings.minutes, settings.evaluations, report)
        teacher.to(args.device)  # type: ignore[arg-type]
        self.student, self.teacher = model, teacher.eval().requires_grad_(False)
        self.held_out = list(held_out)
        self.unlabelled = [{name: value for name, value in batch.items() if name != "labels"} for batch in held_out]
        self.reference = Reference(self.teacher, self.unlabelled)
        losses = settings.losses or default_losses(model, "labels" in self.held_out[0])
        if "task" in losses and "labels" not in self.held_out[0]:
            raise HeadsError("the loss 'task' needs labels; name a column with --label, or leave it out")
        self.metric = "loss" if losses.get("task") else "kl" if self.reference.classes > 1 else "drift"
        args.metric_for_best_model = self.metric
        callbacks: list[TrainerCallback] = [self.clock]
        if settings.patience is not None:
            callbacks.append(Patience(settings.patience, f"eval_{self.metric}"))
        trained_parameters(model, settings.train)
        self.examples = train_dataset
        super().__init__(
            model,
            args,
            data_collator=_Numbering(data_collator),
            train_dataset=_Numbered(train_dataset),
            eval_dataset=list(held_out),
            callbacks=callbacks,
        )
        step = args.train_batch_size * args.world_size * args.gradient_accumulation_steps
        if len(train_dataset) < step:
            raise HeadsError(
                f"{len(train_dataset)} examples are less than the {step} of one step; lower the batch size"
            )
        self.step_examples = step
        self.matching = Matching(model, self.teacher, losses, self.held_out[:8], settings.temperature)
        self.lessons = self._make_lessons(data_collator, Path(args.output_dir or folder), lessons, runs)
        # The losses are means over a batch, whatever the model would do with labels.
        self.model_accepts_loss_kwargs = False

    def _make_lessons(self, collate: Any, folder: Path, known: Lessons | None, runs: int) -> Lessons:
        """What the teacher says of the examples, where runs that follow one another share it."""
        args, step = self.args, self.step_examples
        steps = args.max_steps if args.max_steps > 0 else args.num_train_epochs * (len(self.examples) // step)
        return Lessons(
            self.matching,
            self.examples,
            collate,
            list(self._get_train_sampler()),
            args.train_batch_size,
            where=self.settings.teacher_outputs,
            rounds=runs * steps * step / len(self.examples),
            folder=folder,
            known=known,
        )

    def heal(self, resume: str | None = None) -> list[dict[str, float]]:
        """Train, and leave the model of the best evaluation; returns the curve.

        Args:
            resume: a checkpoint folder of an interrupted run with the same settings and data.
        """
        if resume is not None:
            state = TrainerState.load_from_json(str(Path(resume) / "trainer_state.json"))
            for callback in self.callback_handler.callbacks:
                kept = state.stateful_callbacks.get(type(callback).__name__)
                if isinstance(callback, RunClock | Patience) and kept is not None:
                    vars(callback).update(kept["attributes"])
        trained = (item for item in self.student.named_parameters() if item[1].requires_grad)
        self._first = {name: parameter.detach().to("cpu", copy=True) for name, parameter in trained}
        with without_dropout(self.student):
            try:
                if resume is None:
                    self.evaluate()
                usual = RATES[self.settings.train]
                if self.settings.learning_rate is None and self.args.learning_rate == usual:
                    self.args.learning_rate = usual * rate_from_start(self.clock.curve[0]["drift"])
                self.train(resume_from_checkpoint=resume)
            finally:
                self.matching.close()
        self.student.eval()
        return self.clock.curve

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The weighted losses of `Matching`."""
        inputs = dict(inputs)
        numbers = inputs.pop(_NUMBERS, None)
        there = None if numbers is None else self.lessons(numbers.tolist(), inputs)
        loss, outputs = self.matching(model, inputs, there)
        return (loss, outputs) if return_outputs else loss

    def evaluate(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> dict[str, float]:
        """Drift on the held-out batches, the same in every process."""
        found, error = self.reference.measure(self.student)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in found.to_dict().items()}
        metrics[f"{metric_key_prefix}_drift"] = error
        with torch.no_grad():
            if "task" in self.matching.weights:
                batches = [self._prepare_inputs(dict(batch)) for batch in self.held_out]
                losses = [float(self.matching(self.student, batch)[0]) for batch in batches]
                metrics[f"{metric_key_prefix}_loss"] = sum(losses) / len(losses)
        metrics[f"{metric_key_prefix}_seconds"] = self.clock.seconds if self.state.global_step else 0.0
        self.log(metrics)
        self.clock.curve.append(_point({**metrics, "step": self.state.global_step}))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        if self.state.global_step and self.clock.should_retreat(self.metric):
            self._retreat()
        return metrics

    def _retreat(self) -> None:
        """Go back to the start, forget the momentum, and go on at a lower learning rate."""
        assert self.optimizer is not None
        before = self.clock.share
        self.clock.retreats += 1
        self.student.load_state_dict(self._first, strict=False)
        self.optimizer.state.clear()
        for group in self.optimizer.param_groups:
            group["lr"] *= self.clock.share / before

    def create_optimizer(self, model: Any = None) -> Any:
        """Muon or AdamW over what is trained; what heads share moves as far as anything else, whatever its inertia."""
        if self.optimizer is None:
            inertias, groups = inertia_by_name(self.student), dict[int, list[nn.Parameter]]()
            for name, parameter in self.student.named_parameters():
                if parameter.requires_grad:
                    groups.setdefault(inertias.get(name, 1), []).append(parameter)
            rate = self.args.learning_rate
            given = [{"params": chosen, "lr": rate * inertia} for inertia, chosen in groups.items()]
            if self.settings.optimizer == "muon":
                self.optimizer = Muon(given, lr=rate)
            else:
                kind, options = self.get_optimizer_cls_and_kwargs(self.args, self.student)
                self.optimizer = kind(given, **options)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """A rise and a cosine's fall, over the steps or over the time, whichever is sooner at its end."""
        if self.lr_scheduler is None:

            def factor(step: int) -> float:
                done = max(min(step / max(num_training_steps, 1), 1.0), self.clock.done)
                return self.clock.share * rate_factor(step, done, self.settings.warmup)

            self.lr_scheduler = LambdaLR(optimizer or self.optimizer, factor)  # type: ignore[arg-type]
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        lengths = [len(self.examples[index].get("input_ids", ())) for index in range(len(self.examples))]
        return LengthSampler(lengths, self.step_examples, self.args.seed)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self._restore(Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        self._restore(Path(str(self.state.best_model_checkpoint)))

    def _restore(self, folder: Path) -> None:
        """Load weights by the names that `from_pretrained` knows; the Trainer's own way passes renamed ones over."""
        saved = type(self.student).from_pretrained(folder, dtype=self.student.dtype, use_safetensors=True)
        self.student.load_state_dict(saved.state_dict())


class _Numbered(Dataset[Any]):
    """Examples with their numbers, (number, example)."""

    def __init__(self, examples: Sequence[Any]) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, number: int) -> tuple[int, Any]:
        return number, self.examples[number]


class _Numbering:
    """A collator of examples with their numbers, which it adds to the batch."""

    def __init__(self, collate: Any) -> None:
        self.collate = collate

    def __call__(self, numbered: Sequence[tuple[int, Any]]) -> dict[str, Any]:
        batch = self.collate([example for _, example in numbered])
        return {**batch, _NUMBERS: torch.tensor([number for number, _ in numbered])}


def _point(entry: Mapping[str, float]) -> dict[str, float]:
    """A point of the curve from what an evaluation logs."""
    point = {name.removeprefix("eval_"): value for name, value in entry.items() if name.startswith("eval_")}
    return {"step": entry["step"], **{name: round(value, 6) for name, value in point.items()}}
