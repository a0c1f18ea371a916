"""BLEU of a Marian's translations."""

from __future__ import annotations

from typing import Any

import sacrebleu
import torch
from transformers import AutoTokenizer, PreTrainedModel

from hf_heads.io.checkpoints.sources import Source


@torch.no_grad()
def bleu(model: PreTrainedModel, source: Source, rows: list[dict[str, Any]], beams: int = 4) -> float:
    """BLEU of beam search from column `en` to column `de`."""
    tokenizer = AutoTokenizer.from_pretrained(source.folder)
    ordered = sorted(rows, key=lambda row: len(row["en"]))
    found: list[str] = []
    for begin in range(0, len(ordered), 64):
        texts = [row["en"] for row in ordered[begin : begin + 64]]
        inputs = tokenizer(texts, padding=True, return_tensors="pt").to(model.device)
        ids = model.generate(**inputs, num_beams=beams, max_new_tokens=60)
        found += tokenizer.batch_decode(ids, skip_special_tokens=True)
    return sacrebleu.corpus_bleu(found, [[row["de"] for row in ordered]]).score
