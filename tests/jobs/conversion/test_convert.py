"""`hf_heads.convert` in Python: what it calibrates on, and what it says to what it cannot use."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModel, BertConfig, PreTrainedModel

import hf_heads
from hf_heads import CollabSpec, HeadsError, LowRankSpec
from tests.support.matrix import only
from tests.support.twins import TWINS, logits


@pytest.fixture
def model(bert_folder: Path) -> PreTrainedModel:
    return AutoModel.from_pretrained(bert_folder)


def test_made_data_is_the_default_and_texts_files_and_batches_are_taken(model: PreTrainedModel, tmp_path: Path):
    texts = [f"word{number} word{number + 1} word{number % 7}" for number in range(60)]
    file = tmp_path / "texts.txt"
    file.write_text("\n".join(texts))
    batches = [{"input_ids": torch.randint(5, 90, (8, 6)), "attention_mask": torch.ones(8, 6, dtype=torch.long)}] * 3
    wanted: dict[str, Any] = {
        "512 sequences of random tokens, 6 to 40 tokens, seed 0": "random",
        "none, weights only": "none",
        "60 given texts": texts,
        "45 examples of texts.txt (text), 5 to 40 tokens, seed 0": str(file),
        "given batches": batches,
    }
    found, spec = {}, LowRankSpec(rank=8)
    for description, calibration in wanted.items():
        converted, report = hf_heads.convert(model, spec, calibration=calibration, objective="scores")
        assert report.calibration == description
        found[description] = converted.encoder.layer[1].attention.self.narrow_query.weight.detach()
    default, report = hf_heads.convert(model, spec, objective="scores")
    assert report.calibration.startswith("512 sequences of random")
    assert torch.equal(default.encoder.layer[1].attention.self.narrow_query.weight, found[report.calibration])
    weights_only = found.pop("none, weights only")
    assert all(not torch.equal(weights_only, one) for one in found.values())


@only("vit", kind=["vit", "marian"])  # Marian writes 512 targets; a few in test_statistics.py
def test_made_data_is_the_default_for_other_modalities(kind: str):
    converted, report = hf_heads.convert(TWINS[kind].model(), CollabSpec(rank=20))
    assert "random" in report.calibration and torch.isfinite(logits(converted, TWINS[kind].inputs())).all()


LONG = torch.ones(1, 41, dtype=torch.long)


def bert() -> PreTrainedModel:
    return TWINS["bert"].model()


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: hf_heads.convert("bert-base-uncased", CollabSpec(rank=8)), "AutoModel.from_pretrained('bert-base"),
        (lambda: hf_heads.convert(Path("here"), CollabSpec(rank=8)), "hf_heads.convert_checkpoint"),
        (lambda: hf_heads.convert(nn.Linear(2, 2), CollabSpec(rank=8)), "a model of transformers, not Linear"),
        (lambda: hf_heads.convert(bert(), "collab"), "spec is 'collab', expected settings such as CollabSpec(rank=96)"),
        (lambda: hf_heads.convert(bert(), {"*": 8}), "spec is {'*': 8}, expected settings"),
        (lambda: hf_heads.convert(bert(), {}), "spec is {}, expected settings"),
        (lambda: hf_heads.convert(bert(), CollabSpec(rank=8), calibration=torch.ones(2, 3)), "calibration is a Tensor"),
        (
            lambda: hf_heads.convert(bert(), CollabSpec(rank=8), calibration=[torch.ones(2)]),
            "calibration[0] is a Tensor",
        ),
        (lambda: hf_heads.convert(bert(), CollabSpec(rank=8), calibration={"input_ids": 1}), "calibration is a dict"),
        (
            lambda: hf_heads.convert(bert(), CollabSpec(rank=8), calibration=[{"input_ids": [1]}]),
            "calibration[0] is a dict",
        ),
        (lambda: hf_heads.convert(bert(), CollabSpec(rank=8), calibration=7), "calibration is a int"),
        (lambda: hf_heads.convert(bert(), CollabSpec(rank=8), calibration=[]), "the calibration data is empty"),
        (lambda: hf_heads.convert(bert(), CollabSpec(rank=8), calibration=["text"]), "where its tokenizer is"),
        (lambda: hf_heads.convert(bert(), CollabSpec(rank=8), calibration="no.jsonl"), "'no.jsonl' does not exist"),
        (
            lambda: hf_heads.convert(bert(), CollabSpec(rank=8), calibration=[{"input_ids": LONG}]),
            "calibration[0] has 41 tokens, the model 40 positions: cut it",
        ),
        (
            lambda: hf_heads.convert(bert(), CollabSpec(rank=8), calibration="none", labelled=[{"input_ids": LONG}]),
            "labelled[0] has 41 tokens, the model 40 positions: cut it",
        ),
        (
            lambda: hf_heads.convert(bert(), CollabSpec(rank=8), calibration="none", labelled=[LONG]),
            "labelled[0] is a Tensor, expected a batch",
        ),
        (lambda: hf_heads.find_blocks("bert-base-uncased"), "find_blocks takes a model of transformers, not str"),
        (
            lambda: hf_heads.rank_heads(nn.Linear(2, 2), "weights"),
            "find_blocks takes a model of transformers, not Linear",
        ),
    ],
)
def test_what_cannot_be_used_gets_one_clear_line(call: Callable[[], Any], text: str):
    with pytest.raises(HeadsError, match=re.escape(text)) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_heads_config_leaves_the_callers_config_alone():
    config = BertConfig(hidden_size=32, num_attention_heads=4, num_hidden_layers=2, intermediate_size=32, vocab_size=50)
    before = dict(vars(config))
    made = hf_heads.heads_config(config, CollabSpec(rank=8))
    assert vars(config) == before
    eager = AutoModel.from_config(made, attn_implementation="eager")
    assert eager.config._attn_implementation == "eager"
