"""Labelled batches: what each kind of model takes for labels, exactly, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from PIL import Image
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
from hf_heads.data.labelled import kind_of, load_labelled
from tests.support.files import write_rows
from tests.support.tokenizers import save_image_processor, save_marian_tokenizer, save_tokenizer
from tests.support.twins import TWINS, bert_config, marian_config, randomize, vit_config

PAD, UNK, CLS, SEP, MASK, WORD0 = 0, 1, 2, 3, 4, 5
Write = Callable[..., str]


def classifier(num_labels: int = 3, **changes: Any) -> PreTrainedModel:
    model = BertForSequenceClassification(bert_config(num_labels=num_labels, **changes))
    randomize(model)
    return model.eval()


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Rows as a .jsonl file, beside a folder `model` with a tokenizer."""
    save_tokenizer(tmp_path / "model")

    def rows(*rows: dict[str, Any]) -> str:
        return str(write_rows(tmp_path / "data.jsonl", rows))

    return rows


@pytest.fixture(autouse=True)
def no_naps(monkeypatch: pytest.MonkeyPatch) -> None:
    """`datasets` sleeps for 5 s after every parquet file, lest the process ends before Arrow's threads."""
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)


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
    converted, _ = hf_heads.convert(model, CollabSpec(rank=8))
    batches = load_labelled(source, converted, tmp_path / "model")
    check_same(batches, load_labelled(source, model, tmp_path / "model"))
    check_loss(converted, batches)
    base, _ = hf_heads.convert(BertModel(bert_config()), CollabSpec(rank=8))
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
    (single,) = load_labelled(source, model, tmp_path / "model", columns=["sentence2"])
    assert "token_type_ids" not in single and single["input_ids"].tolist() == [[*ids(7), PAD], ids(2, 3)]
    (swapped,) = load_labelled(source, model, tmp_path / "model", columns=["sentence2", "sentence1"])
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
        ({"text": "word1", "label": 1}, {"samples": 0}, "0 samples are not positive"),
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


# Classes of images.


def save_images(folder: Path) -> None:
    """Two folders of images: 20 red dogs, 20 blue cats."""
    for name, colour in (("dog", (250, 0, 0)), ("cat", (0, 0, 250))):
        (folder / name).mkdir(parents=True)
        for index in range(20):
            Image.new("RGB", (20, 24), colour).save(folder / name / f"{index}.png")


def test_images_in_folders_are_labelled_by_the_folders(tmp_path: Path):
    model = TWINS["vit"].model()
    save_image_processor(tmp_path)
    save_images(tmp_path / "images")
    batches = load_labelled(str(tmp_path / "images"), model, tmp_path, samples=36)
    assert [set(batch) for batch in batches] == [{"pixel_values", "labels"}] * 2
    assert [tuple(batch["pixel_values"].shape) for batch in batches] == [(32, 3, 16, 16), (4, 3, 16, 16)]
    for batch in batches:
        red = batch["pixel_values"][:, 0, 0, 0] > batch["pixel_values"][:, 2, 0, 0]
        assert torch.equal(batch["labels"], red.long())  # in alphabetical order: cat, dog
    check_loss(model, batches)
    check_same(batches, load_labelled(str(tmp_path / "images"), model, tmp_path, samples=36))
    model.config.label2id = {"dog": 3, "cat": 4}
    for batch in load_labelled(str(tmp_path / "images"), model, tmp_path):
        red = batch["pixel_values"][:, 0, 0, 0] > batch["pixel_values"][:, 2, 0, 0]
        assert torch.equal(batch["labels"], torch.where(red, 3, 4))


def test_images_in_a_table(tmp_path: Path):
    model = TWINS["vit"].model()
    save_image_processor(tmp_path)
    save_images(tmp_path / "images")
    paths = [str(path) for path in sorted((tmp_path / "images").rglob("*.png"))]  # cats first
    columns = {"picture": paths, "other": paths, "caption": ["x"] * 40, "species": [4] * 20 + [2] * 20}
    table = datasets.Dataset.from_dict(columns)
    table = table.cast_column("picture", datasets.Image()).cast_column("other", datasets.Image())
    source = str(tmp_path / "images.parquet")
    table.to_parquet(source)
    with pytest.raises(HeadsError, match="has 2 image columns; name one with --columns"):
        load_labelled(source, model, tmp_path)
    batches = load_labelled(source, model, tmp_path, columns=["picture"])
    for batch in batches:
        red = batch["pixel_values"][:, 0, 0, 0] > batch["pixel_values"][:, 2, 0, 0]
        assert torch.equal(batch["labels"], torch.where(red, 2, 4))
    check_loss(model, batches)
    with pytest.raises(HeadsError, match=r"column 'caption' .* holds no image"):
        load_labelled(source, model, tmp_path, columns=["caption"])
    table.remove_columns("species").to_parquet(source)
    with pytest.raises(HeadsError, match="has no label column"):
        load_labelled(source, model, tmp_path)
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(HeadsError, match="no image processor"):
        load_labelled(str(tmp_path / "images"), model, tmp_path)


# Language models.


def test_masked_models_learn_the_masked_tokens(write: Write, tmp_path: Path):
    lengths = [1, 3, 10, 20, 34]
    model = TWINS["bert"].model()
    source = write(*({"text": words(*range(length), 999), "label": 1} for length in lengths))  # word999 is unknown
    batches = load_labelled(source, model, tmp_path / "model")
    (batch,) = batches
    assert set(batch) == {"input_ids", "attention_mask", "labels"}
    for length, inputs, labels in zip(lengths, batch["input_ids"], batch["labels"], strict=True):
        chosen = labels != -100
        assert chosen.sum() == max(1, round(0.15 * length))
        assert torch.equal(inputs == MASK, chosen)
        original = torch.where(chosen, labels, inputs).tolist()
        assert original[: length + 3] == [*ids(*range(length))[:-1], UNK, SEP]
        assert set(original[length + 3 :]) <= {PAD}
    check_loss(model, batches)
    check_same(batches, load_labelled(source, model, tmp_path / "model"))
    (other,) = load_labelled(source, model, tmp_path / "model", seed=1)
    assert not torch.equal(other["labels"], batch["labels"])


def test_masked_models_need_a_mask_and_something_to_mask(write: Write, tmp_path: Path):
    model = TWINS["bert"].model()
    source = write({"text": "unknown things"}, {"text": words(1)})
    (batch,) = load_labelled(source, model, tmp_path / "model")
    assert batch["input_ids"].tolist() == [[CLS, MASK, SEP]] and batch["labels"].tolist() == [[-100, WORD0 + 1, -100]]
    with pytest.raises(HeadsError, match=r"no text of .* has enough tokens for 'BertForMaskedLM'"):
        load_labelled(write({"text": "unknown things"}), model, tmp_path / "model")
    with pytest.raises(HeadsError, match="takes its labels from the texts; leave out the label column 'text'"):
        load_labelled(source, model, tmp_path / "model", label="text")
    save_marian_tokenizer(tmp_path)
    with pytest.raises(HeadsError, match="has no mask token"):
        load_labelled(source, model, tmp_path)


def test_causal_models_learn_their_inputs(write: Write, tmp_path: Path):
    model = BertLMHeadModel(bert_config(is_decoder=True))
    batches = load_labelled(write({"text": words(1)}, {"text": words(2, 3, 4)}), model, tmp_path / "model")
    (batch,) = batches
    assert set(batch) == {"input_ids", "attention_mask", "labels"}
    assert batch["input_ids"].tolist() == [[*ids(1), PAD, PAD], ids(2, 3, 4)]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1] * 5]
    assert batch["labels"].tolist() == [[*ids(1), -100, -100], ids(2, 3, 4)]
    check_loss(model, batches)
    check_loss(TWINS["bert-decoder"].model(), batches)


def test_causal_models_learn_nothing_from_single_tokens(write: Write, tmp_path: Path):
    file = tmp_path / "model" / "tokenizer.json"
    settings = json.loads(file.read_text())
    settings["post_processor"] = None
    file.write_text(json.dumps(settings))
    model = BertLMHeadModel(bert_config(is_decoder=True))
    (batch,) = load_labelled(write({"text": words(1)}, {"text": words(2, 3)}), model, tmp_path / "model")
    assert batch["labels"].tolist() == [[WORD0 + 2, WORD0 + 3]]
    with pytest.raises(HeadsError, match=r"no text of .* has enough tokens for 'BertLMHeadModel'"):
        load_labelled(write({"text": words(1)}), model, tmp_path / "model")


def test_translation_models_learn_the_targets(write: Write, tmp_path: Path):
    model = TWINS["marian"].model()
    save_marian_tokenizer(tmp_path)
    rows = [{"id": 1, "en": "one", "de": "eins zwei"}, {"id": 2, "en": "one two three", "de": "eins"}]
    source = write(*rows, {"id": 3, "en": "one", "de": ""})
    batches = load_labelled(source, model, tmp_path)
    (batch,) = batches
    decoder = {"decoder_input_ids", "decoder_attention_mask"}
    assert set(batch) == {"input_ids", "attention_mask", "labels"} | decoder
    labels, inputs, mask = batch["labels"], batch["decoder_input_ids"], batch["decoder_attention_mask"]
    assert labels.shape == inputs.shape == mask.shape
    assert (batch["attention_mask"][0] == 0).any() and (labels[1] == -100).any()
    for row in range(2):
        length = int((labels[row] != -100).sum())
        assert labels[row, length - 1] == model.config.eos_token_id and (labels[row, length:] == -100).all()
        assert inputs[row, 0] == model.config.decoder_start_token_id
        assert torch.equal(inputs[row, 1:length], labels[row, : length - 1])
        assert mask[row, :length].all() and not mask[row, length + 1 :].any()
    check_loss(model, batches)
    named = load_labelled(source, model, tmp_path, columns=["en", "de"])
    check_same(named, batches)
    unmasked = {name: value for name, value in batch.items() if name not in decoder}
    with torch.no_grad():  # the model shifts the labels into the same decoder inputs, padding aside
        assert torch.allclose(model(**unmasked).loss, model(**batch).loss)


def test_translation_models_need_both_texts(write: Write, tmp_path: Path):
    model = TWINS["marian"].model()
    save_marian_tokenizer(tmp_path)
    for row, message in (
        ({"en": "one"}, "source and target texts; name both with --columns a,b"),
        ({"en": "one", "de": "eins", "fr": "un"}, "3 text columns; name source and target with --columns a,b"),
        ({"en": "one", "de": ""}, "no row of .* has texts in both columns, en and de"),
    ):
        with pytest.raises(HeadsError, match=message):
            load_labelled(write(row, row), model, tmp_path)
