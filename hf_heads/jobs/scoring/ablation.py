"""Ablation tables: what a model loses with each head out alone, with all heads of a block but one out, with all out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hf_heads.attention.hosts.blocks import find_blocks
from hf_heads.core.batches import Batch, Progress
from hf_heads.core.errors import HeadsError
from hf_heads.core.intervals import holm, paired_interval, sign_test
from hf_heads.jobs.scoring.masks import head_mask
from hf_heads.jobs.scoring.sensitivity import Reference
from hf_heads.modeling.blocks import block_shape
from hf_heads.modeling.classes import is_causal_lm

METRICS = {
    "drift": "1 - cosine of the embeddings, or KL divergence of the predictions (nats), against the whole model",
    "accuracy": "share of examples whose label is predicted, in percent",
    "loss": "mean cross-entropy of an example's labels, in nats",
}


@dataclass(frozen=True)
class Ablation:
    """One row of a table.

    Attributes:
        block: the block's name.
        out: the heads that are switched off, by their places in the block.
        change: mean over examples of the metric without the heads minus the metric with all heads.
        low, high: its 95 % interval by paired bootstrap over examples.
        p: how likely as large a change is by chance, by random signs; of `one_out` and `one_left` times what Holm's
            correction for the number of rows of the table makes of it.
    """

    block: str
    out: tuple[int, ...]
    change: float
    low: float
    high: float
    p: float = 1.0

    @property
    def measurable(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class AblationTable:
    """What ablations found.

    Attributes:
        metric: the name of the metric, see `METRICS`.
        whole: the metric with all heads.
        examples: how many examples it was measured on.
        one_out: a row for every head: this one is out.
        one_left: a row for every head of a block with several: all others of its block are out.
        none_left: a row for every block: all its heads are out.
        best_left: a row for every block with several heads: the one that keeps most alone, chosen on every second
            example and reported on the others; nothing where there is but one example.
    """

    metric: str
    whole: float
    examples: int
    one_out: tuple[Ablation, ...]
    one_left: tuple[Ablation, ...]
    none_left: tuple[Ablation, ...]
    best_left: tuple[Ablation, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"about": METRICS[self.metric], **asdict(self)}


def ablate(
    model: PreTrainedModel,
    batches: Sequence[Batch],
    *,
    metric: str | None = None,
    blocks: str | None = None,
    progress: Progress | None = None,
) -> AblationTable:
    """Switch heads off, one at a time, all but one and all of a block, and measure what changes.

    The tables of arXiv 1905.10650, section 3, with intervals.

    Args:
        model: a model of an architecture with an adapter, native or converted; it is left as it is.
        batches: keyword arguments of the model's forward, with `labels` for a metric that wants them.
        metric: see `METRICS`; None takes accuracy or loss where there are labels, else drift.
        blocks: pattern of the blocks to look at, see `hf_heads.convert`.
        progress: called with (what, done, total).

    Raises:
        HeadsError: no data, a metric that does not fit the labels, or a change that is not finite.
    """
    batches = list(batches)
    if not batches:
        raise HeadsError("ablation needs data: give --calibrate")
    labelled = all("labels" in batch for batch in batches)
    if metric is None:
        metric = "drift" if not labelled else "accuracy" if _classes(batches) else "loss"
    if metric not in METRICS:
        raise HeadsError(f"unknown metric '{metric}'. Known: {', '.join(METRICS)}")
    if metric != "drift" and not labelled:
        raise HeadsError(f"{metric} needs labels; drift needs none")
    if metric == "accuracy" and not _classes(batches):
        raise HeadsError("accuracy needs one class label for an example; take loss or drift")
    training = model.training
    model.eval()
    try:
        return _ablate(model, batches, metric, blocks, progress)
    finally:
        model.train(training)


def _classes(batches: Sequence[Batch]) -> bool:
    return all(batch["labels"].ndim == 1 and not batch["labels"].is_floating_point() for batch in batches)


def _ablate(
    model: PreTrainedModel, batches: Sequence[Batch], metric: str, pattern: str | None, progress: Progress | None
) -> AblationTable:
    heads = {block.name: block_shape(block).heads for block in find_blocks(model, pattern)}
    measure = _measure(model, batches, metric)
    whole = measure({})
    plans: list[tuple[str, str, tuple[int, ...]]] = []
    for name, count in heads.items():
        every = tuple(range(count))
        plans += [("one_out", name, (head,)) for head in every]
        plans += [("one_left", name, every[:head] + every[head + 1 :]) for head in every if count > 1]
        plans += [("none_left", name, every)] if count else []
    found: dict[str, list[tuple[str, tuple[int, ...], Tensor]]] = {"one_out": [], "one_left": [], "none_left": []}
    for index, (table, name, out) in enumerate(plans):
        if progress:
            progress(f"ablating {name}", index, len(plans))
        mask = torch.ones(heads[name])
        mask[list(out)] = 0
        differences = measure({name: mask}) - whole
        if not differences.isfinite().all():
            raise HeadsError(f"{metric} without heads {', '.join(map(str, out))} of {name} is not finite: it overflows")
        found[table].append((name, out, differences))
    tables = {table: _rows(rows, corrected=table != "none_left") for table, rows in found.items()}
    better = -1.0 if metric == "accuracy" else 1.0
    best = _rows(_best(found["one_left"], better), corrected=False) if len(whole) > 1 else ()
    return AblationTable(metric, float(whole.mean()), len(whole), **tables, best_left=best)


def _rows(found: Sequence[tuple[str, tuple[int, ...], Tensor]], corrected: bool) -> tuple[Ablation, ...]:
    """Rows from the differences of every example."""
    chances = [sign_test(differences) for _, _, differences in found]
    chances = holm(chances) if corrected else chances
    return tuple(
        Ablation(name, out, float(differences.mean()), *paired_interval(differences), p)
        for (name, out, differences), p in zip(found, chances, strict=True)
    )


def _best(
    found: Sequence[tuple[str, tuple[int, ...], Tensor]], better: float
) -> list[tuple[str, tuple[int, ...], Tensor]]:
    """Of each block what changes least for the worse on every second example, and its differences on the others."""
    chosen = []
    for block in dict.fromkeys(name for name, _, _ in found):
        rows = [row for row in found if row[0] == block]
        name, out, differences = min(rows, key=lambda row: better * float(row[2][::2].mean()))
        chosen.append((name, out, differences[1::2]))
    return chosen


def _measure(model: PreTrainedModel, batches: Sequence[Batch], metric: str) -> Callable[[Mapping[str, Tensor]], Tensor]:
    """A function from a head mask to the metric of every example, (examples,) in float64."""
    unlabelled = [{name: value for name, value in batch.items() if name != "labels"} for batch in batches]
    reference = Reference(model, unlabelled) if metric == "drift" else None

    @torch.no_grad()
    def measure(mask: Mapping[str, Tensor]) -> Tensor:
        found = []
        with head_mask(model, mask):
            if reference is not None:
                for batch, wanted in reference.each():
                    output, weights, logits = reference.output(model, batch)
                    found.append(reference.drift(output, wanted, weights, logits))
            else:
                for batch, inputs in zip(batches, unlabelled, strict=True):
                    logits = model(**{name: value.to(model.device) for name, value in inputs.items()})["logits"]
                    found.append(_score(model, logits, batch["labels"].to(logits.device), metric))
        return torch.cat(found).double().cpu()

    return measure


def _score(model: PreTrainedModel, logits: Tensor, labels: Tensor, metric: str) -> Tensor:
    """Accuracy in percent, or cross-entropy, of every example, (batch,)."""
    if metric == "accuracy":
        return 100.0 * (logits.argmax(-1) == labels)
    if labels.is_floating_point():
        raise HeadsError("loss is cross-entropy, which needs classes, not numbers, as labels; take drift")
    if labels.ndim == 1:
        return torch.nn.functional.cross_entropy(logits.float(), labels, reduction="none")
    if is_causal_lm(model):
        logits, labels = logits[:, :-1], labels[:, 1:]
    each = torch.nn.functional.cross_entropy(logits.float().mT, labels, reduction="none", ignore_index=-100)
    return each.sum(1) / (labels != -100).sum(1).clamp_min(1)
