"""Texts of many lengths, and pairs: what a conversion is calibrated and measured on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import (
    AutoTokenizer,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertTokenizer,
    PreTrainedModel,
    ViTModel,
)

import hf_heads
from hf_heads import CollabSpec, HeadsError
from hf_heads.core.batches import Batch
from hf_heads.io.checkpoints.sources import Source
from hf_heads.io.data import calibration
from hf_heads.io.data.calibration import calibration_data, load_data, probes, probes_by_length
from hf_heads.io.data.choice import CalibrationChoice
from hf_heads.io.data.lengths import packed_examples, spread
from hf_heads.io.data.made import made_examples
from hf_heads.jobs.conversion.checkpoint import convert_checkpoint
from hf_heads.jobs.conversion.request import ConversionRequest
from tests.support.labelled import CLS, SEP, WORD0, words
from tests.support.tokenizers import save_image_processor, save_tokenizer
from tests.support.twins import bert_config, randomize, vit_config


def model_of(folder: Path, cls: type[PreTrainedModel] = BertForMaskedLM, positions: int = 512) -> PreTrainedModel:
    config = bert_config()
    config.max_position_embeddings = positions
    model = cls(config)
    randomize(model)
    model.save_pretrained(folder)
    save_tokenizer(folder)
    # One that is of a model, and makes token types.
    BertTokenizer(vocab=AutoTokenizer.from_pretrained(folder).get_vocab()).save_pretrained(folder)
    return model.eval()


def texts(count: int, longest: int = 9) -> list[str]:
    return [words(*(number % 80 for number in range(start, start + 3 + start % longest))) for start in range(count)]


def write_rows(path: Path, rows: list[dict[str, object]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def lengths_of(batches: list[Batch]) -> list[int]:
    return [int(row.sum()) for batch in batches for row in batch["attention_mask"]]


def test_lengths_are_spread_up_to_the_limit_and_most_texts_stay_as_they_are():
    found = spread(512, 512)
    assert sorted(set(found)) == [16, 32, 64, 128, 256, 512] and len(found) < 256
    assert max(spread(512, 40)) == 40 and len(spread(512, 40)) == len(found)
    assert spread(5, 512) == []


def test_calibration_covers_lengths_to_the_models_limit_and_measures_by_length(tmp_path: Path):
    model = model_of(tmp_path)
    source = write_rows(tmp_path / "texts.jsonl", [{"text": text} for text in texts(2000)])
    data = load_data(CalibrationChoice(source, samples=128), model, tmp_path)
    lengths = lengths_of(data.batches)
    assert len(lengths) == 128 and max(lengths) == 512 and {16, 64, 128, 256} <= set(lengths)
    assert sorted(data.by_length) == [16, 128, 512]
    for length, batches in data.by_length.items():
        assert set(lengths_of(batches)) == {length}
    assert "128 examples of texts.jsonl (text), " in data.description and "to 512 tokens" in data.description
    alone = load_data(CalibrationChoice(source, samples=128, pack=False), model, tmp_path)
    assert max(lengths_of(alone.batches)) == 2 + 11
    short = load_data(CalibrationChoice(source, samples=128, max_length=24), model, tmp_path)
    assert max(lengths_of(short.batches)) == 24 and list(short.by_length) == [16]
    with pytest.raises(HeadsError, match="texts of 600 tokens do not fit: the model takes 512"):
        load_data(CalibrationChoice(source, max_length=600), model, tmp_path)


def test_a_conversion_reads_more_texts_where_they_are_short_and_nobody_says_how_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(calibration, "TOKENS_ENOUGH", 30_000)
    model = model_of(tmp_path)
    source = write_rows(tmp_path / "texts.jsonl", [{"text": text} for text in texts(3000)])
    for choice in (CalibrationChoice(source), CalibrationChoice(source, pack=False)):
        usual = load_data(choice, model, tmp_path)
        more = load_data(choice, model, tmp_path, enough=True)
        assert len(lengths_of(usual.batches)) == 512
        tokens = sum(lengths_of(more.batches))
        assert tokens == pytest.approx(30_000, rel=0.1) or len(lengths_of(more.batches)) == 3000 - 256
        assert sum(lengths_of(usual.batches)) < tokens
    told = load_data(CalibrationChoice(source, samples=100), model, tmp_path, enough=True)
    assert len(lengths_of(told.batches)) == 100


def test_packed_texts_follow_one_another_and_long_ones_are_cut_anywhere(tmp_path: Path):
    save_tokenizer(tmp_path)
    (packed,) = packed_examples([words(1, 2), words(3), words(4, 5, 6)], [7], "text", tmp_path, 0)
    assert packed["input_ids"] == [CLS, *(WORD0 + number for number in (1, 2, 3, 4, 5)), SEP]
    long = words(*range(60))
    cuts = packed_examples([long], [8] * 6, "text", tmp_path, 0)
    starts = {example["input_ids"][1] for example in cuts}
    assert len(starts) > 2 and all(len(example["input_ids"]) == 8 for example in cuts)


@pytest.mark.parametrize("pairs", [False, True])
def test_nothing_is_held_out_that_is_calibrated_on_or_that_another_source_holds_out(tmp_path: Path, pairs: bool):
    model = model_of(tmp_path, BertForSequenceClassification)
    rows = [{"first": words(number % 79, number % 7), "second": words(number % 7)} for number in range(200)]
    sources = write_rows(tmp_path / "a.jsonl", [*rows[:120], *rows[:60]]), write_rows(tmp_path / "b.jsonl", rows[60:])
    data = load_data(CalibrationChoice(sources, samples=400, pairs=pairs, pack=False), model, tmp_path)
    learnt, held = (
        [tuple(ids[mask.bool()].tolist()) for batch in batches for ids, mask in zip(*_ids(batch), strict=True)]
        for batches in (data.batches, data.held_out)
    )
    assert held and len({*held}) == len(held) and not {*held} & {*learnt}
    for batch in data.by_length[16]:  # several texts one after the other
        assert len(batch["input_ids"][0]) == 16


def _ids(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    return batch["input_ids"], batch["attention_mask"]


def test_images_are_held_out_by_what_they_show(tmp_path: Path):
    save_image_processor(tmp_path)
    colours = [(number * 9 % 256, number * 31 % 256, number * 5 % 256) for number in range(60)]
    for name, shown in (("a", [*colours[:40], *colours[:20]]), ("b", colours[20:])):
        (tmp_path / name).mkdir()
        for number, colour in enumerate(shown):
            Image.new("RGB", (16, 16), colour).save(tmp_path / name / f"{number}.png")
    choice = CalibrationChoice((str(tmp_path / "a"), str(tmp_path / "b")), samples=200)
    data = load_data(choice, ViTModel(vit_config()), tmp_path)
    learnt, held = (
        {tuple(image.flatten().tolist()) for batch in batches for image in batch["pixel_values"]}
        for batches in (data.batches, data.held_out)
    )
    assert held and not held & learnt and len(held) == sum(len(batch["pixel_values"]) for batch in data.held_out)


def test_data_whose_rows_are_all_alike_holds_nothing_out(tmp_path: Path):
    folder = tmp_path / "model"
    model = model_of(folder)
    choice = CalibrationChoice(write_rows(tmp_path / "t.jsonl", [{"text": words(1, 2, 3)}] * 40))
    data = load_data(choice, model, folder)
    assert data.batches and data.held_out == [] and data.by_length == {}
    request = ConversionRequest(Source("x", folder), CollabSpec(rank=8), calibration=choice)
    assert not [name for name in convert_checkpoint(request, tmp_path / "out").drift if "held-out" in name]


def test_texts_that_are_cut_are_counted(tmp_path: Path):
    model = model_of(tmp_path, positions=32)
    rows = [{"text": words(*range(40))}] * 3 + [{"text": words(1)}] * 9
    found = load_data(CalibrationChoice(write_rows(tmp_path / "t.jsonl", rows), pack=False), model, tmp_path)
    assert "3 texts cut at 32" in found.description


PAIRS = [
    {"first": words(1, 2, number % 50), "second": words(3, number % 40), "label": number % 2} for number in range(80)
]


@pytest.mark.parametrize(
    ("cls", "asked", "paired", "words_of_it"),
    [
        (BertForSequenceClassification, None, True, "pairs, as BertForSequenceClassification takes them"),
        (BertForSequenceClassification, False, False, "single texts, as asked"),
        (BertForMaskedLM, None, False, "single texts, a guess: BertForMaskedLM does not say; --pairs reads pairs"),
        (BertForMaskedLM, True, True, "pairs, as asked"),
    ],
)
def test_pairs_are_pairs_where_the_class_takes_them_or_somebody_says_so(
    tmp_path: Path, cls: type[PreTrainedModel], asked: bool | None, paired: bool, words_of_it: str
):
    model = model_of(tmp_path, cls)
    source = write_rows(tmp_path / "pairs.jsonl", PAIRS)
    data = load_data(CalibrationChoice(source, ("first", "second"), pairs=asked), model, tmp_path)
    assert words_of_it in data.description
    for batch in [*data.batches, *data.held_out, *(one for group in data.by_length.values() for one in group)]:
        assert ("token_type_ids" in batch) == paired
        if paired:
            assert all((row == SEP).sum() == 2 for row in batch["input_ids"])
            seconds = batch["token_type_ids"].bool() & batch["attention_mask"].bool()
            assert seconds.any(1).all() and not seconds[:, 0].any()
        with torch.no_grad():
            model(**batch)


def test_a_pair_is_what_the_tokenizer_makes_of_it(tmp_path: Path):
    model = model_of(tmp_path, BertForSequenceClassification)
    source = write_rows(tmp_path / "pairs.jsonl", PAIRS[:1] * 8)
    (batch,) = load_data(CalibrationChoice(source, pack=False), model, tmp_path).batches
    wanted = AutoTokenizer.from_pretrained(tmp_path)(PAIRS[0]["first"], PAIRS[0]["second"])
    assert batch["input_ids"][0].tolist() == wanted["input_ids"]
    assert batch["token_type_ids"][0].tolist() == wanted["token_type_ids"]


def test_what_cannot_be_pairs_is_refused(tmp_path: Path):
    model = model_of(tmp_path)
    one = write_rows(tmp_path / "one.jsonl", [{"text": words(1)}] * 8)
    with pytest.raises(HeadsError, match="has 1 text column; name one, or two for pairs"):
        load_data(CalibrationChoice(one, pairs=True), model, tmp_path)


def test_several_sources_give_an_equal_share_each(tmp_path: Path):
    model = model_of(tmp_path)
    sources = (
        write_rows(tmp_path / "a.jsonl", [{"text": text} for text in texts(400)]),
        write_rows(tmp_path / "b.jsonl", [{"first": text, "second": text} for text in texts(400)]),
        "random",
    )
    data = load_data(CalibrationChoice(sources, samples=90), model, tmp_path)
    for part in ("30 examples of a.jsonl (text)", "30 examples of b.jsonl (first, second)", "30 sequences of random"):
        assert part in data.description
    assert len(lengths_of(data.batches)) == 90
    columns = CalibrationChoice(sources, ("second",), samples=90)
    assert "b.jsonl (second)" in load_data(columns, model, tmp_path).description
    with pytest.raises(HeadsError, match="none of the data sets has the columns third"):
        load_data(CalibrationChoice(sources, ("third",), samples=90), model, tmp_path)
    for wrong in ((), ("random", "random"), ("none", "random")):
        with pytest.raises(HeadsError):
            CalibrationChoice(wrong)


def test_made_texts_have_lengths_segments_and_repeated_tokens(tmp_path: Path):
    model = model_of(tmp_path)
    examples = made_examples(model.config, tmp_path, 256, 0)
    assert max(len(example["input_ids"]) for example in examples) == 512
    two = [example for example in examples if "token_type_ids" in example]
    assert len(two) == 128
    for example in two:
        assert len(example["token_type_ids"]) == len(example["input_ids"]) and example["input_ids"].count(SEP) == 2
    repeated = [
        len(set(first) & set(second)) / max(len(second), 1)
        for example in two
        for first, second in [split(example)]
        if len(second) > 8
    ]
    assert sum(repeated) / len(repeated) > 0.3
    assert all("token_type_ids" not in example for example in made_examples(model.config, tmp_path, 8, 0, pairs=False))
    assert all("token_type_ids" in example for example in made_examples(model.config, tmp_path, 8, 0, pairs=True))


def split(example: dict[str, list[int]]) -> tuple[list[int], list[int]]:
    segments: tuple[list[int], list[int]] = ([], [])
    for token, segment in zip(example["input_ids"], example["token_type_ids"], strict=True):
        if token not in (CLS, SEP):
            segments[segment].append(token)
    return segments


def test_probes_stay_short_and_single_and_longer_ones_stand_beside(tmp_path: Path):
    model = model_of(tmp_path)
    source = Source("x", tmp_path)
    assert max(lengths_of(probes(source, model))) <= 34 and all(
        "token_type_ids" not in one for one in probes(source, model)
    )
    assert {length: set(lengths_of(batches)) for length, batches in probes_by_length(source, model).items()} == {
        128: {128},
        512: {512},
    }
    assert calibration_data(source, model, CalibrationChoice(samples=8)).by_length.keys() == {128, 512}


def test_python_takes_pairs_and_choices(tmp_path: Path):
    model_of(tmp_path, BertForSequenceClassification)
    model = BertForSequenceClassification.from_pretrained(tmp_path)
    pairs = [(row["first"], row["second"]) for row in PAIRS[:12]]
    _, report = hf_heads.convert(model, CollabSpec(rank=8), calibration=pairs)
    assert report.calibration == "12 given pairs"
    choice = CalibrationChoice(write_rows(tmp_path / "pairs.jsonl", PAIRS), samples=16)
    _, report = hf_heads.convert(model, CollabSpec(rank=8), calibration=choice)
    assert "pairs, as BertForSequenceClassification takes them" in report.calibration
