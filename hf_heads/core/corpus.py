"""Figures of a whole corpus, from what every example adds to them: no means over examples.

Each turns statistics (..., examples, several) into figures (...), so that intervals can draw examples anew.
"""

from __future__ import annotations

import torch
from torch import Tensor

ORDER = 4  # the longest n-grams of BLEU


def bleu(statistics: Tensor) -> Tensor:
    """BLEU from (..., examples, 10): matches of 1- to 4-grams, 1- to 4-grams, tokens of hypothesis, of reference.

    min(1, exp(1 - reference / hypothesis)) * (p_1 p_2 p_3 p_4)^(1/4) with p_n = 100 * matches / n-grams; the k-th order
    without a match counts 1 / 2^k of one, as sacrebleu smooths.
    """
    sums = statistics.sum(-2)
    matches, total = sums[..., :ORDER], sums[..., ORDER : 2 * ORDER]
    hypothesis, reference = sums[..., -2], sums[..., -1]
    missed = matches == 0
    smooth = torch.where(missed, 0.5 ** missed.cumsum(-1), matches)
    precisions = 100 * smooth / total.clamp_min(1e-300)
    brevity = (1 - reference / hypothesis.clamp_min(1e-300)).clamp_max(0).exp()
    score = brevity * precisions.log().mean(-1).exp()
    return score.where((total > 0).all(-1) & ~missed.all(-1), 0.0)


def f1(statistics: Tensor) -> Tensor:
    """100 * F1 of class 1 from (..., examples, 2): 1 where it is guessed, 1 where it is right to.

    2 hits / (guessed + there), and 0 where it is neither guessed nor there.
    """
    hits = statistics.prod(-1).sum(-1)
    return 200 * hits / statistics.sum((-2, -1)).clamp_min(1)
