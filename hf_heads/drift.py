"""How far a converted model's outputs are from the original's, on the same inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from .calibration import Batch, main_output, output_mask


@dataclass(frozen=True)
class Drift:
    """Differences between two models' main outputs: logits, or hidden states of a model without a head.

    Attributes:
        cosine: mean cosine between the two output vectors. For hidden states of texts, the vector is the mean over a
            text's tokens (its usual embedding); for logits it is that of one token or one image.
        max_difference: largest absolute difference of any output number.
        kl: for logits, mean Kullback-Leibler divergence from the original's distribution, in nats; else None.
        agreement: for logits, the share of equal argmaxes; else None.
    """

    cosine: float
    max_difference: float
    kl: float | None = None
    agreement: float | None = None

    def to_dict(self) -> dict[str, float]:
        """The figures that there are, by name."""
        return {name: value for name, value in vars(self).items() if value is not None}


@torch.no_grad()
def measure_drift(model: PreTrainedModel, original: PreTrainedModel, batches: Sequence[Batch]) -> Drift:
    """Run both models on the same batches; both are left in the mode in which they were."""
    modes = [(one, one.training) for one in (model, original)]
    for one, _ in modes:
        one.eval()
    cosine = kl = agreement = count = largest = 0.0
    logits = False
    for batch in batches:
        (here, logits), (there, _) = main_output(model, batch), main_output(original, batch)
        here, there = here.float(), there.float()
        mask = output_mask(batch, there)
        if mask is not None:
            mask = mask.bool().to(there.device)
            largest = max(largest, float((here - there)[mask].abs().max()))
            here, there = (here[mask], there[mask]) if logits else (_pool(here, mask), _pool(there, mask))
        else:
            largest = max(largest, float((here - there).abs().max()))
            here, there = here.flatten(0, -2), there.flatten(0, -2)
        cosine += float(torch.cosine_similarity(here.double(), there.double(), dim=-1).sum())
        count += here.shape[0]
        if logits:
            agreement += float((here.argmax(-1) == there.argmax(-1)).sum())
            kl += float(
                torch.nn.functional.kl_div(
                    here.log_softmax(-1), there.log_softmax(-1), reduction="sum", log_target=True
                )
            )
    for one, mode in modes:
        one.train(mode)
    count = max(count, 1.0)
    if logits:
        return Drift(cosine / count, largest, kl / count, agreement / count)
    return Drift(cosine / count, largest)


def _pool(states: Tensor, mask: Tensor) -> Tensor:
    """Mean over the tokens of each text, (batch, width)."""
    weights = mask[..., None].to(states.dtype)
    return (states * weights).sum(1) / weights.sum(1)
