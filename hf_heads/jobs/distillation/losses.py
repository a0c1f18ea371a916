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

_STATES = (
    ("hidden_states", "attention_mask"),
    ("encoder_hidden_states", "attention_mask"),
    ("decoder_hidden_states", "decoder_attention_mask"),
)


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
        self.masks = {block.name: block.site.query_mask for block in find_blocks(teacher)}
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
    def teach(self, batch: Batch) -> Any:
        """The teacher's forward; its blocks' outputs are recorded."""
        return self.teacher(**_inputs(batch), output_hidden_states=True)

    def _measure(self, batch: Batch) -> None:
        found = self.teach({name: value.to(self.teacher.device) for name, value in batch.items()})
        for name, states, weights in _states(found, batch):
            self.scales.update(name, states, weights)
        if "logits" not in found:
            self.scales.update("output", found[0], _output_weights(batch, found[0]))
        for name, states in self.records[1].outputs.items():
            self.scales.update(name, states, _weights(batch, self.masks[name], states))

    def __call__(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Any]:
        """The weighted sum of the losses on a batch, and the student's output.

        Args:
            model: the student, possibly wrapped for training in several processes.
            batch: keyword arguments of the forward; `labels` reach the student only where the task counts.
        """
        there = self.teach(batch)
        inputs = dict(batch) if "task" in self.weights else _inputs(batch)
        here = model(**inputs, output_hidden_states=True)
        total = torch.zeros((), device=there[0].device)
        for name, weight in self.weights.items():
            total = total + weight * getattr(self, f"_{name}")(here, there, batch)
        return total, here

    def _output(self, here: Any, there: Any, batch: Batch) -> Tensor:
        if "logits" not in there:
            weights = _output_weights(batch, there[0])
            return _mean((here[0] - there[0]).square().sum(-1), weights) / self.scales["output"]
        logits, wanted = here["logits"].float(), there["logits"].float()
        if wanted.shape[-1] == 1:
            return (logits - wanted).square().mean()
        heat = self.temperature
        distances = nn.functional.kl_div(
            (logits / heat).log_softmax(-1), (wanted / heat).log_softmax(-1), reduction="none", log_target=True
        ).sum(-1)
        if distances.ndim == 1:
            return heat**2 * distances.mean()
        return heat**2 * _mean(distances, _output_weights(batch, wanted))

    def _embedding(self, here: Any, there: Any, batch: Batch) -> Tensor:
        weights = _output_weights(batch, there[0])
        one, other = (_pool(found[0], weights) for found in (here, there))
        return (1 - torch.cosine_similarity(one, other, dim=-1)).mean()

    def _hidden(self, here: Any, there: Any, batch: Batch) -> Tensor:
        wanted = _states(there, batch)
        if "logits" not in there:  # the last states are the output
            wanted = wanted[:-1]
        found = {name: states for name, states, _ in _states(here, batch)}
        losses = [
            _mean((found[name] - states).square().sum(-1), weights) / self.scales[name]
            for name, states, weights in wanted
        ]
        return torch.stack(losses).mean() if losses else there[0].new_zeros(())

    def _blocks(self, here: Any, there: Any, batch: Batch) -> Tensor:
        losses = [
            _mean((self.records[0].outputs[name] - states).square().sum(-1), _weights(batch, self.masks[name], states))
            / self.scales[name]
            for name, states in self.records[1].outputs.items()
        ]
        return torch.stack(losses).mean()

    def _attention(self, here: Any, there: Any, batch: Batch) -> Tensor:
        losses = []
        for name, maps in self.records[1].maps.items():
            kept = self.kept[name]
            if not kept:
                continue
            found, wanted = self.records[0].maps[name].float(), maps[:, kept].float()
            tiny = torch.finfo(torch.float32).tiny
            distances = (wanted * (wanted.clamp_min(tiny).log() - found.clamp_min(tiny).log())).sum(-1).mean(1)
            losses.append(_mean(distances, _weights(batch, self.masks[name], distances)))
        return torch.stack(losses).mean() if losses else there[0].new_zeros(())

    def _task(self, here: Any, there: Any, batch: Batch) -> Tensor:
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


def _states(found: Any, batch: Batch) -> list[tuple[str, Tensor, Tensor]]:
    """Hidden states after every layer, each with a name and the weights (batch, length) of its positions."""
    states = []
    for name, mask in _STATES:
        for index, layer in enumerate((found.get(name) or ())[1:]):
            states.append((f"{name}.{index}", layer, _weights(batch, mask, layer)))
    return states


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
