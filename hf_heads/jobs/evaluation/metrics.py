"""Metrics of tasks, from what every example adds to them, so that intervals can draw examples anew.

Each turns statistics (..., examples, several) into figures (...): sums of counts, a correlation, a mean.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hf_heads.core.corpus import bleu


@dataclass(frozen=True)
class Metric:
    """A task score.

    Attributes:
        name: what --metric calls it.
        about: what it is, in a line.
        higher_is_better: which way is up.
        value: statistics (..., examples, several) to the score (...).
    """

    name: str
    about: str
    higher_is_better: bool
    value: Callable[[Tensor], Tensor]


def average_ranks(values: Tensor) -> Tensor:
    """Ranks from 1 along the last dimension; equal values share the mean of their ranks."""
    ordered = values.contiguous().sort(-1).values
    below = torch.searchsorted(ordered, values.contiguous(), side="left")
    not_above = torch.searchsorted(ordered, values.contiguous(), side="right")
    return (below + not_above + 1).double() / 2


def spearman(statistics: Tensor) -> Tensor:
    """100 * rank correlation of (..., examples, 2): predicted, wanted; 0 where either is the same for all."""
    first, second = (average_ranks(statistics[..., column]) for column in (0, 1))
    first, second = (ranks - ranks.mean(-1, keepdim=True) for ranks in (first, second))
    norm = (first.square().sum(-1) * second.square().sum(-1)).sqrt()
    return 100 * (first * second).sum(-1) / norm.clamp_min(1e-300)


def accuracy(statistics: Tensor) -> Tensor:
    """100 * share of hits from (..., examples, 1): 1 or 0."""
    return 100 * statistics[..., 0].mean(-1)


def perplexity(statistics: Tensor) -> Tensor:
    """exp(sum of negative log-likelihoods / number of tokens) from (..., examples, 2)."""
    nll, tokens = statistics.sum(-2).unbind(-1)
    return (nll / tokens).exp()


METRICS = {
    metric.name: metric
    for metric in (
        Metric("spearman", "Spearman correlation x 100 of predicted and human scores", True, spearman),
        Metric("accuracy", "share of examples whose label is predicted, in percent", True, accuracy),
        Metric("bleu", "corpus BLEU of the model's translations (sacrebleu)", True, bleu),
        Metric("perplexity", "exp of the mean negative log-likelihood of a token", False, perplexity),
        Metric(
            "pseudo-perplexity",
            "exp of the mean negative log-likelihood of a token that is masked alone",
            False,
            perplexity,
        ),
    )
}


@dataclass(frozen=True)
class Task:
    """A metric with its data.

    Attributes:
        metric: what is scored.
        examples: how many examples there are.
        measure: a model to the statistics (examples, several) of the metric.
    """

    metric: Metric
    examples: int
    measure: Callable[[PreTrainedModel], Tensor]
