"""What keeps a run of healing in order: the order of its examples, how far it is, when it stops, and no dropout."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.data import Sampler
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState, TrainerControl, TrainerState

_WARM_STEPS, _WARM_SHARE = 20, 0.1
_FAR, _LEAST_RATE = 0.2, 0.3  # an error from which on the rate is the usual one, and the least share of it
_RETREATS, _RETREAT = ((0.2, 0.5), (0.5, 0.75)), 0.1  # how far a run is, lost or not, and what is left of its rate
_LOST = 1.3  # times the error at the start


def rate_factor(step: int, done: float, warmup: int | None) -> float:
    """The learning rate at a step as a share of the highest: a rise, times a cosine's fall.

    Args:
        step: from 0.
        done: how far the run is, by steps or by time, whichever is further, 0 to 1.
        warmup: steps of the rise; None takes 20 steps or a tenth of the run, whichever is over sooner.
    """
    rise = (step + 1) / ((_WARM_STEPS if warmup is None else warmup) + 1)
    if warmup is None:
        rise = max(rise, done / _WARM_SHARE)
    return min(rise, 1.0) * 0.5 * (1 + math.cos(math.pi * done))


def rate_from_start(drift: float) -> float:
    """What a run takes of the usual learning rate, by the squared error that it starts from.

    A step of either optimizer is as large as the rate, whatever the gradient: at a rate that suits a model far from its
    original one that is near gets worse first, and needs a longer run to come back. Of rates tried, 1e-3 did best from
    an error of .19 (a MiniLM with one shared head), 2e-4 and 5e-4 alike from .054 (its collaborative heads of rank 48).
    How near a model may be and still gain by a rate of 3e-4 depends on its task: a ViT does so from .007, and a
    classifier of sentences at .014 gets worse at 1e-4 as well, goes back to its start and ends better by a tenth of
    3e-4. So no rate is less than that.

    Args:
        drift: squared error of the outputs as a share of their variance, see `DistillTrainer`.
    """
    return min(1.0, max(drift / _FAR, _LEAST_RATE))


class LengthSampler(Sampler[int]):
    """All examples in a new order every epoch, such that those of one step are of similar lengths.

    The order depends on seed and epoch alone: neither on how a step is divided among processes and accumulated
    batches, nor on anything drawn before.

    Args:
        lengths: of the examples.
        step: examples of one optimizer step, over all processes.
        seed: of the order.
    """

    def __init__(self, lengths: Sequence[int], step: int, seed: int) -> None:
        self.lengths = torch.tensor(lengths, dtype=torch.float64)
        self.step, self.seed, self.epoch = step, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Called before every epoch, and after a resume with the one that was left."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(1_000_003 * self.seed + self.epoch)
        noise = 1 + 0.2 * torch.rand(len(self.lengths), generator=generator, dtype=torch.float64)
        order = (self.lengths * noise).argsort()
        full = len(order) // self.step * self.step
        groups = order[:full].view(-1, self.step)
        groups = groups[torch.randperm(len(groups), generator=generator)]
        yield from groups.flatten().tolist()
        yield from order[full:].tolist()


class RunClock(TrainerCallback, ExportableState):
    """How far a run is, by steps and by time; it decides when to measure, to save and to stop.

    Args:
        minutes: the time there is, or None.
        evaluations: how often to measure and save.
        report: called with (what, done, total).
    """

    def __init__(self, minutes: float | None, evaluations: int, report: Any = None) -> None:
        self.minutes, self.evaluations, self.report = minutes, evaluations, report
        self.before = 0.0  # seconds of the run up to the checkpoint that it was resumed from
        self.started = time.perf_counter()
        self.done = 0.0
        self.measured = 0
        self.curve: list[dict[str, float]] = []
        self.retreats = 0  # how often the run went back to its start, to go on at a lower learning rate

    def should_retreat(self, metric: str) -> bool:
        """Whether the run has come far, sooner if it got lost, and nothing by this metric was better than its start."""
        start, *points = (point[metric] for point in self.curve)
        if self.retreats == len(_RETREATS) or any(point < start for point in points):
            return False
        lost, straying = _RETREATS[self.retreats]
        return (lost if points[-1] > _LOST * start else straying) <= self.done < 1

    @property
    def share(self) -> float:
        """Of the learning rate, what retreats have left."""
        return _RETREAT**self.retreats

    @property
    def seconds(self) -> float:
        """Seconds of training, evaluations included, over all resumed parts."""
        return self.before + time.perf_counter() - self.started

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        settings = {"minutes": self.minutes, "evaluations": self.evaluations}
        kept = {"before": self.seconds, "done": self.done, "measured": self.measured, "curve": self.curve}
        kept |= {"retreats": self.retreats}
        return {"args": settings, "attributes": kept}

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Start the clock."""
        self.started = time.perf_counter()

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Note how far the run is, the same in all processes."""
        share = state.global_step / max(state.max_steps, 1)
        if self.minutes is not None:
            share = max(share, shared_maximum(self.seconds / 60 / self.minutes))
        self.done = min(share, 1.0)
        if self.report is not None:
            self.report("healing", round(1000 * self.done), 1000)
        reached = math.floor(self.done * self.evaluations + 1e-9)
        if reached > self.measured:
            self.measured = reached
            control.should_evaluate = control.should_save = True
        if self.done >= 1:
            control.should_training_stop = True


def shared_maximum(value: float) -> float:
    """The largest of all processes' values."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return value
    device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
    tensor = torch.tensor(value, dtype=torch.float64, device=device)
    torch.distributed.all_reduce(tensor, torch.distributed.ReduceOp.MAX)
    return float(tensor)


class Patience(TrainerCallback, ExportableState):
    """Stops a run when a metric has not been lower for so many evaluations."""

    def __init__(self, patience: int, metric: str) -> None:
        self.patience, self.metric, self.best, self.waited = patience, metric, math.inf, 0

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        settings = {"patience": self.patience, "metric": self.metric}
        return {"args": settings, "attributes": {"best": self.best, "waited": self.waited}}

    def on_evaluate(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Count the evaluations since the best."""
        found = kwargs["metrics"][self.metric]
        self.waited = 0 if found < self.best else self.waited + 1
        self.best = min(self.best, found)
        if self.waited >= self.patience:
            control.should_training_stop = True


@contextmanager
def without_dropout(model: nn.Module) -> Iterator[None]:
    """Dropout off within the `with` block, whatever mode the model is in: a student must see what its teacher sees."""
    names = ("dropout", "attention_dropout", "activation_dropout", "layerdrop")
    before: list[tuple[nn.Module, str, float]] = []
    for module in model.modules():
        before += [(module, "p", module.p)] if isinstance(module, nn.Dropout) else []
        before += [(module, name, vars(module)[name]) for name in names if isinstance(vars(module).get(name), float)]
    for module, name, _ in before:
        setattr(module, name, 0.0)
    try:
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)
