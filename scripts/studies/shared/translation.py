"""BLEU of what a model translates."""

from __future__ import annotations

from typing import Any

import sacrebleu
import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from hf_heads.io.checkpoints.sources import Source

LONGEST = 60  # tokens of a translation


@torch.no_grad()
def bleu_of(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[dict[str, Any]],
    columns: tuple[str, str] = ("en", "de"),
    beams: int = 4,
    **settings: Any,
) -> float:
    """BLEU of beam search from one column to another, with settings of `generate`."""
    ordered = sorted(rows, key=lambda row: len(row[columns[0]]))
    found: list[str] = []
    for begin in range(0, len(ordered), 64):
        texts = [row[columns[0]] for row in ordered[begin : begin + 64]]
        inputs = tokenizer(texts, padding=True, return_tensors="pt").to(model.device)
        ids = model.generate(**inputs, num_beams=beams, max_new_tokens=LONGEST, **settings)
        found += tokenizer.batch_decode(ids, skip_special_tokens=True)
    return sacrebleu.corpus_bleu(found, [[row[columns[1]] for row in ordered]]).score


def bleu(model: PreTrainedModel, source: Source, rows: list[dict[str, Any]], beams: int = 4) -> float:
    """BLEU of a Marian's translations from column `en` to column `de`."""
    return bleu_of(model, AutoTokenizer.from_pretrained(source.folder), rows, beams=beams)
