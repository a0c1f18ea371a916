"""The refinement of a converted block's scores: what is fitted are the original's attention maps, not its scores."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hf_heads.attention.hosts.blocks import Block
from hf_heads.attention.module import HeadsAttention
from hf_heads.core.attention_error import HIDDEN, AttentionSample, descend
from hf_heads.core.dense import DenseAttention
from hf_heads.jobs.conversion.stepping import Stop, real_queries, received_mask
from hf_heads.jobs.team import Team

QUERIES = 32  # of each sequence, at most
ENTRIES = 24_000_000  # of all sampled maps of a block together, at most
HELD_OUT = 5  # one sequence in so many is watched, not fitted
STEPS = 12
RIDGE = 1e-2

Samples = Mapping[int, AttentionSample]  # by the places of the batches that they are of


@dataclass(frozen=True)
class Refined:
    """What a refinement reached.

    Attributes:
        before, after: mean KL divergence from the original's attention maps, in nats for each query and head, on
            sequences that it was not fitted to, given and made ones alike; equal where it did not help.
        weights: the new tensors by name; none where it did not help.
    """

    before: float
    after: float
    weights: dict[str, Tensor]


def pairs_sampled(length: int) -> int:
    """Pairs of a sampled query and a key in a sequence."""
    return min(QUERIES, length) * length


def take_samples(
    block: Block, dense: DenseAttention, kinds: Sequence[Callable[[], Iterable[Stop]]], team: Team | None = None
) -> list[Samples]:
    """Queries of sequences with the attention that `dense` gives them, on what reaches the block.

    Sequences of the first kind are left out evenly where all of them would be too many.

    Args:
        block: where they wait.
        dense: its weights.
        kinds: each gives the batches of one kind of sequences that wait there, one by one, as often as it is called;
            all but the first take half of the room at most.
        team: the processes that share the batches; each takes samples of its own.

    Returns:
        For each kind that there is.
    """
    own = [{stop.place: tuple(stop.hidden_states.shape[:2]) for stop in stops()} for stops in kinds]
    every_own = (team or Team()).gather(own)
    sizes = [dict(sorted(item for share in every_own for item in share[kind].items())) for kind in range(len(kinds))]
    wanted, *taken = (
        dense.shape.heads * sum(rows * pairs_sampled(length) for rows, length in shapes.values()) for shapes in sizes
    )
    every = max(1, -(-wanted // max(ENTRIES - sum(taken), ENTRIES // 3)))
    return [
        _samples(block, dense, stops(), shapes, 1 if index else every)
        for index, (stops, shapes) in enumerate(zip(kinds, sizes, strict=True))
        if shapes
    ]


def _samples(
    block: Block, dense: DenseAttention, stops: Iterable[Stop], shapes: Mapping[int, tuple[int, int]], every: int
) -> Samples:
    """Samples of one sequence in `every`, each query counted once; `shapes` are those of all processes' batches."""
    generator = torch.Generator().manual_seed(0)
    noise = {
        place: torch.rand(-(-rows // every), target, generator=generator) for place, (rows, target) in shapes.items()
    }
    samples: dict[int, AttentionSample] = {}
    for stop in stops:
        hidden_states = stop.hidden_states[::every]
        given = stop.arguments.get(block.site.memory) if block.site.memory else None
        memory = hidden_states if given is None else given[::every]
        rows, target = hidden_states.shape[:2]
        no_padding, mask = real_queries(block, stop), received_mask(block, stop, memory.shape[1])
        real = torch.ones(rows, target) if no_padding is None else no_padding[::every].float().cpu()
        # The real ones first, in a random order.
        order = (real + noise[stop.place]).topk(min(QUERIES, target), 1).indices
        counts = real.gather(1, order)[:, None].to(hidden_states)
        order = order.to(hidden_states.device)
        queries = hidden_states.gather(1, order[..., None].expand(-1, -1, hidden_states.shape[-1]))
        term = hidden_states.new_zeros(1, 1, 1, memory.shape[1]) if mask is None else mask
        term = term if len(term) == 1 else term[::every]
        term = term.expand(rows, -1, target, -1)
        term = term.gather(2, order[:, None, :, None].expand(-1, term.shape[1], -1, term.shape[-1]))
        attention = (dense.scores(queries, memory) + term).softmax(-1).nan_to_num(0.0)
        samples[stop.place] = AttentionSample(queries, memory, term.clamp_min(HIDDEN), attention, counts)
    return samples


def refine(
    module: HeadsAttention,
    names: Sequence[str],
    kinds: Sequence[Samples],
    order: Sequence[int] | None = None,
    steps: int = STEPS,
    team: Team | None = None,
) -> Refined | None:
    """Lower the divergence of a module's attention maps from the sampled ones by changing the parameters `names`.

    All heads count alike: heads with a job are few, and move the output of the pretrained task little. Each kind of
    samples counts by what its divergence is of that at the start, and none may end worse than it started.

    Args:
        module: a converted block's module, of a method whose attention is the softmax of `module.scores`; it is left
            as it is.
        names: parameters that make the scores; those that it lacks are passed over.
        kinds: see `take_samples`.
        order: which head of the samples stands at each place of the module; None where they stand as they are.
        steps: at most so many.
        team: the processes that share the samples; the first one leads.

    Returns:
        What was reached; None where there are too few sequences to leave any out, or nothing is wrong.
    """
    team = team or Team()
    fitted, watched = (
        [
            {place: part for place, one in samples.items() if len((part := _parts(one, order, side)).queries)}
            for samples in kinds
        ]
        for side in (False, True)
    )
    (counts,) = team.sum(torch.tensor([[len(part) for part in side] for side in (fitted, watched)]))
    if not counts.all():
        return None
    own = dict(module.named_parameters())
    problem = Problem(module, [name for name in names if name in own], fitted, watched, team)
    start = problem.flat()
    with _trained(module, problem.parameters):
        found = team.lead(partial(_refined, problem, start, len(kinds), steps), problem.parts)
    problem.load(start)
    return found


def _refined(problem: Problem, start: Tensor, kinds: int, steps: int) -> Refined | None:
    """What `refine` reaches from the parameters as they are."""
    at_start = torch.tensor([problem.divergence(True, kind, start) for kind in range(kinds)])
    if not (at_start > 0).all():
        return None

    def watch(point: Tensor) -> float:
        shares = torch.tensor([problem.divergence(True, kind, point) for kind in range(kinds)]) / at_start
        return float(shares.mean()) if shares.max() <= 1 + 1e-6 else math.inf

    problem.weigh([problem.divergence(False, kind, start) for kind in range(kinds)])
    best, seen = descend(problem.value, problem.curvature(), start, steps, watch)
    after = torch.tensor([problem.divergence(True, kind, best) for kind in range(kinds)])
    weights = {name: one.cpu().clone() for name, one in problem.split(best).items()} if min(seen) < seen[0] else {}
    return Refined(float(at_start.mean()), float(after.mean()), weights)


def _parts(sample: AttentionSample, order: Sequence[int] | None, watched: bool) -> AttentionSample:
    """The sequences of a sample that are watched, or those that are fitted, with heads in the module's order."""
    chosen = (torch.arange(len(sample.queries)) % HELD_OUT == HELD_OUT - 1) == watched
    found = AttentionSample(*(getattr(sample, item.name)[chosen] for item in fields(sample)))
    if order is None:
        return found
    mask = found.mask if found.mask.shape[1] == 1 else found.mask[:, list(order)]
    return replace(found, attention=found.attention[:, list(order)], mask=mask)


@contextmanager
def _trained(module: nn.Module, names: Collection[str]) -> Iterator[None]:
    """Gradients for these parameters alone, as long as a `with` block lasts."""
    before = {name: one.requires_grad for name, one in module.named_parameters()}
    try:
        for name, one in module.named_parameters():
            one.requires_grad_(name in names)
        with torch.enable_grad():
            yield
    finally:
        for name, one in module.named_parameters():
            one.requires_grad_(before[name])


class Problem:
    """The mean divergence of samples as a function of a flat vector of a module's parameters.

    Args:
        module: whose scores give the attention.
        names: of the parameters.
        fitted, watched: samples of each kind.
        team: the processes that share the samples. The first one calls what is public, and the others do their share of
            its `parts` meanwhile.
    """

    def __init__(
        self,
        module: HeadsAttention,
        names: Sequence[str],
        fitted: Sequence[Samples],
        watched: Sequence[Samples],
        team: Team,
    ) -> None:
        self.module, self.team = module, team
        self.kinds = {False: fitted, True: watched}
        self.samples = {(kind, place): one for kind, part in enumerate(fitted) for place, one in part.items()}
        self.parts: dict[str, Callable[..., Any]] = {
            "divergence": self._divergence,
            "weigh": self._weigh,
            "value": self._value,
            "sides": self._sides,
        }
        self.parameters = {name: module.get_parameter(name) for name in names}
        masks = {name: module.fixed(name) for name in names}
        self.free = torch.cat(
            [
                (torch.ones_like(one) if (mask := masks[name]) is None else (~mask).to(one)).flatten().detach()
                for name, one in self.parameters.items()
            ]
        )

    def flat(self) -> Tensor:
        """The parameters as they are."""
        return torch.cat([one.detach().flatten() for one in self.parameters.values()])

    def split(self, point: Tensor) -> dict[str, Tensor]:
        """A flat vector as tensors by name."""
        parts = point.split([one.numel() for one in self.parameters.values()])
        return {name: part.view_as(one) for (name, one), part in zip(self.parameters.items(), parts, strict=True)}

    def load(self, point: Tensor) -> None:
        """Put a point into the module."""
        with torch.no_grad():
            for name, value in self.split(point).items():
                self.parameters[name].copy_(value)

    def divergence(self, watched: bool, kind: int, point: Tensor) -> float:
        """Mean divergence of the samples of a kind, nats for each query and head."""
        return float(self.team.all_do(self.parts, "divergence", watched, kind, point))

    def _divergence(self, watched: bool, kind: int, point: Tensor) -> float:
        samples = self.kinds[watched][kind].values()
        self.load(point)
        with torch.no_grad():
            parts = [one.divergence(self.module.scores(one.queries, one.memory)).mean() for one in samples]
        none = [point.new_zeros(())] if not parts else []
        total, count = self.team.sum(
            torch.stack(parts or none).sum(), torch.stack([one.counts.sum() for one in samples] or none).sum()
        )
        return float(total / count)

    def weigh(self, divergences: Sequence[float]) -> None:
        """Let each kind count by what it is of its divergence, which is given."""
        self.team.all_do(self.parts, "weigh", divergences)

    def _weigh(self, divergences: Sequence[float]) -> None:
        queries = [sum(float(one.counts.sum()) for one in samples.values()) for samples in self.kinds[False]]
        (total,) = self.team.sum(torch.tensor(queries, dtype=torch.float64))
        weights = [one * float(count) for one, count in zip(divergences, total, strict=True)]
        self.samples = {
            (kind, place): replace(one, counts=one.counts / weights[kind])
            for (kind, place), one in self.samples.items()
        }

    def value(self, point: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and gradient."""
        loss, gradient = (one.to(point) for one in self.team.all_do(self.parts, "value", point))
        return loss, gradient * self.free

    def _value(self, point: Tensor) -> list[Tensor]:
        self.load(point)
        gradient, loss = torch.zeros_like(self.free), self.free.new_zeros(())
        for one in self.samples.values():
            part = one.divergence(self.module.scores(one.queries, one.memory)).mean() / len(self.kinds[False])
            found = torch.autograd.grad(part, list(self.parameters.values()))
            gradient += torch.cat([tensor.flatten() for tensor in found])
            loss = loss + part.detach()
        return self.team.sum(loss, gradient)

    def curvature(self) -> Callable[[Tensor], Tensor]:
        """A guess at the inverse Hessian: K-FAC for weights of linear maps, a diagonal for all else.

        Both from the gradients of keys drawn from the module's own attention (Martens, Grosse 2015, arXiv 1503.05671).
        """
        grams, squares = self.team.all_do(self.parts, "sides")
        device = self.free.device
        sides = {
            name: (_inverse(outputs.to(device)), _inverse(inputs.to(device)))
            for name, (outputs, inputs) in grams.items()
        }

        def guess(gradient: Tensor) -> Tensor:
            pieces = []
            for name, part in self.split(gradient).items():
                if name in sides:
                    left, right = sides[name]
                    pieces.append((left @ part @ right).flatten())
                else:
                    square = squares[name].to(part)
                    pieces.append((part / (square + square.mean())).flatten())
            return torch.cat(pieces) * self.free

        return guess

    def _sides(self) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, Tensor]]:
        """Second moments of what linear maps give and are given, and of gradients of all parameters."""
        generator = torch.Generator().manual_seed(0)
        kept: dict[str, tuple[Tensor, Tensor]] = {}
        handles, linears = [], {}
        for name in self.parameters:
            owner = self.module.get_submodule(name.rpartition(".")[0])
            if isinstance(owner, nn.Linear) and name.endswith(".weight"):
                handles.append(owner.register_forward_hook(_keeper(kept, name)))
                linears[name] = owner.weight
        inputs = {name: one.new_zeros(one.shape[1], one.shape[1]).detach() for name, one in linears.items()}
        outputs = {name: one.new_zeros(one.shape[0], one.shape[0]).detach() for name, one in linears.items()}
        counts = torch.zeros(len(linears), dtype=torch.float64)
        total = len(self.kinds[False]) * self.module.shape.heads
        squares = {name: torch.zeros_like(one) for name, one in self.parameters.items()}
        shapes = {place: tuple(one.attention.shape) for place, one in self.samples.items()}
        for place, shape in sorted(item for share in self.team.gather(shapes) for item in share.items()):
            if place not in self.samples:
                AttentionSample.noise(shape, generator)  # which another process takes
                continue
            one = self.samples[place]
            loss = one.drawn(self.module.scores(one.queries, one.memory), generator)
            found = torch.autograd.grad(loss, [*(kept[name][1] for name in linears), *self.parameters.values()])
            for index, (name, gradient) in enumerate(zip(linears, found, strict=False)):
                rows, errors = (tensor.detach().flatten(0, -2) for tensor in (kept[name][0], gradient))
                inputs[name] += rows.T @ rows
                outputs[name] += errors.T @ errors
                counts[index] += len(rows)
            for name, gradient in zip(self.parameters, found[len(linears) :], strict=True):
                squares[name] += gradient.square() / total
        for handle in handles:
            handle.remove()
        counts, *sums = self.team.sum(counts, *outputs.values(), *inputs.values(), *squares.values())
        left, right = sums[: len(linears)], sums[len(linears) : 2 * len(linears)]
        grams = {name: (left[index] / total, right[index] / float(counts[index])) for index, name in enumerate(linears)}
        return grams, dict(zip(squares, sums[2 * len(linears) :], strict=True))


def _keeper(kept: dict[str, tuple[Tensor, Tensor]], name: str) -> Callable[..., None]:
    """A hook that keeps what a module was given and what it made of it."""

    def keep(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        kept[name] = args[0], output

    return keep


def _inverse(gram: Tensor) -> Tensor:
    """Inverse of a positive semi-definite matrix with a ridge."""
    ridge = RIDGE * gram.diagonal().mean().clamp_min(1e-30)
    return torch.linalg.inv(gram.double() + ridge.double() * torch.eye(len(gram)).to(gram).double()).to(gram)
