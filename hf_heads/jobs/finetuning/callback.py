"""Convert on the way: a callback of transformers' Trainer that converts the model in the middle of a run."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_heads.attention.hosts.blocks import find_blocks
from hf_heads.attention.spec import HeadsSpec, by_pattern
from hf_heads.core.batches import Batch
from hf_heads.core.errors import HeadsError
from hf_heads.jobs.conversion.convert import convert
from hf_heads.jobs.conversion.planning import choose_blocks
from hf_heads.jobs.conversion.report import Report
from hf_heads.jobs.finetuning.loader import drawn_batches
from hf_heads.jobs.finetuning.optimizer import renew_parameters
from hf_heads.modeling.blocks import block_specs

_ENTRY = "heads_converted"  # in the Trainer's log, which checkpoints keep: the step of the conversion


class ConvertCallback(TrainerCallback):
    """Converts the model of a Trainer after so many steps of its run, on the run's own training data.

    At the end of step `at` the attention is converted in place, with the labels of the batches for settings that use
    them. The optimizer forgets the parameters that are gone and takes up the new ones, in the groups of those that they
    replace; what it knows of all others, and the schedule, stay. What is drawn at random in the run is the same as
    without the conversion. Evaluations and checkpoints of that step and later are of the converted model, and only
    these count for `load_best_model_at_end`.

    An interrupted run goes on as ever from a checkpoint before the conversion, and to the same weights. After it, the
    model has to be made from the checkpoint, `AutoModelForX.from_pretrained(checkpoint)`, before the Trainer is.

    Args:
        spec: settings as for `hf_heads.convert`.
        at: when: a share of all steps (a number between 0 and 1), or the number of a step.
        calibration_batches: how many batches of the training data to convert on, drawn at random by the run's seed.
        calibration: batches to convert on instead; needed where the data set can only be iterated.
        blocks, refit: as for `hf_heads.convert`.

    Attributes:
        report: of the conversion, None before it.

    Raises:
        HeadsError: `at`, `calibration_batches` or `spec` is of the wrong kind. When training begins: `at` is not within
            the run, the model does not fit the checkpoint, the settings do not fit the model, or the run is of a kind
            in which a model cannot be exchanged: several processes or GPUs, DeepSpeed, FSDP, torch.compile.
    """

    def __init__(
        self,
        spec: HeadsSpec | dict[str, HeadsSpec],
        at: float = 2 / 3,
        *,
        calibration_batches: int = 32,
        calibration: Sequence[Batch] | None = None,
        blocks: str | None = None,
        refit: bool = True,
    ) -> None:
        by_pattern(spec)
        right = (isinstance(at, float) and 0 < at < 1) or (type(at) is int and at >= 1)
        if not right:
            raise HeadsError(f"at is {at!r}, expected a share of the steps between 0 and 1, or the number of a step")
        if type(calibration_batches) is not int or calibration_batches < 1:
            raise HeadsError(f"calibration_batches is {calibration_batches!r}, expected a number of 1 or more")
        self.spec, self.at, self.blocks, self.refit = spec, at, blocks, refit
        self.calibration_batches, self.calibration = calibration_batches, calibration
        self.report: Report | None = None
        self._step = 0

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Watch what the Trainer loads into the model."""
        model = kwargs["model"]
        if isinstance(model, PreTrainedModel):
            # The Trainer loads what has the same name, and would leave attention of another kind as it is.
            model.register_load_state_dict_pre_hook(_check_checkpoint)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Refuse what cannot be, before anything is trained."""
        model = kwargs["model"]
        _check_run(args, model)
        self._step = self.at if isinstance(self.at, int) else max(1, round(self.at * state.max_steps))
        if self._step >= state.max_steps:
            raise HeadsError(
                f"at {self.at:g} is step {self._step} of {state.max_steps}: nothing would be trained after"
            )
        if _done(state):
            if not block_specs(model):
                raise HeadsError(f"this run was converted at step {_done(state)}, the model is not: {_LOAD}")
            return
        if state.global_step >= self._step:
            raise HeadsError(
                f"the run is at step {state.global_step} already, and was not converted at {self._step}: "
                "give a later `at`, or convert the model itself"
            )
        if self.report is not None and block_specs(model):
            raise HeadsError("this model was converted by an earlier run: make a new one, or leave out the callback")
        choose_blocks(model, self.spec, self.blocks)  # refuses what does not fit while nothing is lost

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Convert, if it is time."""
        if state.global_step != self._step or _done(state):
            return
        model, started = kwargs["model"], time.perf_counter()
        seed = args.seed if args.data_seed is None else args.data_seed
        before = dict(model.named_parameters())
        with _undisturbed(model):
            batches = self.calibration or drawn_batches(
                kwargs["train_dataloader"], model, self.calibration_batches, seed
            )
            _, self.report = convert(
                model,
                self.spec,
                calibration=batches,
                blocks=self.blocks,
                refit=self.refit,
                seed=seed,
                inplace=True,
            )
        renew_parameters(kwargs["optimizer"], model, before)
        state.best_metric = state.best_model_checkpoint = state.best_global_step = None
        seconds = round(time.perf_counter() - started, 2)
        state.log_history.append({"step": state.global_step, _ENTRY: state.global_step, "heads_seconds": seconds})


def _done(state: TrainerState) -> int | None:
    """The step at which the run's model was converted."""
    return next((int(entry[_ENTRY]) for entry in state.log_history if _ENTRY in entry), None)


def _check_run(args: TrainingArguments, model: nn.Module) -> None:
    """Refuse runs whose model is wrapped in something that would not notice that it became another.

    Raises:
        HeadsError: says what stands in the way.
    """
    if not isinstance(model, PreTrainedModel):
        raise HeadsError(f"ConvertCallback converts a model of transformers, not {type(model).__name__}")
    reasons = {
        "several processes": args.world_size > 1,
        "several GPUs in one process": args.n_gpu > 1,
        "DeepSpeed": bool(args.deepspeed),
        "FSDP": bool(args.fsdp),
        "torch.compile": bool(args.torch_compile),
    }
    for reason, there in reasons.items():
        if there:
            raise HeadsError(
                f"ConvertCallback cannot exchange a model that trains with {reason}: train up to `at`, convert what "
                "was saved, and train the rest"
            )


_LOAD = "load it with `AutoModelForX.from_pretrained(checkpoint)` of your X before you make the Trainer"


def _check_checkpoint(model: nn.Module, state_dict: Mapping[str, Any], *_: Any) -> None:
    """Refuse weights whose attention is of another kind than the model's; called before a model loads any.

    Raises:
        HeadsError: names the first weight that does not fit.
    """
    assert isinstance(model, PreTrainedModel)
    own = model.state_dict()
    inside = tuple(f"{path}." for block in find_blocks(model) for path in (block.path, block.output_path))
    for name, tensor in state_dict.items():
        if name.startswith(inside) and (name not in own or own[name].shape != tensor.shape):
            raise HeadsError(f"the checkpoint's '{name}' does not fit the model's attention: {_LOAD}")


@contextmanager
def _undisturbed(model: nn.Module) -> Iterator[None]:
    """Keep what a conversion must not change: the state of random numbers, and accelerate's cast around `forward`.

    Statistics are taken in the weights' own precision, whatever that of the run.
    """
    python, numpy = random.getstate(), np.random.get_state()
    wrapped = vars(model).pop("forward", None)
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        if wrapped is not None:
            model.forward = wrapped
