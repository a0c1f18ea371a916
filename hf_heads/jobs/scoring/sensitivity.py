"""How a model's output and loss depend on masks of its heads: gradients, Gauss-Newton, ablation.

Every rule works on masks: xi_h multiplies the output of head h, 1 keeps the head and 0 removes it. Masks are given to
every example on its own, so that one backward pass yields the gradient of each example.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_heads.attention.hosts.blocks import find_blocks
from hf_heads.core.batches import Batch, main_output, output_mask, thin
from hf_heads.core.errors import HeadsError
from hf_heads.jobs.scoring.masks import head_mask
from hf_heads.jobs.scoring.scores import Head
from hf_heads.jobs.team import Team
from hf_heads.modeling.classes import is_causal_lm

KEPT = 2**26  # numbers of a reference's outputs that stay in memory
_PROBES = 2  # random directions of the output for each example and round
_ABLATION_SHARE = 4  # ablation runs the model once for every head, on one example in so many


def by_block(mask: Tensor, layout: Sequence[Head]) -> dict[str, Tensor]:
    """(..., heads of all blocks) as a mask for every block, (..., heads)."""
    columns: dict[str, list[int]] = {}
    for column, (name, _) in enumerate(layout):
        columns.setdefault(name, []).append(column)
    return {name: mask[..., where] for name, where in columns.items()}


def gradients(
    model: PreTrainedModel, batches: Sequence[Batch], layout: Sequence[Head], mask: Tensor
) -> tuple[Tensor, Tensor]:
    """Sums of |dL/dxi| of every head over examples, the absolute value taken of each, and how many these are."""
    total, count = torch.zeros(len(layout), dtype=torch.float64), 0
    for batch in batches:
        examples = len(batch["labels"])
        xi = mask.expand(examples, -1).clone().requires_grad_()
        with head_mask(model, by_block(xi, layout)):
            outputs = model(**{name: value.to(model.device) for name, value in batch.items()})
        loss = outputs.get("loss")
        _check_loss(model, loss)
        (gradient,) = torch.autograd.grad(loss, xi)
        # The model's loss is a mean over all labels of the batch; an example's own is the mean over its labels.
        labels = _label_counts(model, batch).double()
        gradient = gradient.double() * (labels.sum() / labels.clamp_min(1))[:, None]
        total += gradient.abs().sum(0)
        count += examples
    return total, torch.tensor(count)


def _check_loss(model: PreTrainedModel, loss: Tensor | None) -> None:
    if loss is None:
        raise HeadsError(f"{type(model).__name__} gives no loss for labels; take gauss-newton, which needs none")


def token_gradients(
    model: PreTrainedModel, batches: Sequence[Batch], layout: Sequence[Head], mask: Tensor
) -> tuple[Tensor, Tensor]:
    """The same with the absolute value taken of every token: |Att_h(x)_t dL/dAtt_h(x)_t| summed over tokens.

    Tokens that the loss does not depend on, padding above all, do not count.
    """
    total, count = torch.zeros(len(layout), dtype=torch.float64), torch.zeros(len(layout), dtype=torch.float64)
    names = list(by_block(mask, layout))
    for batch in batches:
        with head_mask(model, by_block(mask, layout)), contexts_of(model, names) as contexts:
            loss = model(**{name: value.to(model.device) for name, value in batch.items()}).get("loss")
            _check_loss(model, loss)
            each = torch.autograd.grad(loss, list(contexts.values()))
        labels = _label_counts(model, batch).double()
        weight = (labels.sum() / labels.clamp_min(1))[:, None, None]
        found, seen = [], []
        for name, gradient in zip(contexts, each, strict=True):
            heads = sum(one == name for one, _ in layout)
            inner = (contexts[name].detach() * gradient).double().cpu().unflatten(-1, (heads, -1)).sum(-1)
            found.append((inner * weight).abs().flatten(0, 1).sum(0))
            seen.append(gradient.any(-1).sum().double().cpu().expand(heads))
        total, count = total + torch.cat(found), count + torch.cat(seen)
    return total, count


@contextmanager
def contexts_of(model: PreTrainedModel, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """What goes into the output projections of some blocks, (batch, target, heads * width), within a `with` block."""
    blocks = {block.name: block for block in find_blocks(model)}
    kept: dict[str, Tensor] = {}

    def keeper(name: str) -> Any:
        def keep(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            kept[name] = args[0] if args[0].requires_grad else args[0].requires_grad_()
            return (kept[name], *args[1:])

        return keep

    handles = [blocks[name].output.register_forward_pre_hook(keeper(name)) for name in names]
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()


def _label_counts(model: PreTrainedModel, batch: Batch) -> Tensor:
    """How many labels of every example enter the loss, (batch,)."""
    labels = batch["labels"]
    if labels.ndim < 2 or labels.is_floating_point():
        return torch.ones(len(labels))
    if is_causal_lm(model):
        labels = labels[:, 1:]  # the first token is nobody's prediction
    return (labels != -100).flatten(1).sum(1)


def measured_output(model: PreTrainedModel, batch: Batch) -> tuple[Tensor, Tensor, bool]:
    """Output vectors (batch, positions, width), positions' weights (batch, positions), whether they are logits."""
    found, logits = main_output(model, batch)
    problem = getattr(model.config, "problem_type", None)
    logits = logits and found.shape[-1] > 1 and problem not in ("regression", "multi_label_classification")
    mask = output_mask(batch, found)
    found = found.float()
    if found.ndim == 2:
        return found[:, None], found.new_ones(len(found), 1), logits
    found = found.flatten(1, -2)
    weights = found.new_ones(found.shape[:2]) if mask is None else mask.to(found)
    weights = weights / weights.sum(1, keepdim=True).clamp_min(1)
    if logits:
        return found, weights, True
    if mask is not None:
        found, weights = (found * weights[..., None]).sum(1, keepdim=True), weights.new_ones(len(weights), 1)
    return torch.nn.functional.normalize(found, dim=-1), weights, False


def probe_output(found: Tensor, weights: Tensor, logits: bool, generator: torch.Generator) -> Tensor:
    """A number whose gradient g has E[g g^T] = the Gauss-Newton matrix of the drift, summed over examples.

    Args:
        found, weights, logits: see `measured_output`; the drift is that of `Reference`.
        generator: of the random direction.
    """
    if logits:
        chances = found.detach().softmax(-1)
        drawn = _drawn(chances, generator).to(found.device)
        direction = chances.scatter_add(-1, drawn.view(*chances.shape[:2], 1), -torch.ones_like(chances[..., :1]))
    else:
        direction = torch.randn(found.shape, generator=generator).to(found)
    return (found * direction * weights.sqrt()[..., None]).sum()


def _drawn(chances: Tensor, generator: torch.Generator) -> Tensor:
    """A class for every position, (batch * positions, 1)."""
    return torch.multinomial(chances.flatten(0, 1).cpu(), 1, generator=generator)


class Reference:
    """The outputs of a model as it is, and how far other outputs on the same inputs are from them.

    Hidden states of texts are pooled and set to length one, and the drift is half the squared distance, which is
    1 - cosine; other hidden states likewise, position by position. Logits are compared by KL divergence in nats, a
    mean over the positions of an example; those of a regression or of several yes-no questions by half their squared
    distance.

    Args:
        model: whose outputs they are; it runs again for every use of those that are too large to keep.
        batches: keyword arguments of its forward.
        seed: of the directions of `probe`.
    """

    def __init__(self, model: PreTrainedModel, batches: Sequence[Batch], seed: int = 0) -> None:
        self.model, self.batches = model, batches
        self.generator = torch.Generator().manual_seed(seed)
        self._kept: dict[int, Tensor] = {}
        self._room = KEPT
        self._sizes: dict[int, tuple[torch.Size, bool]] = {}

    @torch.no_grad()
    def wanted(self, index: int) -> Tensor:
        """The output for a batch, see `measured_output`: as it was kept, or by a forward pass of the model as it is."""
        return self._kept[index] if index in self._kept else self._look(index)[0]

    def _look(self, index: int) -> tuple[Tensor, bool]:
        """The output for a batch, which is kept where there is room, and whether it is logits."""
        found, _, logits = self.output(self.model, self.batches[index])
        if found.numel() <= self._room:
            self._room -= found.numel()
            self._kept[index] = found
        return found, logits

    def output(self, model: PreTrainedModel, batch: Batch) -> tuple[Tensor, Tensor, bool]:
        """See `measured_output`."""
        return measured_output(model, batch)

    def drift(self, found: Tensor, wanted: Tensor, weights: Tensor, logits: bool) -> Tensor:
        """Drift of every example, (batch,)."""
        if not logits:
            return ((found - wanted).square().sum(-1) * weights).sum(1) / 2
        there = wanted.log_softmax(-1)
        return ((there.exp() * (there - found.log_softmax(-1))).sum(-1) * weights).sum(1)

    def probe(self, found: Tensor, weights: Tensor, logits: bool) -> Tensor:
        """See `probe_output`."""
        return probe_output(found, weights, logits, self.generator)

    @torch.no_grad()
    def know_sizes(self, team: Team) -> None:
        """Learn from the processes of a team what the outputs for all batches are like; before heads are masked."""
        if team.size == 1 or self._sizes:
            return
        own = {}
        for index in team.share(len(self.batches)):
            found, logits = self._look(index)  # not kept beyond its turn where there is no room
            own[index] = found.shape, logits
        self._sizes = {index: size for share in team.gather(own) for index, size in share.items()}

    def pass_by(self, index: int) -> None:
        """Draw what `probe` draws for a batch that another process runs, so that one process draws the same."""
        shape, logits = self._sizes[index]
        if logits:
            _drawn(torch.ones(shape), self.generator)
        else:
            torch.randn(shape, generator=self.generator)


def gauss_newton(
    model: PreTrainedModel, reference: Reference, layout: Sequence[Head], mask: Tensor, team: Team
) -> tuple[Tensor, Tensor]:
    """Gradient (heads,) and Gauss-Newton matrix (heads, heads) of the mean drift by the masks, at a mask.

    Processes of a team share the batches.
    """
    heads = len(layout)
    gradient = torch.zeros(heads, dtype=torch.float64)
    curvature = torch.zeros(heads, heads, dtype=torch.float64)
    count = 0
    moved = bool((mask != 1).any())  # else nothing has drifted yet
    reference.know_sizes(team)
    own = team.share(len(reference.batches))
    for index, batch in enumerate(reference.batches):
        if index not in own:
            for _ in range(_PROBES):
                reference.pass_by(index)
            continue
        wanted = reference.wanted(index) if moved else None
        xi = mask.expand(_examples(batch), -1).clone().requires_grad_()
        with head_mask(model, by_block(xi, layout)):
            found, weights, logits = reference.output(model, batch)
        for _ in range(_PROBES):
            (each,) = torch.autograd.grad(reference.probe(found, weights, logits), xi, retain_graph=True)
            curvature += (each.T @ each).double() / _PROBES
        if wanted is not None:
            (each,) = torch.autograd.grad(reference.drift(found, wanted, weights, logits).sum(), xi)
            gradient += each.sum(0).double()
        count += len(xi)
    gradient, curvature, examples = team.sum(gradient, curvature, torch.tensor(count))
    return gradient / examples, curvature / examples


@torch.no_grad()
def ablations(model: PreTrainedModel, reference: Reference, layout: Sequence[Head], mask: Tensor, team: Team) -> Tensor:
    """How much the drift grows with each head switched off, on a part of the data; a team's processes share heads."""
    every = _ABLATION_SHARE if examples_of(reference.batches) >= 256 else 1
    left = mask.nonzero().flatten().tolist()
    own = [left[index] for index in team.share(len(left))]
    scores, count = torch.zeros(len(layout), dtype=torch.float64), 0
    for place, batch in enumerate(reference.batches):
        part, wanted = (batch if every == 1 else thin(batch, every)), reference.wanted(place)[::every]
        for index in own:
            without = mask.clone()
            without[index] = 0
            with head_mask(model, by_block(without, layout)):
                found, weights, logits = reference.output(model, part)
            scores[index] += float(reference.drift(found, wanted, weights, logits).sum())
        count += len(wanted)
    (scores,) = team.sum(scores)
    return scores / count


def examples_of(batches: Sequence[Batch]) -> int:
    """How many examples some batches have."""
    return sum(map(_examples, batches))


def _examples(batch: Batch) -> int:
    return len(next(iter(batch.values())))
