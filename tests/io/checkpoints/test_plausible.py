"""Sizes in a config that its files do not bear out: refused before anything of these sizes is made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import hf_heads
from hf_heads import CollabSpec
from hf_heads.core.errors import HeadsError
from hf_heads.io.checkpoints.inspection import inspect
from hf_heads.io.checkpoints.loading import load_source
from hf_heads.io.checkpoints.sources import resolve_source
from tests.support.files import save_checkpoint
from tests.support.fuzz import limits, refused
from tests.support.tokenizers import save_marian_tokenizer
from tests.support.twins import TWINS


def change(folder: Path, **changes: Any) -> str:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return str(folder)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000, expected a whole number from 0 to 10,000"),
        ({"num_hidden_layers": 5000}, "num_hidden_layers is 5000, but its files hold [0-9]+ tensors"),
        ({"num_labels": 10**12}, "num_labels is 1000000000000, expected a whole number from 0 to 1,000,000"),
        ({"vocab_size": 10**15}, "vocab_size is 1000000000000000, expected a whole number from 0 to 2,147,483,648"),
        ({"vocab_size": 10**9}, "describes a model of [0-9,]+ numbers, but its files hold [0-9,]+"),
        ({"hidden_size": 2**20}, "describes a model of [0-9,]+ numbers, but its files hold [0-9,]+"),
        ({"intermediate_size": 2**31}, "describes a model of [0-9,]+ numbers, but its files hold [0-9,]+"),
        ({"max_position_embeddings": 2**31}, "describes a model of [0-9,]+ numbers, but its files hold [0-9,]+"),
        ({"hidden_size": float("nan")}, "hidden_size is nan, expected"),
        ({"architectures": [5]}, "architectures is \\[5\\], expected a list of names"),
        ({"model_type": 5}, "names no model_type"),
        ({"num_attention_heads": 0}, "cannot|expected"),
    ],
    ids=str,
)
def test_a_config_that_nobody_could_mean(bert_folder: Path, changes: dict[str, Any], words: str):
    source = resolve_source(change(bert_folder, **changes))
    with limits(), pytest.raises(HeadsError, match=words):
        load_source(source)
    refused(lambda: inspect(source))  # needs no memory for weights, and shows the attention alone


@pytest.mark.parametrize("converted", [False, True])
def test_a_type_that_torch_does_not_have(converted: bool, tmp_path: Path):
    model = TWINS["bert"].model()
    if converted:
        model = hf_heads.convert(model, CollabSpec(rank=8), calibration="none")[0]
    source = resolve_source(change(save_checkpoint(model, tmp_path / "typed"), dtype="0"))
    for read in (inspect, load_source):
        with pytest.raises(HeadsError, match="module 'torch' has no attribute '0'"):
            read(source)


def test_positions_that_are_computed(tmp_path: Path):
    folder = save_checkpoint(TWINS["marian"].model(), tmp_path / "marian", save_marian_tokenizer)
    with limits(), pytest.raises(HeadsError, match="describes a model of"):
        load_source(resolve_source(change(folder, max_position_embeddings=10**8)))


def test_a_head_that_the_files_lack_may_be_new(bert_folder: Path):
    change(bert_folder, architectures=["BertForSequenceClassification"], num_labels=3)
    with pytest.warns(UserWarning, match="random numbers take their place"):
        assert load_source(resolve_source(str(bert_folder))).config.num_labels == 3
