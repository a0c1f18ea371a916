"""What a model is healed on: several sources, of which none gives what another holds out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import BertForSequenceClassification, BertModel

from hf_heads import CalibrationChoice, HeadsError
from hf_heads.jobs.distillation.data import load_healing
from tests.support.labelled import words
from tests.support.tokenizers import save_tokenizer
from tests.support.twins import bert_config


def write(path: Path, rows: list[dict[str, str]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def texts(begin: int, end: int) -> list[str]:
    return [words(number % 7, number // 7, number % 5, *range(number % 4)) for number in range(begin, end)]


def test_several_sources_give_an_equal_share_each_and_hold_out_nothing_of_one_another(tmp_path: Path):
    save_tokenizer(tmp_path)
    sources = (
        write(tmp_path / "a.jsonl", [{"text": text} for text in texts(0, 60)]),
        write(tmp_path / "b.jsonl", [{"other": text} for text in texts(30, 90)]),
        "random",
    )
    model = BertModel(bert_config())
    choice = CalibrationChoice(sources, ("other",), samples=60, pack=False)
    found = load_healing(choice, model, tmp_path, held_out=15)
    for part in ("20 examples of a.jsonl (text)", "20 examples of b.jsonl (other)", "20 examples of random inputs"):
        assert part in found.description
    assert len(found.examples) == 60 and sum(len(batch["input_ids"]) for batch in found.held_out) == 6
    learnt = {tuple(example["input_ids"]) for example in found.examples}
    for batch in found.held_out:
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
            assert tuple(ids[mask.bool()].tolist()) not in learnt
    found.collate([found.examples[0], found.examples[25], found.examples[45]])


def test_columns_that_no_source_has_nothing_new_and_labels_of_several_are_refused(tmp_path: Path):
    save_tokenizer(tmp_path)
    every = [{"text": text} for text in texts(0, 60)]
    sources = write(tmp_path / "one.jsonl", every[:40]), write(tmp_path / "two.jsonl", every[20:])
    model = BertModel(bert_config())
    with pytest.raises(HeadsError, match="none of the data sets has the columns third"):
        load_healing(CalibrationChoice(sources, ("third",)), model, tmp_path)
    again = write(tmp_path / "again.jsonl", every[20:40])
    with pytest.raises(HeadsError, match=r"again\.jsonl' has no text that the data named before it has not"):
        load_healing(CalibrationChoice((*sources, again)), model, tmp_path)
    classifier = BertForSequenceClassification(bert_config())
    with pytest.raises(HeadsError, match="one data set at a time can be read here, not 2"):
        load_healing(CalibrationChoice(sources), classifier, tmp_path, labels=True)
