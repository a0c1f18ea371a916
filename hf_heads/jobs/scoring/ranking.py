"""Which heads matter: all heads of a model in the order in which to remove them."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hf_heads.attention.hosts.blocks import find_blocks
from hf_heads.core.batches import Batch, Progress, main_output, thin
from hf_heads.core.errors import HeadsError
from hf_heads.core.vocabulary import CONSTANT_RULES, RULES, UNITS
from hf_heads.jobs.scoring.scores import Head, HeadScores, fingerprint
from hf_heads.jobs.scoring.sensitivity import (
    Reference,
    ablations,
    examples_of,
    gauss_newton,
    gradients,
    token_gradients,
)
from hf_heads.jobs.team import Team
from hf_heads.methods.pruned import map_energy
from hf_heads.methods.settings.pruned import spared
from hf_heads.modeling.blocks import block_shape, read_block

_MANY, _SHARE = 1024, 4  # examples of which Gauss-Newton takes one in so many: a quarter of them chose as well as all


def rank_heads(
    model: PreTrainedModel,
    rule: str = "gauss-newton",
    batches: Sequence[Batch] | None = None,
    *,
    blocks: Sequence[str] | str | None = None,
    steps: int = 4,
    keep: float = 0.0,
    normalize: bool = False,
    unit: str = "example",
    least: int = 0,
    seed: int = 0,
    team: Team | None = None,
    progress: Progress | None = None,
) -> HeadScores:
    """Score the heads of a model and order them for removal.

    Args:
        model: a model of an architecture with an adapter, native or converted; it is left as it is.
        rule: `gradient` is the mean over examples of |dL/dxi| (arXiv 1905.10650). `gauss-newton` needs no labels: it
            predicts the drift of the output from E[J^T J], J the output's derivative by all masks, with the
            interactions of heads, and removes greedily; of 1,024 examples or more it takes every fourth, unless the
            output is logits of tokens. `ablation` measures the drift with each head switched off. `weights` is
            |W_V O| of each head. `random` is the control.
        batches: keyword arguments of the model's forward; with `labels` for `gradient`.
        blocks: names of the blocks whose heads may go, or a pattern as in `hf_heads.convert`; None takes all.
        steps: rounds. After each, scores are measured anew with what has gone masked.
        keep: share of the heads that surely stays; the rounds end there.
        normalize: divide scores by their l2 norm in each block (not for `gauss-newton`, whose scores are drifts).
        unit: of `gradient`, whether the absolute value is taken of each example, as the paper defines it, or of each
            token, as the authors' code does.
        least: how many heads of each block go after all others.
        seed: of the random directions and of `random`.
        team: the processes that share the work, all of which make this call and get the same scores.
        progress: called with (what, done, total).

    Raises:
        HeadsError: an unknown rule, data or labels that the rule needs and has not got, blocks that do not exist.
    """
    if rule not in RULES:
        raise HeadsError(f"unknown rule '{rule}'. Known: {', '.join(RULES)}")
    if steps < 1:
        raise HeadsError(f"steps {steps} is not positive")
    if normalize and rule == "gauss-newton":
        raise HeadsError("gauss-newton scores are drifts and add up over blocks; leave out normalize")
    if unit not in UNITS or (unit != "example" and rule != "gradient"):
        raise HeadsError(f"unit {unit} is of no use to {rule}: units are {', '.join(UNITS)}, of the rule gradient")
    batches = list(batches or [])
    if not batches and rule not in CONSTANT_RULES:
        raise HeadsError(f"{rule} needs data: give --calibrate, or take the rule weights, which needs none")
    if rule == "gradient" and not all("labels" in batch for batch in batches):
        raise HeadsError("gradient needs labels; take gauss-newton, which needs none")
    if rule != "gradient":
        batches = [{name: value for name, value in batch.items() if name != "labels"} for batch in batches]
    names = [block.name for block in find_blocks(model, blocks if isinstance(blocks, str) else None)]
    if blocks is not None and not isinstance(blocks, str):
        names = [name for name in names if name in set(blocks)]
    heads = {block.name: block_shape(block).heads for block in find_blocks(model) if block.name in names}
    layout = [(name, head) for name in heads for head in range(heads[name])]
    training = model.training
    model.eval()
    try:
        how = _How(rule, normalize, unit, least, seed, team or Team())
        scored = _order(model, how, batches, layout, steps, round(keep * len(layout)), progress)
    finally:
        model.train(training)
    first, order = scored
    values = iter(first.tolist())
    importance = {name: tuple(next(values) for _ in range(count)) for name, count in heads.items()}
    ordered = tuple(layout[index] for index in order)
    found = HeadScores(rule, importance, ordered, steps, normalize, fingerprint(model))
    return dataclasses.replace(found, unit=unit, least=least)


class _How(NamedTuple):
    """The arguments of `rank_heads` that say what scores are."""

    rule: str
    normalize: bool
    unit: str
    least: int
    seed: int
    team: Team


def _order(
    model: PreTrainedModel,
    how: _How,
    batches: Sequence[Batch],
    layout: Sequence[Head],
    steps: int,
    keep: int,
    progress: Progress | None,
) -> tuple[Tensor, list[int]]:
    """Scores with all heads in place, and the indices of all heads in the order of removal."""
    going = max(len(layout) - keep, 1)
    mask = torch.ones(len(layout))
    gone: list[int] = []
    first = None
    rule = how.rule
    if rule in CONSTANT_RULES:
        scores = _scores(model, how, batches, None, layout, mask)
        places = {head: index for index, head in enumerate(layout)}
        order = spared([layout[index] for index in scores.argsort(stable=True).tolist()], how.least)
        return scores, [places[head] for head in order]
    if rule == "gauss-newton" and examples_of(batches) >= _MANY and not _says_tokens(model, batches[0]):
        batches = [thin(batch, _SHARE) for batch in batches]
    drift = Reference(model, batches, how.seed) if rule in ("gauss-newton", "ablation") else None
    for step in range(1, steps + 1):
        if progress:
            progress(f"scoring heads by {rule}, round {step} of {steps}", step - 1, steps)
        until = len(layout) if step == steps else round(going * step / steps)
        if until <= len(gone):
            continue
        if rule == "gauss-newton":
            assert drift is not None
            gradient, curvature = gauss_newton(model, drift, layout, mask, how.team)
            scores = curvature.diagonal() / 2 - gradient
        else:
            curvature = None
            scores = _scores(model, how, batches, drift, layout, mask)
        first = scores if first is None else first
        predicted = scores.clone()  # the loss that each further removal adds, given what this round has removed
        while len(gone) < until:
            head = int(predicted.masked_fill(~_may_go(layout, mask, how.least), torch.inf).argmin())
            gone.append(head)
            mask[head] = 0
            if curvature is not None:
                predicted = predicted + curvature[head]
    assert first is not None
    return first, gone


@torch.no_grad()
def _says_tokens(model: PreTrainedModel, batch: Batch) -> bool:
    """Whether a model's output is logits of tokens: a direction says less of so many of them."""
    output, logits = main_output(model, thin(batch, examples_of([batch])))
    return logits and output.ndim > 2


def _may_go(layout: Sequence[Head], mask: Tensor, least: int) -> Tensor:
    """Which heads may go next: those of blocks with more than `least`, or any where there is no such block."""
    there = mask.bool()
    left = Counter(name for (name, _), one in zip(layout, there.tolist(), strict=True) if one)
    free = there & torch.tensor([left[name] > least for name, _ in layout])
    return free if bool(free.any()) else there


def _scores(
    model: PreTrainedModel,
    how: _How,
    batches: Sequence[Batch],
    drift: Reference | None,
    layout: Sequence[Head],
    mask: Tensor,
) -> Tensor:
    """Scores of the rules in which every head stands for itself, (heads of all blocks,)."""
    found = _plain_scores(model, how, batches, drift, layout, mask)
    return _normalized(found, layout) if how.normalize else found


def _plain_scores(
    model: PreTrainedModel,
    how: _How,
    batches: Sequence[Batch],
    drift: Reference | None,
    layout: Sequence[Head],
    mask: Tensor,
) -> Tensor:
    rule = how.rule
    if rule == "weights":
        energy = {block.name: map_energy(read_block(block)) for block in find_blocks(model)}
        return torch.stack([energy[name][head].cpu() for name, head in layout]).sqrt()
    if rule == "random":
        return torch.rand(len(layout), dtype=torch.float64, generator=torch.Generator().manual_seed(how.seed))
    if rule == "gradient":
        measure = gradients if how.unit == "example" else token_gradients
        own = [batches[index] for index in how.team.share(len(batches))]
        total, count = how.team.sum(*measure(model, own, layout, mask))
        return total / count.clamp_min(1)
    assert drift is not None
    return ablations(model, drift, layout, mask, how.team)


def _normalized(scores: Tensor, layout: Sequence[Head]) -> Tensor:
    """Scores divided by their l2 norm in each block."""
    blocks = [name for name, _ in layout]
    norms = {
        name: scores[torch.tensor([other == name for other in blocks])].norm().clamp_min(1e-300) for name in set(blocks)
    }
    return scores / torch.stack([norms[name] for name in blocks])
