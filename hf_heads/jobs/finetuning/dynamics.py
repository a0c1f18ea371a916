"""When heads come to matter: a callback of transformers' Trainer that scores heads while a model is trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_heads.core.batches import Batch
from hf_heads.core.errors import HeadsError
from hf_heads.jobs.scoring.masks import head_mask
from hf_heads.jobs.scoring.ranking import rank_heads
from hf_heads.jobs.scoring.scores import HeadScores


class HeadDynamicsCallback(TrainerCallback):
    """Scores all heads now and then while a Trainer trains a model, the dynamics of arXiv 1905.10650, section 6.

    Nothing of the run changes: heads are masked for as long as they are looked at, and what is drawn at random is put
    back. Where there is `measure`, it is called with all heads, and with shares of them gone in the order of their
    scores.

    Args:
        batches: what to score on, the same at every time; with labels for the rule `gradient`.
        every: after how many steps; None at the end of every epoch. The start and the end are looked at as well.
        rule, steps, normalize, unit: as for `hf_heads.rank_heads`.
        measure: gives a figure of a model, its accuracy say.
        removed: shares of the heads that are gone when `measure` is called, besides none.

    Attributes:
        records: one mapping a time: `step`, `epoch`, `importance` (by block), `order`, and where there is `measure`
            `figures`, from the share removed to the figure.

    Raises:
        HeadsError: no batches, or a number that is none of steps or shares.
    """

    def __init__(
        self,
        batches: Sequence[Batch],
        *,
        every: int | None = None,
        rule: str = "gradient",
        steps: int = 1,
        normalize: bool = True,
        unit: str = "example",
        measure: Callable[[PreTrainedModel], float] | None = None,
        removed: Sequence[float] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
    ) -> None:
        if not batches:
            raise HeadsError("dynamics of heads need batches to score on")
        if every is not None and every < 1:
            raise HeadsError(f"every is {every}, expected a number of steps")
        if wrong := [share for share in removed if not 0 < share <= 1]:
            raise HeadsError(f"removed has {wrong[0]:g}, expected shares between 0 and 1")
        self.batches, self.every, self.measure, self.removed = list(batches), every, measure, tuple(removed)
        self.how: dict[str, Any] = {"rule": rule, "steps": steps, "normalize": normalize, "unit": unit}
        self.records: list[dict[str, Any]] = []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Looks at the model as it starts."""
        self._look(kwargs["model"], state)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Looks at the model after so many steps."""
        if self.every is not None and state.global_step % self.every == 0:
            self._look(kwargs["model"], state)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Looks at the model after an epoch."""
        if self.every is None:
            self._look(kwargs["model"], state)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Looks at the model as it is left."""
        self._look(kwargs["model"], state)

    def _look(self, model: PreTrainedModel, state: TrainerState) -> None:
        """Add a record of this step, if there is none yet."""
        if not state.is_world_process_zero or any(one["step"] == state.global_step for one in self.records):
            return
        training, devices = model.training, [model.device] if model.device.type != "cpu" else []
        with torch.random.fork_rng(devices), torch.enable_grad():
            found = rank_heads(model, batches=self.batches, **self.how)
            record: dict[str, Any] = {
                "step": state.global_step,
                "epoch": state.epoch,
                "importance": {name: list(values) for name, values in found.importance.items()},
                "order": [list(head) for head in found.order],
            }
            if self.measure is not None:
                model.eval()
                record["figures"] = self._figures(model, found, self.measure)
        model.train(training)
        self.records.append(record)

    def _figures(
        self, model: PreTrainedModel, found: HeadScores, measure: Callable[[PreTrainedModel], float]
    ) -> dict[float, float]:
        """The figure of the model by the share of heads that is gone."""
        figures = {}
        for share in (0.0, *self.removed):
            masks = {name: torch.ones(len(values)) for name, values in found.importance.items()}
            for name, head in found.order[: round(share * len(found.order))]:
                masks[name][head] = 0
            with torch.no_grad(), head_mask(model, masks):
                figures[share] = float(measure(model))
        return figures
