"""Several processes score and ablate heads as one does, and one of them speaks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import BertForSequenceClassification, PreTrainedModel

from hf_heads.cli import main
from tests.support.processes import forked
from tests.support.tokenizers import save_tokenizer
from tests.support.twins import TWINS, bert_config, randomize

WORDS = ("one two three four five six seven", "two one", "a b c", "four five one two", "six", "seven one a")


def classifier() -> PreTrainedModel:
    model = BertForSequenceClassification(bert_config(num_labels=3))
    randomize(model)
    return model.eval()


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    lines = [{"text": WORDS[index % 6], "label": index % 3} for index in range(41)]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path / "texts.jsonl"


def scored(model: PreTrainedModel, words: list[str], folder: Path, capfd: pytest.CaptureFixture[str]) -> list[dict]:
    """What a command says in one process, and in three of which the third has little to do."""
    model.save_pretrained(folder / "model")
    save_tokenizer(folder / "model")
    (folder / "logs").mkdir()
    words = [words[0], str(folder / "model"), *words[1:], "--json"]
    capfd.readouterr()
    assert main(words) == 0
    return [json.loads(one) for one in (capfd.readouterr().out, forked(3, words, folder / "logs"))]


@pytest.mark.parametrize(
    ("kind", "rule"),
    [
        ("embeddings", ["--score", "gauss-newton"]),
        ("classes", ["--score", "gauss-newton"]),
        ("language", ["--score", "gauss-newton"]),
        ("embeddings", ["--score", "ablation"]),
        ("classes", ["--score", "gradient"]),
        ("classes", ["--score", "gradient", "--unit", "token"]),
    ],
)
def test_processes_score_as_one_does(
    kind: str, rule: list[str], texts: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    makers = {"embeddings": TWINS["bert"].model, "classes": classifier, "language": TWINS["bert-decoder"].model}
    words = ["importance", "--calibrate", str(texts), "--steps", "3", *rule]
    one, three = scored(makers[kind](), words, tmp_path, capfd)
    assert one["order"] == three["order"]
    scores = [torch.tensor(list(found["importance"].values())).double() for found in (one, three)]
    torch.testing.assert_close(scores[0], scores[1], rtol=1e-9, atol=0)
    rest = [{key: value for key, value in found.items() if key != "importance"} for found in (one, three)]
    assert rest[0] == rest[1]


@pytest.mark.parametrize("metric", ["drift", "accuracy"])
def test_processes_ablate_as_one_does(metric: str, texts: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    one, three = scored(classifier(), ["ablate", "--calibrate", str(texts), "--metric", metric], tmp_path, capfd)
    assert one == three and len(one["one_out"]) > 3
