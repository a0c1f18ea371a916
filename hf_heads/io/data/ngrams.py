"""What a translation adds to the BLEU of a corpus, by sacrebleu's tokens."""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor

from hf_heads.core.errors import HeadsError


def need_sacrebleu() -> None:
    """Refuse BLEU where sacrebleu is not installed.

    Raises:
        HeadsError: it is not.
    """
    if importlib.util.find_spec("sacrebleu") is None:
        raise HeadsError("bleu needs sacrebleu, which is not installed: pip install sacrebleu")


def ngram_counts(hypothesis: str, reference: str) -> Tensor:
    """What a sentence adds to BLEU, (10,) as `hf_heads.core.corpus.bleu` takes it."""
    from sacrebleu.metrics import BLEU  # an extra

    score = BLEU(effective_order=True).sentence_score(hypothesis, [reference])
    return torch.tensor([*score.counts, *score.totals, score.sys_len, score.ref_len], dtype=torch.float64)
