"""Ablation tables: what a model loses with each head out alone, with all heads of a block but one out, with all out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hf_heads.attention.hosts.blocks import find_blocks
from hf_heads.attention.hosts.table import positions_of
from hf_heads.core.batches import Batch, Progress
from hf_heads.core.corpus import bleu, f1
from hf_heads.core.errors import HeadsError
from hf_heads.core.intervals import holm, paired_interval, paired_scores, sign_test, swap_test
from hf_heads.io.data.ngrams import need_sacrebleu, ngram_counts
from hf_heads.jobs.scoring.masks import head_mask
from hf_heads.jobs.scoring.sensitivity import Reference
from hf_heads.jobs.team import Team
from hf_heads.modeling.blocks import block_shape
from hf_heads.modeling.classes import is_causal_lm

METRICS = {
    "drift": "1 - cosine of the embeddings, or KL divergence of the predictions (nats), against the whole model",
    "accuracy": "share of examples whose label is predicted, in percent",
    "loss": "mean cross-entropy of an example's labels, in nats",
    "f1": "F1 of class 1 of two, in percent",
    "bleu": "corpus BLEU of greedy translations against the labels (sacrebleu)",
}
_OF_CORPUS: dict[str, Callable[[Tensor], Tensor]] = {"f1": f1, "bleu": bleu}
_HIGHER = ("accuracy", "f1", "bleu")  # is better
_RESAMPLES = 1000  # of examples, for figures that are no means over them


@dataclass(frozen=True)
class Ablation:
    """One row of a table.

    Attributes:
        block: the block's name.
        out: the heads that are switched off, by their places in the block.
        change: the metric without the heads minus the metric with all heads.
        low, high: its 95 % interval by paired bootstrap over examples.
        p: how likely as large a change is by chance, by random signs, or examples swapped at random where the metric is
            no mean over them; of `one_out` and `one_left` times what Holm's correction for the number of rows of the
            table makes of it.
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
    decode: Callable[[Tensor], list[str]] | None = None,
    team: Team | None = None,
    progress: Progress | None = None,
) -> AblationTable:
    """Switch heads off, one at a time, all but one and all of a block, and measure what changes.

    The tables of arXiv 1905.10650, section 3, with intervals.

    Args:
        model: a model of an architecture with an adapter, native or converted; it is left as it is.
        batches: keyword arguments of the model's forward, with `labels` for a metric that wants them.
        metric: see `METRICS`; None takes accuracy or loss where there are labels, else drift.
        blocks: pattern of the blocks to look at, see `hf_heads.convert`.
        decode: for BLEU, ids (batch, length) to texts: a tokenizer's `batch_decode`, special tokens left out.
        team: the processes that share the work, all of which make this call and get the same tables.
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
    if metric in ("accuracy", "f1") and not _classes(batches):
        raise HeadsError(f"{metric} needs one class label for an example; take loss or drift")
    if metric == "f1" and model.config.num_labels != 2:
        raise HeadsError(f"f1 is of class 1 of two, and this model has {model.config.num_labels}: take accuracy")
    if metric == "bleu":
        if not model.config.is_encoder_decoder or batches[0]["labels"].ndim != 2:
            raise HeadsError("bleu needs an encoder-decoder with target texts as labels; take loss or drift")
        if decode is None:
            raise HeadsError("bleu needs decode, a function from ids to texts: a tokenizer's batch_decode")
        need_sacrebleu()
    training = model.training
    model.eval()
    try:
        return _ablate(model, batches, metric, blocks, decode, team or Team(), progress)
    finally:
        model.train(training)


def _classes(batches: Sequence[Batch]) -> bool:
    return all(batch["labels"].ndim == 1 and not batch["labels"].is_floating_point() for batch in batches)


def _ablate(
    model: PreTrainedModel,
    batches: Sequence[Batch],
    metric: str,
    pattern: str | None,
    decode: Callable[[Tensor], list[str]] | None,
    team: Team,
    progress: Progress | None,
) -> AblationTable:
    heads = {block.name: block_shape(block).heads for block in find_blocks(model, pattern)}
    measure = _measure(model, batches, metric, decode)
    whole = measure({})
    plans: list[tuple[str, str, tuple[int, ...]]] = []
    for name, count in heads.items():
        every = tuple(range(count))
        plans += [("one_out", name, (head,)) for head in every]
        plans += [("one_left", name, every[:head] + every[head + 1 :]) for head in every if count > 1]
        plans += [("none_left", name, every)] if count else []
    measured: dict[int, Tensor] = {}
    for index in team.share(len(plans)):
        _, name, out = plans[index]
        if progress:
            progress(f"ablating {name}", index, len(plans))
        mask = torch.ones(heads[name])
        mask[list(out)] = 0
        without = measure({name: mask})
        if not without.isfinite().all():
            raise HeadsError(f"{metric} without heads {', '.join(map(str, out))} of {name} is not finite: it overflows")
        measured[index] = without
    measured = {index: without for share in team.gather(measured) for index, without in share.items()}
    found: dict[str, list[_Without]] = {"one_out": [], "one_left": [], "none_left": []}
    for index, (table, name, out) in enumerate(plans):
        found[table].append(_Without(name, out, measured[index], whole))
    value = _OF_CORPUS.get(metric)
    tables = {table: _rows(rows, value, corrected=table != "none_left") for table, rows in found.items()}
    better = -1.0 if metric in _HIGHER else 1.0
    best = _rows(_best(found["one_left"], value, better), value, corrected=False) if len(whole) > 1 else ()
    return AblationTable(metric, _figure(whole, value), len(whole), **tables, best_left=best)


class _Without(NamedTuple):
    """What every example adds to the metric, (examples, several), without heads of a block and with all."""

    block: str
    out: tuple[int, ...]
    without: Tensor
    whole: Tensor

    @property
    def changes(self) -> Tensor:
        """Of every example, (examples,)."""
        return (self.without - self.whole)[:, 0]

    def every_second(self, first: int) -> _Without:
        """The same of half of the examples."""
        return self._replace(without=self.without[first::2], whole=self.whole[first::2])


def _figure(statistics: Tensor, value: Callable[[Tensor], Tensor] | None) -> float:
    """The metric: a figure of the corpus, or the mean over examples."""
    return float(statistics.mean() if value is None else value(statistics))


def _rows(found: Sequence[_Without], value: Callable[[Tensor], Tensor] | None, corrected: bool) -> tuple[Ablation, ...]:
    """Rows of a table, their p values corrected for their number or not."""
    if value is None:
        rows = [
            Ablation(
                one.block, one.out, float(one.changes.mean()), *paired_interval(one.changes), sign_test(one.changes)
            )
            for one in found
        ]
    else:
        rows = [
            Ablation(
                one.block,
                one.out,
                *paired_scores([one.whole, one.without], value, resamples=_RESAMPLES)[1][1],
                swap_test(one.without, one.whole, value, resamples=_RESAMPLES),
            )
            for one in found
        ]
    chances = holm([row.p for row in rows]) if corrected else [row.p for row in rows]
    return tuple(replace(row, p=p) for row, p in zip(rows, chances, strict=True))


def _best(found: Sequence[_Without], value: Callable[[Tensor], Tensor] | None, better: float) -> list[_Without]:
    """Of each block what changes least for the worse on every second example, measured on the others."""
    chosen = []
    for block in dict.fromkeys(one.block for one in found):
        rows = [one for one in found if one.block == block]
        best = min(rows, key=lambda one: better * _figure(one.every_second(0).without, value))
        chosen.append(best.every_second(1))
    return chosen


def _measure(
    model: PreTrainedModel,
    batches: Sequence[Batch],
    metric: str,
    decode: Callable[[Tensor], list[str]] | None,
) -> Callable[[Mapping[str, Tensor]], Tensor]:
    """A function from a head mask to what every example adds to the metric, (examples, several) in float64."""
    if decode is not None and metric == "bleu":
        return _translations(model, batches, decode)
    unlabelled = [{name: value for name, value in batch.items() if name != "labels"} for batch in batches]
    reference = Reference(model, unlabelled) if metric == "drift" else None

    @torch.no_grad()
    def measure(mask: Mapping[str, Tensor]) -> Tensor:
        found = []
        for index, (batch, inputs) in enumerate(zip(batches, unlabelled, strict=True)):
            wanted = None if reference is None else reference.wanted(index)  # before the mask
            with head_mask(model, mask):
                if reference is not None and wanted is not None:
                    output, weights, logits = reference.output(model, inputs)
                    found.append(reference.drift(output, wanted, weights, logits))
                else:
                    logits = model(**{name: value.to(model.device) for name, value in inputs.items()})["logits"]
                    found.append(_score(model, logits, batch["labels"].to(logits.device), metric))
        every = torch.cat(found).double().cpu()
        return every[:, None] if every.ndim == 1 else every

    return measure


def _translations(
    model: PreTrainedModel, batches: Sequence[Batch], decode: Callable[[Tensor], list[str]]
) -> Callable[[Mapping[str, Tensor]], Tensor]:
    """A function from a head mask to what `bleu` sums, (examples, 10)."""
    padding = model.config.pad_token_id or 0
    wanted = [decode(batch["labels"].masked_fill(batch["labels"] < 0, padding)) for batch in batches]

    @torch.inference_mode()
    def measure(mask: Mapping[str, Tensor]) -> Tensor:
        found = []
        with head_mask(model, mask):
            for batch, references in zip(batches, wanted, strict=True):
                inputs = {
                    name: value.to(model.device)
                    for name, value in batch.items()
                    if name != "labels" and not name.startswith("decoder_")
                }
                longest = 2 * batch["labels"].shape[1] + 16
                longest = min(longest, (positions_of(model.config) or longest + 1) - 1)
                ids = model.generate(**inputs, do_sample=False, num_beams=1, max_length=None, max_new_tokens=longest)  # type: ignore[operator]
                found += [ngram_counts(*pair) for pair in zip(decode(ids), references, strict=True)]
        return torch.stack(found)

    return measure


def _score(model: PreTrainedModel, logits: Tensor, labels: Tensor, metric: str) -> Tensor:
    """Accuracy in percent or cross-entropy of every example, (batch,); for F1 what is guessed and right, (batch, 2)."""
    if metric == "f1":
        return torch.stack([logits.argmax(-1) == 1, labels == 1], -1)
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
