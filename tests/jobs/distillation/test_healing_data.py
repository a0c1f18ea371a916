"""What a model is healed on: several sources, of which none gives what another holds out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import BertForSequenceClassification, BertModel, ViTModel

from hf_heads import CalibrationChoice, HeadsError
from hf_heads.jobs.distillation.data import load_healing
from tests.support.labelled import words
from tests.support.tokenizers import save_image_processor, save_tokenizer
from tests.support.twins import bert_config, vit_config


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


def test_images_are_told_apart_by_what_they_show(tmp_path: Path):
    save_image_processor(tmp_path)
    colours = [(number * 9 % 256, number * 31 % 256, number * 5 % 256) for number in range(50)]

    def folder(name: str, shown: list[tuple[int, int, int]]) -> str:
        (tmp_path / name).mkdir()
        for number, colour in enumerate(shown):
            Image.new("RGB", (16, 16), colour).save(tmp_path / name / f"{number}.png")
        return str(tmp_path / name)

    sources = folder("one", [*colours[:30], *colours[:10]]), folder("two", colours[20:])
    model = ViTModel(vit_config())
    found = load_healing(CalibrationChoice(sources, samples=100), model, tmp_path, held_out=10)
    held = torch.cat([batch["pixel_values"] for batch in found.held_out])
    seen = torch.stack([*(one["pixel_values"] for one in found.examples), *held]).flatten(1)
    assert len(held) == 5 and len(seen) == 50 == len(seen.unique(dim=0))
    with pytest.raises(HeadsError, match="three' has nothing that the data named before it has not"):
        load_healing(CalibrationChoice((*sources, folder("three", colours[5:25]))), model, tmp_path)


def test_columns_that_no_source_has_nothing_new_and_labels_of_several_are_refused(tmp_path: Path):
    save_tokenizer(tmp_path)
    every = [{"text": text} for text in texts(0, 60)]
    sources = write(tmp_path / "one.jsonl", every[:40]), write(tmp_path / "two.jsonl", every[20:])
    model = BertModel(bert_config())
    with pytest.raises(HeadsError, match="none of the data sets has the columns third"):
        load_healing(CalibrationChoice(sources, ("third",)), model, tmp_path)
    again = write(tmp_path / "again.jsonl", every[20:40])
    with pytest.raises(HeadsError, match=r"again\.jsonl' has nothing that the data named before it has not"):
        load_healing(CalibrationChoice((*sources, again)), model, tmp_path)
    classifier = BertForSequenceClassification(bert_config())
    with pytest.raises(HeadsError, match="one data set at a time can be read here, not 2"):
        load_healing(CalibrationChoice(sources), classifier, tmp_path, labels=True)
