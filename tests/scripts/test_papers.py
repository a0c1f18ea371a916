"""The studies of the papers' experiments, on a few examples: that they run, and what they write."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
import run
import tables_of_papers
import torch
from transformers import BertForSequenceClassification

from tests.support.files import save_checkpoint, write_rows
from tests.support.twins import HEADS, LAYERS, bert_config, randomize


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("papers")
    torch.manual_seed(0)
    model = BertForSequenceClassification(bert_config(num_labels=2))
    randomize(model)
    save_checkpoint(model, folder / "model")
    rows = [{"sentence": f"word{place % 90} word{place * 7 % 90} word3", "label": place % 2} for place in range(70)]
    write_rows(folder / "train.jsonl", rows)
    write_rows(folder / "dev.jsonl", rows[:12])
    words = ["--model", folder / "model", "--train", folder / "train.jsonl", "--dev", folder / "dev.jsonl", "--small"]
    return [str(word) for word in words]


def results(name: str, words: list[str], folder: Path) -> dict:
    run.main([name, *words, "--threads", "1", "--results", str(folder)])
    found = json.loads((folder / f"{name}.json").read_text())
    assert getattr(tables_of_papers, name)(found)[1].startswith("|---")
    return found


def test_prune_curve_compares_the_paper_with_tokens_and_chance(given: list[str], tmp_path: Path):
    found = results("prune_curve", given, tmp_path)
    labels = [row["label"] for row in found["rows"]]
    assert set(labels) == {"the paper's", "tokens as units", "random"} and len(labels) == 27
    assert all(0 <= row["accuracy"] <= 100 for row in found["rows"])
    assert (tmp_path / "figures" / "prune_curve.png").is_file()


def test_head_correlation_of_rows_with_themselves_is_one(given: list[str], tmp_path: Path):
    found = results("head_correlation", [*given, "--columns", "sentence", "--other", given[5]], tmp_path)
    assert [row["pearson"] for row in found["rows"]] == pytest.approx([1, 1])
    assert found["rows"][0]["heads"] == LAYERS * HEADS


def test_what_a_study_of_heads_lacks_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folders = ["--results", str(tmp_path), "--data", str(tmp_path)]
    assert run.main(["prune_curve", "--results", str(tmp_path)]) == 2
    assert "name --train and --dev, or the folder --data" in capsys.readouterr().err
    assert run.main(["head_correlation", *folders, "--work", str(tmp_path)]) == 2
    assert f"no rows of mrpc: write them to '{tmp_path}/mrpc/train.jsonl'" in capsys.readouterr().err


def test_pairs_of_another_domain_are_clear_ones(tmp_path: Path):
    from studies.head_correlation import paraphrases

    (tmp_path / "stsb").mkdir()
    rows = [{"sentence1": "one", "sentence2": "two", "score": score} for score in (0.5, 2.0, 3.0, 4.0)]
    write_rows(tmp_path / "stsb" / "dev.jsonl", rows)
    made = Path(paraphrases(argparse.Namespace(data=tmp_path, work=tmp_path))).read_text().splitlines()
    assert [json.loads(line)["label"] for line in made] == [0, 0, 1]


def test_head_dynamics_follows_a_run(given: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from studies import head_dynamics

    monkeypatch.setattr(head_dynamics, "SMALL_STEPS", 2)
    found = results("head_dynamics", [*given, "--seeds", "1"], tmp_path)
    assert [row["step"] for row in found["rows"]] == [0, 1, 2]
    assert found["rows"][-1]["pearson"]["mean"] == pytest.approx(1)
    assert list(found["rows"][0]["figures"]) == ["0.0", "0.2", "0.4", "0.6", "0.8"]
    assert (tmp_path / "figures" / "head_dynamics.png").is_file()


def test_attention_rank_counts_directions():
    from studies.attention_rank import map_ranks, needed

    assert needed(torch.tensor([3.0, 1.0, 0.0])) == 1 and needed(torch.ones(10)) == 9
    maps = torch.eye(10).expand(1, 2, 10, 10).clone()
    maps[:, 1] = 0.1
    assert float(map_ranks(maps, torch.tensor([10]))) == pytest.approx((9 + 1) / 2 / 10)
