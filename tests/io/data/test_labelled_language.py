"""Labelled batches of language models, which take their labels from the texts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import (
    BertLMHeadModel,
)

from hf_heads import HeadsError
from tests.support.labelled import (
    CLS,
    MASK,
    PAD,
    SEP,
    UNK,
    WORD0,
    Write,
    check_loss,
    check_same,
    ids,
    load_labelled,
    words,
)
from tests.support.tokenizers import save_marian_tokenizer
from tests.support.twins import TWINS, bert_config


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
        assert mask[row, :length].all() and not mask[row, length:].any()
    check_loss(model, batches)
    named = load_labelled(source, model, tmp_path, columns=("en", "de"))
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
