"""What a student is asked to match in its teacher: outputs, hidden states, attention outputs, attention maps.

Every loss is a mean over examples of means over their tokens, so that how examples are spread over batches, steps or
processes changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_heads.attention.hosts.blocks import Block, find_blocks
from hf_heads.core.batches import Batch, output_mask
from hf_heads.core.errors import HeadsError
from hf_heads.jobs.distillation.settings import check_losses
from hf_heads.modeling.blocks import block_shape, block_specs

_STATES = {
    "hidden_states": "attention_mask",
    "encoder_hidden_states": "attention_mask",
    "decoder_hidden_states": "decoder_attention_mask",
}


class Recorder:
    """Keeps what the attention blocks of a model put out in its latest forward.

    Attributes:
        outputs: by block name, the output projection's output, (batch, target, width).
        maps: by block name, attention weights (batch, heads, target, source); eager attention only.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.outputs: dict[str, Tensor] = {}
        self.maps: dict[str, Tensor] = {}
        self._handles = []
        for block in find_blocks(model):
            self._handles.append(block.output.register_forward_hook(self._keep_output(block.name)))
            self._handles.append(block.module.register_forward_hook(self._keep_map(block)))

    def _keep_output(self, name: str) -> Any:
        def hook(_: nn.Module, __: Any, output: Tensor) -> None:
            self.outputs[name] = output

        return hook

    def _keep_map(self, block: Block) -> Any:
        def hook(_: nn.Module, __: Any, output: tuple[Any, ...]) -> None:
            if (weights := output[block.site.weights]) is not None:
                self.maps[block.name] = weights

        return hook

    def close(self) -> None:
        """Take the hooks off the model."""
        for handle in self._handles:
            handle.remove()
        self._handles = []


@dataclass
class Scales:
    """Variances of the teacher's states, by which squared errors are divided; sums while they are measured."""

    sums: dict[str, Tensor] = field(default_factory=dict)
    squares: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def update(self, name: str, states: Tensor, weights: Tensor) -> None:
        """Take in states (batch, length, width) where weights (batch, length) are not zero."""
        rows = states[weights > 0].double().cpu()
        self.sums[name] = self.sums.get(name, torch.zeros(rows.shape[-1], dtype=torch.float64)) + rows.sum(0)
        self.squares[name] = self.squares.get(name, 0.0) + float(rows.square().sum())
        self.counts[name] = self.counts.get(name, 0) + len(rows)

    def __getitem__(self, name: str) -> float:
        """Trace of the covariance."""
        count = max(self.counts[name], 1)
        mean = self.sums[name] / count
        return max(self.squares[name] / count - float(mean.square().sum()), 1e-12)


@dataclass(frozen=True)
class Lesson:
    """What a teacher does with a batch.

    Attributes:
        output: logits, (batch, classes) or (batch, length, classes), or the last hidden states, (batch, length, width).
        logits: which of the two.
        states: hidden states after every layer by name, (batch, length, width); the last of them are the output where
            that is no logits.
        blocks: outputs of the attention blocks by name, (batch, target, width).
        maps: attention weights by block, (batch, heads, target, source); eager attention only.
    """

    output: Tensor
    logits: bool
    states: dict[str, Tensor]
    blocks: dict[str, Tensor]
    maps: dict[str, Tensor]


class Matching:
    """The losses between a student and its teacher.

    Args:
        student: the model that learns.
        teacher: the model that it shall be like; not changed, but for its attention implementation where maps count.
        weights: of each loss, by the names in `LOSSES`.
        batches: what the scales of squared errors are measured on.
        temperature: of the softmax of logits.

    Raises:
        HeadsError: an unknown loss; a loss that these models do not have.
    """

    def __init__(
        self,
        student: PreTrainedModel,
        teacher: PreTrainedModel,
        weights: Mapping[str, float],
        batches: Iterable[Batch],
        temperature: float = 1.0,
    ) -> None:
        check_losses(weights)
        self.weights = {name: float(weight) for name, weight in weights.items() if weight}
        self.temperature = temperature
        self.student, self.teacher = student, teacher
        self._masks = {block.name: block.site.query_mask for block in find_blocks(teacher)}
        self.kept = _kept_heads(student, teacher) if "attention" in self.weights else {}
        if "attention" in self.weights:
            for model in (student, teacher):
                model.set_attn_implementation("eager")
        self.records = (Recorder(student), Recorder(teacher))
        self.scales = Scales()
        for batch in batches:
            self._measure(batch)
        if "embedding" in self.weights and "output" not in self.scales.counts:
            self.close()
            raise HeadsError("the loss 'embedding' is for models without a head; this one has logits, take 'output'")

    def close(self) -> None:
        """Take the hooks off both models."""
        for record in self.records:
            record.close()

    @torch.no_grad()
    def teach(self, batch: Batch) -> Lesson:
        """The teacher's forward."""
        found = self.teacher(**_inputs(batch), output_hidden_states=True)
        logits = "logits" in found
        record = self.records[1]
        output = found["logits"] if logits else found[0]
        return Lesson(output, logits, _states(found), dict(record.outputs), dict(record.maps))

    def mask_of(self, name: str) -> str:
        """The name of the mask of a state's or a block's positions."""
        return _STATES.get(name.partition(".")[0]) or self._masks[name]

    def _measure(self, batch: Batch) -> None:
        there = self.teach({name: value.to(self.teacher.device) for name, value in batch.items()})
        for name, states in {**there.states, **there.blocks}.items():
            self.scales.update(name, states, _weights(batch, self.mask_of(name), states))
        if not there.logits:
            self.scales.update("output", there.output, _output_weights(batch, there.output))

    def __call__(self, model: nn.Module, batch: Batch, there: Lesson | None = None) -> tuple[Tensor, Any]:
        """The weighted sum of the losses on a batch, and the student's output.

        Args:
            model: the student, possibly wrapped for training in several processes.
            batch: keyword arguments of the forward; `labels` reach the student only where the task counts.
            there: what the teacher does with it; the teacher runs where it is None.
        """
        there = there or self.teach(batch)
        inputs = dict(batch) if "task" in self.weights else _inputs(batch)
        here = model(**inputs, output_hidden_states=True)
        total = torch.zeros((), device=there.output.device)
        for name, weight in self.weights.items():
            total = total + weight * getattr(self, f"_{name}")(here, there, batch)
        return total, here

    def _output(self, here: Any, there: Lesson, batch: Batch) -> Tensor:
        if not there.logits:
            weights = _output_weights(batch, there.output)
            return _mean((here[0] - there.output).square().sum(-1), weights) / self.scales["output"]
        logits, wanted = here["logits"].float(), there.output.float()
        if wanted.shape[-1] == 1:
            return (logits - wanted).square().mean()
        heat = self.temperature
        distances = nn.functional.kl_div(
            (logits / heat).log_softmax(-1), (wanted / heat).log_softmax(-1), reduction="none", log_target=True
        ).sum(-1)
        if distances.ndim == 1:
            return heat**2 * distances.mean()
        return heat**2 * _mean(distances, _output_weights(batch, wanted))

    def _embedding(self, here: Any, there: Lesson, batch: Batch) -> Tensor:
        weights = _output_weights(batch, there.output)
        one, other = (_pool(states, weights) for states in (here[0], there.output))
        return (1 - torch.cosine_similarity(one, other, dim=-1)).mean()

    def _hidden(self, here: Any, there: Lesson, batch: Batch) -> Tensor:
        wanted = list(there.states.items())
        if not there.logits:  # the last states are the output
            wanted = wanted[:-1]
        losses = self._errors(_states(here), wanted, batch)
        return torch.stack(losses).mean() if losses else there.output.new_zeros(())

    def _blocks(self, here: Any, there: Lesson, batch: Batch) -> Tensor:
        return torch.stack(self._errors(self.records[0].outputs, there.blocks.items(), batch)).mean()

    def _errors(self, found: Mapping[str, Tensor], wanted: Iterable[tuple[str, Tensor]], batch: Batch) -> list[Tensor]:
        """Squared errors of some states as shares of their variance."""
        return [
            _mean((found[name] - states).square().sum(-1), _weights(batch, self.mask_of(name), states))
            / self.scales[name]
            for name, states in wanted
        ]

    def _attention(self, here: Any, there: Lesson, batch: Batch) -> Tensor:
        losses = []
        for name, maps in there.maps.items():
            kept = self.kept[name]
            if not kept:
                continue
            found, wanted = self.records[0].maps[name].float(), maps[:, kept].float()
            tiny = torch.finfo(torch.float32).tiny
            distances = (wanted * (wanted.clamp_min(tiny).log() - found.clamp_min(tiny).log())).sum(-1).mean(1)
            losses.append(_mean(distances, _weights(batch, self.mask_of(name), distances)))
        return torch.stack(losses).mean() if losses else there.output.new_zeros(())

    def _task(self, here: Any, there: Lesson, batch: Batch) -> Tensor:
        return here["loss"]


def _kept_heads(student: PreTrainedModel, teacher: PreTrainedModel) -> dict[str, list[int]]:
    """For every block the teacher's heads that the student's are to be compared with, in the student's order."""
    specs = block_specs(student)
    heads = {block.name: block_shape(block).heads for block in find_blocks(teacher)}
    kept = {}
    for block in find_blocks(student):
        own, name = block_shape(block).heads, block.name
        chosen = list(getattr(specs.get(name), "kept", None) or range(own))
        if len(chosen) != own or (own != heads[name] and not hasattr(specs.get(name), "kept")):
            raise HeadsError(
                f"{name} has {own} heads that are none of the teacher's {heads[name]}: leave out 'attention'"
            )
        kept[name] = chosen if own else []
    return kept


def _inputs(batch: Batch) -> dict[str, Tensor]:
    return {name: value for name, value in batch.items() if name != "labels"}


def _states(found: Any) -> dict[str, Tensor]:
    """Hidden states after every layer by name."""
    return {f"{name}.{index}": layer for name in _STATES for index, layer in enumerate((found.get(name) or ())[1:])}


def _output_weights(batch: Batch, output: Tensor) -> Tensor:
    """1 at tokens of the model's main output and 0 at padding, (batch, length)."""
    mask = output_mask(batch, output)
    if mask is None:
        return torch.ones(output.shape[:2], device=output.device)
    return mask.to(output.device, torch.float32)


def _weights(batch: Batch, mask: str, states: Tensor) -> Tensor:
    """1 at tokens and 0 at padding, (batch, length)."""
    found = batch.get(mask)
    if found is None or found.shape != states.shape[:2]:
        return torch.ones(states.shape[:2], device=states.device)
    return found.to(states.device, torch.float32)


def _mean(values: Tensor, weights: Tensor) -> Tensor:
    """Mean over examples of the weighted means over their positions, both (batch, length)."""
    return ((values * weights).sum(1) / weights.sum(1).clamp_min(1)).mean()


def _pool(states: Tensor, weights: Tensor) -> Tensor:
    """Mean over the tokens of each text, (batch, width)."""
    return (states * weights[..., None]).sum(1) / weights.sum(1, keepdim=True).clamp_min(1)
