"""How far a converted model's outputs are from the original's, on the same inputs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from hf_heads.attention.hosts.blocks import Block, find_blocks
from hf_heads.core.batches import Batch, main_output, mean_pool, output_mask
from hf_heads.core.errors import HeadsError
from hf_heads.modeling.internals import attention_implementation


@dataclass(frozen=True)
class Drift:
    """Differences between two models' main outputs: logits, or hidden states of a model without a head.

    Attributes:
        cosine: mean cosine between the two output vectors. For hidden states of texts, the vector is the mean over a
            text's tokens (its usual embedding); for logits it is that of one token or one image.
        max_difference: largest absolute difference of any output number.
        kl: for logits, mean Kullback-Leibler divergence from the original's distribution, in nats; else None.
        agreement: for logits, the share of equal argmaxes; else None.
        neighbours: for embeddings, see `neighbour_overlap`; None for logits, or where it was not measured.
        attention_distance: total variation distance between the two models' attention maps, each the mean over its
            heads: 0 for equal maps, 1 for maps that share no position. Mean over queries, then over blocks; None
            where it was not measured, or no block of both models has heads.
    """

    cosine: float
    max_difference: float
    kl: float | None = None
    agreement: float | None = None
    neighbours: float | None = None
    attention_distance: float | None = None

    def to_dict(self) -> dict[str, float]:
        """The figures that there are, by name."""
        return {name: value for name, value in vars(self).items() if value is not None}

    @property
    def overflow(self) -> str:
        """Which figures are not finite, and what they are; empty where all is well."""
        return ", ".join(f"{name} is {value}" for name, value in self.to_dict().items() if not math.isfinite(value))

    def check_finite(self, name: str) -> None:
        """Refuse a model that gives no numbers.

        Raises:
            HeadsError: says so of the model called `name`.
        """
        if self.overflow:
            raise HeadsError(f"the outputs of {name} or of its original contain NaN or Inf: {self.overflow}")


@torch.no_grad()
def check_outputs(model: PreTrainedModel, batches: Sequence[Batch], name: str) -> None:
    """Refuse a model that gives no numbers, before it is measured for long.

    Raises:
        HeadsError: says so of the model called `name`.
    """
    with _evaluating(model):
        for batch in batches:
            if not torch.isfinite(_rows(main_output(model, batch)[0], batch)).all():
                raise HeadsError(f"the outputs of {name} contain NaN or Inf")


@torch.no_grad()
def measure_drift(model: PreTrainedModel, original: PreTrainedModel, batches: Sequence[Batch]) -> Drift:
    """Run both models on the same batches; both are left in the mode in which they were."""
    sums = _Sums()
    with _evaluating(model, original):
        for batch in batches:
            sums.add(main_output(model, batch), main_output(original, batch), batch)
    return sums.drift()


_KEPT = 2**26  # numbers of a reference's outputs that are kept in memory


class Reference:
    """A model's outputs on some batches, against which others are measured again and again.

    Args:
        original: the model; it runs again for every measurement where its outputs are too large to keep.
        batches: keyword arguments of the models' forward.
    """

    def __init__(self, original: PreTrainedModel, batches: Sequence[Batch]) -> None:
        self.original, self.batches = original, batches
        self.outputs: list[tuple[Tensor, bool]] = []
        self.classes = 0  # width of the logits, if these are what the model puts out
        sums, squares, count, size = torch.zeros((), dtype=torch.float64), 0.0, 0, 0
        for batch in batches:
            output = self._run(batch)
            self.classes = output[0].shape[-1] if output[1] else 0
            rows = _rows(output[0], batch).double()
            sums, squares, count = sums + rows.sum(0).cpu(), squares + float(rows.square().sum()), count + len(rows)
            size += output[0].numel()
            self.outputs = [*self.outputs, output] if size <= _KEPT else []
        # Of the outputs, times the number of positions.
        self.variance = max(squares - float(sums.square().sum()) / max(count, 1), 1e-300)

    @torch.no_grad()
    def _run(self, batch: Batch) -> tuple[Tensor, bool]:
        with _evaluating(self.original):
            return main_output(self.original, batch)

    @torch.no_grad()
    def measure(self, model: PreTrainedModel) -> tuple[Drift, float]:
        """The drift of a model, and the squared error of its outputs as a share of the original's variance."""
        sums, error = _Sums(), 0.0
        with _evaluating(model):
            for index, batch in enumerate(self.batches):
                there = self.outputs[index] if len(self.outputs) == len(self.batches) else self._run(batch)
                here = main_output(model, batch)
                sums.add(here, there, batch)
                error += float((_rows(here[0], batch) - _rows(there[0], batch)).double().square().sum())
        return sums.drift(), error / self.variance


def _rows(output: Tensor, batch: Batch) -> Tensor:
    """A model's main output at positions that are no padding, (count, width)."""
    mask = output_mask(batch, output)
    return output.flatten(0, -2) if mask is None else output[mask.bool().to(output.device)]


@torch.no_grad()
def measure_closely(
    model: PreTrainedModel, original: PreTrainedModel, batches: Iterable[Batch], *, neighbours: int = 10
) -> tuple[Drift, dict[str, float]]:
    """Drift with neighbours and attention maps, and how far every attention block's output is from the original's.

    Both models run in eager attention, which is what gives maps, and are left as they were. Nothing but sums and one
    embedding for every example outlives a batch.

    Args:
        model: the model to measure.
        original: what it is measured against: the same architecture, with any heads.
        batches: keyword arguments of the models' forward.
        neighbours: how many neighbours to compare, see `neighbour_overlap`.

    Returns:
        The drift; and by name, for every block that both models have, the squared difference of what it adds to the
        residual stream (after its output projection), as a share of the original's squares. Both models run on the
        same inputs, so that a block's error includes what earlier blocks have passed on.
    """
    sums = _Sums()
    here, there = ({block.name: block for block in find_blocks(one)} for one in (model, original))
    errors = {name: _BlockError() for name in there if name in here}
    with _evaluating(model, original, eager=True):
        for batch in batches:
            with _Watched([there[name] for name in errors]) as seen:
                reference = main_output(original, batch)
            with _Watched([here[name] for name in errors]) as found:
                output = main_output(model, batch)
            sums.add(output, reference, batch)
            for name, error in errors.items():
                error.add(name, found, seen, batch.get(there[name].site.query_mask))
    distances = [error.distance / error.rows for error in errors.values() if error.rows]
    drift = replace(
        sums.drift(),
        neighbours=sums.neighbours(neighbours),
        attention_distance=sum(distances) / len(distances) if distances else None,
    )
    return drift, {name: error.difference / error.size for name, error in errors.items() if error.size}


@contextmanager
def _evaluating(*models: PreTrainedModel, eager: bool = False) -> Iterator[None]:
    """Models in evaluation mode, and in eager attention if asked for, as long as the `with` block lasts."""
    before = [(one, one.training, attention_implementation(one.config)) for one in models]
    try:
        for one in models:
            one.eval()
            if eager:
                one.set_attn_implementation("eager")
        yield
    finally:
        for one, training, implementation in before:
            one.train(training)
            if eager:
                one.set_attn_implementation(implementation)


class _Sums:
    """What is kept of two models' main outputs while batches go by."""

    def __init__(self) -> None:
        self.cosine = self.kl = self.agreement = self.count = self.largest = 0.0
        self.logits = False
        self.embeddings: list[tuple[Tensor, Tensor]] = []

    def add(self, output: tuple[Tensor, bool], reference: tuple[Tensor, bool], batch: Batch) -> None:
        (here, self.logits), (there, _) = output, reference
        here, there = here.float(), there.float()
        mask = output_mask(batch, there)
        pooled = None
        if not self.logits:
            pooled = mean_pool(here, mask), mean_pool(there, mask)
            self.embeddings.append((pooled[0].cpu(), pooled[1].cpu()))
        if mask is not None:
            mask = mask.bool().to(there.device)
            largest = float((here - there)[mask].abs().max())
            here, there = pooled or (here[mask], there[mask])
        else:
            largest = float((here - there).abs().max())
            here, there = here.flatten(0, -2), there.flatten(0, -2)
        self.largest = largest if math.isnan(largest) or largest > self.largest else self.largest  # NaN stays
        self.cosine += float(torch.cosine_similarity(here.double(), there.double(), dim=-1).sum())
        self.count += here.shape[0]
        if self.logits:
            self.agreement += float((here.argmax(-1) == there.argmax(-1)).sum())
            self.kl += float(
                nn.functional.kl_div(here.log_softmax(-1), there.log_softmax(-1), reduction="sum", log_target=True)
            )

    def drift(self) -> Drift:
        count = max(self.count, 1.0)
        if self.logits:
            return Drift(self.cosine / count, self.largest, self.kl / count, self.agreement / count)
        return Drift(self.cosine / count, self.largest)

    def neighbours(self, count: int) -> float | None:
        if not self.embeddings:
            return None
        here, there = (torch.cat(parts) for parts in zip(*self.embeddings, strict=True))
        return neighbour_overlap(here, there, count)


def neighbour_overlap(here: Tensor, there: Tensor, count: int = 10) -> float | None:
    """Mean share of an example's nearest neighbours, by cosine and without itself, that two embeddings agree on.

    Args:
        here: (examples, width)
        there: (examples, any width), the same examples.
        count: neighbours of each example.

    Returns:
        0 to 1; None where there are too few examples for any to be left out.
    """
    if len(here) <= count + 1:
        return None

    def nearest(embeddings: Tensor) -> Tensor:
        normal = nn.functional.normalize(embeddings.float(), dim=-1)
        found = (normal @ normal.T).fill_diagonal_(-torch.inf).topk(count).indices
        return torch.zeros(len(here), len(here), dtype=torch.bool).scatter(1, found, True)

    return float((nearest(here) & nearest(there)).sum() / (count * len(here)))


class _Watched:
    """What a model's attention blocks do in eager attention, by name, within a `with` block.

    Attributes:
        outputs: what the output projection gives, (batch, target, width).
        maps: attention weights, mean over the heads, (batch, target, source); none of a block without heads.
    """

    def __init__(self, blocks: Sequence[Block]) -> None:
        self.blocks = blocks
        self.outputs: dict[str, Tensor] = {}
        self.maps: dict[str, Tensor] = {}

    def __enter__(self) -> _Watched:
        self.handles = [handle for block in self.blocks for handle in self._watch(block)]
        return self

    def _watch(self, block: Block) -> Iterator[RemovableHandle]:
        def see_map(_: nn.Module, inputs: Any, output: tuple[Any, ...]) -> None:
            weights = output[block.site.weights]
            if weights.shape[1]:
                self.maps[block.name] = weights.float().mean(1)

        def see_output(_: nn.Module, inputs: Any, output: Tensor) -> None:
            self.outputs[block.name] = output.float()

        yield block.module.register_forward_hook(see_map)
        yield block.output.register_forward_hook(see_output)

    def __exit__(self, *_: Any) -> None:
        for handle in self.handles:
            handle.remove()


@dataclass
class _BlockError:
    """Sums over the tokens that one block has seen."""

    difference: float = 0.0
    size: float = 0.0
    distance: float = 0.0
    rows: int = 0

    def add(self, name: str, here: _Watched, there: _Watched, mask: Tensor | None) -> None:
        wanted = there.outputs.get(name)
        if wanted is None:  # a cross-attention without a memory does not run
            return
        kept = torch.ones(wanted.shape[:2], dtype=torch.bool) if mask is None else mask.bool()
        kept = kept.to(wanted.device)
        self.difference += float((here.outputs[name] - wanted)[kept].double().square().sum())
        self.size += float(wanted[kept].double().square().sum())
        if name in here.maps and name in there.maps:
            self.distance += float((here.maps[name] - there.maps[name])[kept].abs().double().sum()) / 2
            self.rows += int(kept.sum())
