"""Labelled batches: what each kind of model takes for labels, exactly, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from transformers import (
    AutoTokenizer,
    BertForMaskedLM,
    BertForPreTraining,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertLMHeadModel,
    BertModel,
    BertTokenizer,
    MarianForCausalLM,
    MarianModel,
    MarianMTModel,
    PreTrainedModel,
    ViTForImageClassification,
    ViTModel,
)

import hf_heads
from hf_heads import CollabSpec, HeadsError
from hf_heads.io.data.labelled import kind_of
from tests.support.labelled import (
    PAD,
    WORD0,
    Write,
    by_first_word,
    check_loss,
    check_same,
    classifier,
    ids,
    load_labelled,
    words,
)
from tests.support.tokenizers import save_tokenizer
from tests.support.twins import bert_config, marian_config, vit_config


def test_the_kind_is_that_of_the_class():
    kinds = {
        BertForSequenceClassification: (bert_config, "text-class"),
        BertForMaskedLM: (bert_config, "masked"),
        BertLMHeadModel: (bert_config, "causal"),
        BertModel: (bert_config, None),
        BertForTokenClassification: (bert_config, None),
        BertForPreTraining: (bert_config, None),
        MarianMTModel: (marian_config, "targets"),
        MarianForCausalLM: (marian_config, "causal"),
        MarianModel: (marian_config, None),
        ViTForImageClassification: (vit_config, "image-class"),
        ViTModel: (vit_config, None),
    }
    assert {cls: kind_of(cls(config())) for cls, (config, _) in kinds.items()} == {
        cls: kind for cls, (_, kind) in kinds.items()
    }


@pytest.mark.parametrize("cls", [BertModel, BertForQuestionAnswering, BertForTokenClassification])
def test_models_without_such_a_loss_are_refused(cls: type[PreTrainedModel], tmp_path: Path):
    with pytest.raises(HeadsError, match=f"'{cls.__name__}' has no loss .* gauss-newton, or pass batches with labels"):
        load_labelled("data.jsonl", cls(bert_config()), tmp_path)


def test_converted_models_count_as_their_hosts(write: Write, tmp_path: Path):
    source = write({"text": words(1, 2), "label": 2}, {"text": words(3), "label": 0})
    model = classifier()
    converted, _ = hf_heads.convert(model, CollabSpec(rank=8), calibration="none")
    batches = load_labelled(source, converted, tmp_path / "model")
    check_same(batches, load_labelled(source, model, tmp_path / "model"))
    check_loss(converted, batches)
    base, _ = hf_heads.convert(BertModel(bert_config()), CollabSpec(rank=8), calibration="none")
    with pytest.raises(HeadsError, match="'BertModel' has no loss"):
        load_labelled(source, base, tmp_path / "model")


# Classes of texts.


def test_integers_are_classes_and_unlabelled_rows_go(write: Write, tmp_path: Path):
    rows = [(1, 2), (2, -1), (3, 0), (4, None), (5, 1)]
    data = [{"idx": 7, "text": words(number, *[9] * number), "label": label} for number, label in rows]
    model = classifier()
    batches = load_labelled(write(*data, {"idx": 7, "text": "", "label": 1}), model, tmp_path / "model")
    (batch,) = batches
    assert set(batch) == {"input_ids", "attention_mask", "labels"}
    assert batch["input_ids"].tolist() == [
        [*ids(1, 9), PAD, PAD, PAD, PAD],
        [*ids(3, 9, 9, 9), PAD, PAD],
        ids(5, 9, 9, 9, 9, 9),
    ]
    assert batch["attention_mask"].sum(1).tolist() == [4, 6, 8]
    assert batch["labels"].tolist() == [2, 0, 1] and batch["labels"].dtype == torch.long
    check_loss(model, batches)


def test_strings_go_by_label2id(write: Write, tmp_path: Path):
    model = classifier(label2id={"no": 0, "maybe": 1, "yes": 2}, id2label={0: "no", 1: "maybe", 2: "yes"})
    rows = [{"text": words(1), "label": "yes"}, {"text": words(2), "label": "no"}, {"text": words(3), "label": "maybe"}]
    batches = load_labelled(write(*rows), model, tmp_path / "model")
    assert by_first_word(batches) == {1: 2, 2: 0, 3: 1}
    check_loss(model, batches)
    with pytest.raises(HeadsError, match=r"label 'never' in column 'label' .* config\.label2id: no, maybe, yes$"):
        load_labelled(write(*rows, {"text": words(1), "label": "never"}), model, tmp_path / "model")


def test_named_classes_of_the_data_go_by_label2id_where_the_model_knows_them(tmp_path: Path):
    save_tokenizer(tmp_path)
    texts, labels = [words(1), words(2), words(3)], [0, 1, -1]
    features = datasets.Features(text=datasets.Value("string"), label=datasets.ClassLabel(names=["no", "yes"]))
    source = str(tmp_path / "data.parquet")
    datasets.Dataset.from_dict({"text": texts, "label": labels}, features=features).to_parquet(source)
    turned = classifier(2, label2id={"yes": 0, "no": 1}, id2label={0: "yes", 1: "no"})
    assert by_first_word(load_labelled(source, turned, tmp_path)) == {1: 1, 2: 0}
    nameless = classifier(2)
    assert by_first_word(load_labelled(source, nameless, tmp_path)) == {1: 0, 2: 1}
    other = classifier(2, label2id={"yes": 0, "never": 1}, id2label={0: "yes", 1: "never"})
    with pytest.raises(HeadsError, match="label 'no' in column 'label'"):
        load_labelled(source, other, tmp_path)


def test_one_label_is_a_number(write: Write, tmp_path: Path):
    model = classifier(1)
    data = [{"text": words(number), "score": score} for number, score in [(1, 2.5), (2, -1.0), (3, None), (4, 3)]]
    batches = load_labelled(write(*data), model, tmp_path / "model")
    assert by_first_word(batches) == {1: 2.5, 2: -1.0, 4: 3.0}
    assert batches[0]["labels"].dtype == torch.float32
    check_loss(model, batches)
    with pytest.raises(HeadsError, match=r"'good' in column 'label' .* is no number"):
        load_labelled(write({"text": words(1), "label": "good"}), model, tmp_path / "model")
    with pytest.raises(HeadsError, match="has no labels"):
        load_labelled(write(*[{"text": words(1), "label": -1.0}] * 3), model, tmp_path / "model")


def test_two_texts_are_a_pair_with_types(write: Write, tmp_path: Path):
    rows = [
        {"sentence1": words(1), "sentence2": words(2, 3), "label": 1, "idx": 0},
        {"sentence1": words(4, 5, 6), "sentence2": words(7), "label": 0, "idx": 1},
        {"sentence1": words(8), "sentence2": "", "label": 0, "idx": 1},
    ]
    model, source = classifier(), write(*rows)
    (typeless,) = load_labelled(source, model, tmp_path / "model")  # a tokenizer that is of no model makes none
    assert set(typeless) == {"input_ids", "attention_mask", "labels"}
    BertTokenizer(vocab=AutoTokenizer.from_pretrained(tmp_path / "model").get_vocab()).save_pretrained(
        tmp_path / "model"
    )
    batches = load_labelled(source, model, tmp_path / "model")
    (batch,) = batches
    assert set(batch) == {"input_ids", "attention_mask", "token_type_ids", "labels"}
    assert torch.equal(batch["input_ids"], typeless["input_ids"])
    assert batch["input_ids"].tolist() == [[*ids(1), *ids(2, 3)[1:], PAD], [*ids(4, 5, 6), *ids(7)[1:]]]
    assert batch["token_type_ids"].tolist() == [[0, 0, 0, 1, 1, 1, 0], [0, 0, 0, 0, 0, 1, 1]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 1, 1, 0], [1] * 7]
    assert batch["labels"].tolist() == [1, 0]
    check_loss(model, batches)
    (single,) = load_labelled(source, model, tmp_path / "model", columns=("sentence2",))
    assert "token_type_ids" not in single and single["input_ids"].tolist() == [[*ids(7), PAD], ids(2, 3)]
    (swapped,) = load_labelled(source, model, tmp_path / "model", columns=("sentence2", "sentence1"))
    assert swapped["input_ids"][0].tolist() == [*ids(2, 3), *ids(1)[1:], PAD]


@pytest.mark.parametrize(
    ("row", "column"),
    [
        ({"text": "word1", "Labels": 1, "idx": 0}, None),
        ({"text": "word1", "target": 1, "idx": 0}, None),
        ({"text": "word1", "class": "LABEL_1", "idx": 0}, None),
        ({"text": "word1", "polarity": 1}, None),
        ({"text": "word1", "polarity": 1.0}, None),
        ({"text": "word1", "toxic": True}, None),
        ({"text": "word1", "label": 0, "other": 1}, "other"),
        ({"text": "word1", "verdict": "LABEL_1"}, "verdict"),
    ],
)
def test_the_label_is_found(write: Write, tmp_path: Path, row: dict[str, Any], column: str | None):
    (batch,) = load_labelled(write(row, row), classifier(), tmp_path / "model", label=column)
    assert batch["labels"].tolist() == [1, 1] and batch["labels"].dtype == torch.long
    assert batch["input_ids"].tolist() == [ids(1), ids(1)]


@pytest.mark.parametrize(
    ("row", "arguments", "message"),
    [
        ({"text": "word1", "label": 3}, {}, "label 3 in column 'label' .* model's 3 classes, 0 to 2"),
        ({"text": "word1", "label": -2}, {}, "label -2 in column 'label' .* model's 3 classes"),
        ({"text": "word1", "label": 0.5}, {}, "'0.5' in column 'label' .* is no class"),
        ({"text": "word1", "labels": [1, 0]}, {}, r"'\[1, 0\]' in column 'labels' .* is no class"),
        ({"text": "word1", "label": -1}, {}, "column 'label' .* has no labels .* NAME:validation"),
        ({"text": "word1"}, {}, "has no label column. Columns: text; name one with --label"),
        ({"text": "word1", "label": 1, "target": 1}, {}, "several columns .*: label, target; name one with --label"),
        ({"text": "word1", "red": 1, "blue": 1}, {}, "several columns .*: red, blue; name one with --label"),
        ({"text": "word1", "label": 1}, {"label": "mark"}, "has no column 'mark'. Columns: text, label"),
        ({"text": "word1", "label": 1}, {"columns": ["mark"]}, "has no column 'mark'. Columns: text, label"),
        (
            {"text": "word1", "label": "x"},
            {"columns": ["text", "label"], "label": "label"},
            "leave it out of --columns",
        ),
        ({"text": "word1", "label": 1, "rank": 1}, {"columns": ["rank"]}, "column 'rank' .* holds no text"),
        ({"idx": 1, "label": 1}, {}, "has no text column. Columns: idx, label; name one with --columns"),
        (
            {"a": "x", "b": "x", "c": "x", "label": 1},
            {},
            "has 3 text columns; name one, or two for pairs, with --columns",
        ),
        ({"text": "", "label": 1}, {}, "column 'text' .* is empty"),
        ({"text": "word1", "label": 1}, {"samples": 0}, "samples is 0, expected a whole number from 1"),
    ],
)
def test_classes_that_cannot_be_read(
    write: Write, tmp_path: Path, row: dict[str, Any], arguments: dict[str, Any], message: str
):
    with pytest.raises(HeadsError, match=message):
        load_labelled(write(row, row), classifier(), tmp_path / "model", **arguments)


def test_what_needs_several_numbers_for_an_example_is_refused(write: Write, tmp_path: Path):
    source = write({"text": "word1", "label": 1})
    for number, kind in ((3, "multi_label_classification"), (3, "regression"), (1, "multi_label_classification")):
        with pytest.raises(HeadsError, match=f"problem_type '{kind}' with num_labels {number} is neither"):
            load_labelled(source, classifier(number, problem_type=kind), tmp_path / "model")


def test_files_and_folders_that_cannot_be_read(write: Write, tmp_path: Path):
    with pytest.raises(HeadsError, match="does not exist"):
        load_labelled(str(tmp_path / "missing.jsonl"), classifier(), tmp_path / "model")
    with pytest.raises(HeadsError, match="is empty"):
        load_labelled(write(), classifier(), tmp_path / "model")
    with pytest.raises(HeadsError, match="no tokenizer can be loaded"):
        load_labelled(write({"text": "word1", "label": 1}), classifier(), tmp_path)


def test_batches_hold_similar_lengths_and_as_many_examples_as_asked_for(write: Write, tmp_path: Path):
    rows = [{"text": words(*[number % 90] * (1 + number % 30)), "label": number % 3} for number in range(300)]
    model, source = classifier(), write(*rows)
    batches = load_labelled(source, model, tmp_path / "model", samples=200)
    assert sum(len(batch["labels"]) for batch in batches) == 200
    assert len(batches) > 1 and all(batch["input_ids"].numel() <= 2048 for batch in batches)
    lengths = [length for batch in batches for length in batch["attention_mask"].sum(1).tolist()]
    assert lengths == sorted(lengths)
    for batch in batches:
        assert ((batch["input_ids"] == PAD) == (batch["attention_mask"] == 0)).all()
        assert torch.equal(batch["labels"], (batch["input_ids"][:, 1] - WORD0) % 3)
    check_same(batches, load_labelled(source, model, tmp_path / "model", samples=200))
    other = load_labelled(source, model, tmp_path / "model", samples=200, seed=1)
    assert (
        torch.cat([batch["labels"] for batch in other]).tolist()
        != torch.cat([batch["labels"] for batch in batches]).tolist()
    )
