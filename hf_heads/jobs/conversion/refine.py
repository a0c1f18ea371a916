"""The refinement of a converted block's scores: what is fitted are the original's attention maps, not its scores."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor, nn

from hf_heads.attention.hosts.blocks import Block
from hf_heads.attention.module import HeadsAttention
from hf_heads.core.attention_error import HIDDEN, AttentionSample, descend
from hf_heads.core.dense import DenseAttention
from hf_heads.jobs.conversion.stepping import Stop, real_queries, received_mask

QUERIES = 32  # of each sequence, at most
ENTRIES = 6_000_000  # of all sampled maps of a block together, at most
HELD_OUT = 5  # one sequence in so many is watched, not fitted
STEPS = 12
RIDGE = 1e-2


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
    block: Block, dense: DenseAttention, kinds: Sequence[Callable[[], Iterable[Stop]]]
) -> list[list[AttentionSample]]:
    """Queries of sequences with the attention that `dense` gives them, on what reaches the block.

    Sequences of the first kind are left out evenly where all of them would be too many.

    Args:
        block: where they wait.
        dense: its weights.
        kinds: each gives the batches of one kind of sequences that wait there, one by one, as often as it is called;
            all but the first take half of the room at most.

    Returns:
        A list for each kind that there is.
    """
    sizes = [[stop.hidden_states.shape for stop in stops()] for stops in kinds]
    wanted, *taken = (
        dense.shape.heads * sum(rows * pairs_sampled(length) for rows, length, _ in shapes) for shapes in sizes
    )
    every = max(1, -(-wanted // max(ENTRIES - sum(taken), ENTRIES // 3)))
    return [
        _samples(block, dense, stops(), 1 if index else every)
        for index, (stops, shapes) in enumerate(zip(kinds, sizes, strict=True))
        if shapes
    ]


def _samples(block: Block, dense: DenseAttention, stops: Iterable[Stop], every: int) -> list[AttentionSample]:
    """Samples of one sequence in `every`, each query counted once."""
    generator = torch.Generator().manual_seed(0)
    samples: list[AttentionSample] = []
    for stop in stops:
        hidden_states = stop.hidden_states[::every]
        given = stop.arguments.get(block.site.memory) if block.site.memory else None
        memory = hidden_states if given is None else given[::every]
        rows, target = hidden_states.shape[:2]
        no_padding, mask = real_queries(block, stop), received_mask(block, stop, memory.shape[1])
        real = torch.ones(rows, target) if no_padding is None else no_padding[::every].float().cpu()
        # The real ones first, in a random order.
        order = (real + torch.rand(rows, target, generator=generator)).topk(min(QUERIES, target), 1).indices
        counts = real.gather(1, order)[:, None].to(hidden_states)
        order = order.to(hidden_states.device)
        queries = hidden_states.gather(1, order[..., None].expand(-1, -1, hidden_states.shape[-1]))
        term = hidden_states.new_zeros(1, 1, 1, memory.shape[1]) if mask is None else mask
        term = term if len(term) == 1 else term[::every]
        term = term.expand(rows, -1, target, -1)
        term = term.gather(2, order[:, None, :, None].expand(-1, term.shape[1], -1, term.shape[-1]))
        attention = (dense.scores(queries, memory) + term).softmax(-1).nan_to_num(0.0)
        samples.append(AttentionSample(queries, memory, term.clamp_min(HIDDEN), attention, counts))
    return samples


def refine(
    module: HeadsAttention,
    names: Sequence[str],
    kinds: Sequence[Sequence[AttentionSample]],
    order: Sequence[int] | None = None,
    steps: int = STEPS,
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

    Returns:
        What was reached; None where there are too few sequences to leave any out, or nothing is wrong.
    """
    parts = [[_parts(one, order, watched) for one in samples] for samples in kinds for watched in (False, True)]
    fitted, watched = ([[one for one in part if len(one.queries)] for part in parts[side::2]] for side in (0, 1))
    if not all(fitted) or not all(watched):
        return None
    own = dict(module.named_parameters())
    problem = Problem(module, [name for name in names if name in own], [one for part in fitted for one in part])
    start = problem.flat()
    at_start = torch.tensor([problem.divergence(part, start) for part in watched])
    if not (at_start > 0).all():
        return None

    def watch(point: Tensor) -> float:
        shares = torch.tensor([problem.divergence(part, point) for part in watched]) / at_start
        return float(shares.mean()) if shares.max() <= 1 + 1e-6 else math.inf

    weights_of = [problem.divergence(part, start) * _queries(part) for part in fitted]
    problem.samples = [
        replace(one, counts=one.counts / weight)
        for part, weight in zip(fitted, weights_of, strict=True)
        for one in part
    ]
    problem.count = float(len(fitted))
    with _trained(module, problem.parameters):
        best, seen = descend(problem.value, problem.curvature(), start, steps, watch)
    after = torch.tensor([problem.divergence(part, best) for part in watched])
    problem.load(start)
    weights = {name: one.clone() for name, one in problem.split(best).items()} if min(seen) < seen[0] else {}
    return Refined(float(at_start.mean()), float(after.mean()), weights)


def _queries(samples: Sequence[AttentionSample]) -> float:
    return sum(float(one.counts.sum()) for one in samples)


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
    """The mean divergence of samples as a function of a flat vector of a module's parameters."""

    def __init__(self, module: HeadsAttention, names: Sequence[str], samples: Sequence[AttentionSample]) -> None:
        self.module, self.samples = module, samples
        self.parameters = {name: module.get_parameter(name) for name in names}
        self.count = _queries(samples)
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

    def value(self, point: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and gradient."""
        self.load(point)
        gradient, loss = torch.zeros_like(point), point.new_zeros(())
        for one in self.samples:
            part = one.divergence(self.module.scores(one.queries, one.memory)).mean() / self.count
            found = torch.autograd.grad(part, list(self.parameters.values()))
            gradient += torch.cat([tensor.flatten() for tensor in found])
            loss = loss + part.detach()
        return loss, gradient * self.free

    def divergence(self, samples: Sequence[AttentionSample], point: Tensor) -> float:
        """Mean divergence of samples, nats for each query and head."""
        self.load(point)
        with torch.no_grad():
            parts = [one.divergence(self.module.scores(one.queries, one.memory)).mean() for one in samples]
        return float(torch.stack(parts).sum() / torch.stack([one.counts.sum() for one in samples]).sum())

    def curvature(self) -> Callable[[Tensor], Tensor]:
        """A guess at the inverse Hessian: K-FAC for weights of linear maps, a diagonal for all else.

        Both from the gradients of keys drawn from the module's own attention (Martens, Grosse 2015, arXiv 1503.05671).
        """
        generator = torch.Generator().manual_seed(0)
        kept: dict[str, tuple[Tensor, Tensor]] = {}
        handles, linears = [], []
        for name in self.parameters:
            owner = self.module.get_submodule(name.rpartition(".")[0])
            if isinstance(owner, nn.Linear) and name.endswith(".weight"):
                handles.append(owner.register_forward_hook(_keeper(kept, name)))
                linears.append(name)
        inputs: dict[str, Tensor] = {}
        outputs: dict[str, Tensor] = {}
        counts: dict[str, int] = {}
        total = self.count * self.module.shape.heads
        squares = {name: torch.zeros_like(one) for name, one in self.parameters.items()}
        for one in self.samples:
            loss = one.drawn(self.module.scores(one.queries, one.memory), generator)
            found = torch.autograd.grad(loss, [*(kept[name][1] for name in linears), *self.parameters.values()])
            for name, gradient in zip(linears, found, strict=False):
                rows, errors = (tensor.detach().flatten(0, -2) for tensor in (kept[name][0], gradient))
                inputs[name] = inputs.get(name, 0.0) + rows.T @ rows
                outputs[name] = outputs.get(name, 0.0) + errors.T @ errors
                counts[name] = counts.get(name, 0) + len(rows)
            for name, gradient in zip(self.parameters, found[len(linears) :], strict=True):
                squares[name] += gradient.square() / total
        for handle in handles:
            handle.remove()
        sides = {name: (_inverse(outputs[name] / total), _inverse(inputs[name] / counts[name])) for name in linears}

        def guess(gradient: Tensor) -> Tensor:
            pieces = []
            for name, part in self.split(gradient).items():
                if name in sides:
                    left, right = sides[name]
                    pieces.append((left @ part @ right).flatten())
                else:
                    pieces.append((part / (squares[name] + squares[name].mean())).flatten())
            return torch.cat(pieces) * self.free

        return guess


def _keeper(kept: dict[str, tuple[Tensor, Tensor]], name: str) -> Callable[..., None]:
    """A hook that keeps what a module was given and what it made of it."""

    def keep(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        kept[name] = args[0], output

    return keep


def _inverse(gram: Tensor) -> Tensor:
    """Inverse of a positive semi-definite matrix with a ridge."""
    ridge = RIDGE * gram.diagonal().mean().clamp_min(1e-30)
    return torch.linalg.inv(gram.double() + ridge.double() * torch.eye(len(gram)).to(gram).double()).to(gram)
