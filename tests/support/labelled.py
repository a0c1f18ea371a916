"""Texts of the words of `tokenizers.py` with their ids, and what labelled batches must be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import BertForSequenceClassification, PreTrainedModel

from hf_heads.core.batches import Batch
from hf_heads.io.data import labelled
from hf_heads.io.data.choice import CalibrationChoice
from tests.support.twins import bert_config, randomize

PAD, UNK, CLS, SEP, MASK, WORD0 = 0, 1, 2, 3, 4, 5
Write = Callable[..., str]


def classifier(num_labels: int = 3, **changes: Any) -> PreTrainedModel:
    model = BertForSequenceClassification(bert_config(num_labels=num_labels, **changes))
    randomize(model)
    return model.eval()


def load_labelled(source: str, model: PreTrainedModel, folder: Path, **choice: Any) -> list[Batch]:
    if "columns" in choice:
        choice["columns"] = tuple(choice["columns"])
    return labelled.load_labelled(CalibrationChoice(source, **choice), model, folder)


def words(*numbers: int) -> str:
    return " ".join(f"word{number}" for number in numbers)


def ids(*numbers: int) -> list[int]:
    return [CLS, *(WORD0 + number for number in numbers), SEP]


def by_first_word(batches: list[dict[str, torch.Tensor]], place: int = 1) -> dict[int, Any]:
    """The label of every example by the number of its first word."""
    return {
        int(row[place]) - WORD0: label
        for batch in batches
        for row, label in zip(batch["input_ids"], batch["labels"].tolist(), strict=True)
    }


def check_loss(model: PreTrainedModel, batches: list[dict[str, torch.Tensor]]) -> None:
    for batch in batches:
        with torch.no_grad():
            assert torch.isfinite(model(**batch).loss)


def check_same(one: list[dict[str, torch.Tensor]], other: list[dict[str, torch.Tensor]]) -> None:
    assert len(one) == len(other)
    for left, right in zip(one, other, strict=True):
        assert left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)
