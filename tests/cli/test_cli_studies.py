"""The command line of head importance, ablation and pruning."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoModelForSequenceClassification, BertForSequenceClassification

from hf_heads import head_mask
from hf_heads.attention.hosts.blocks import find_blocks
from tests.support.cli import Run, check_refused, leftovers
from tests.support.files import save_checkpoint, write_rows
from tests.support.tokenizers import WORDS
from tests.support.twins import HEADS, bert_config, logits, randomize

FAST = ("--calibration-samples", 16)


@pytest.fixture
def classifier_folder(tmp_path: Path) -> Path:
    model = BertForSequenceClassification(bert_config(num_labels=2))
    randomize(model, seed=1)
    return save_checkpoint(model, tmp_path / "tiny-classifier")


@pytest.fixture
def sentences(tmp_path: Path) -> Path:
    generator = torch.Generator().manual_seed(0)
    rows = []
    for index in range(24):
        words = [WORDS[number] for number in torch.randint(len(WORDS), (6,), generator=generator)]
        rows.append({"sentence": " ".join(words), "label": index % 2})
    return write_rows(tmp_path / "train.jsonl", rows)


def test_importance_then_convert_without_data(run: Run, classifier_folder: Path, sentences: Path, tmp_path: Path):
    scores, plot, output = tmp_path / "scores.json", tmp_path / "heads.png", tmp_path / "out"
    measured = run(
        "importance", classifier_folder, "--score", "gradient", "--calibrate", sentences, *FAST, "--output", scores,
        "--plot", plot, "--json",
    )  # fmt: skip
    assert measured.code == 0, measured.err
    assert json.loads(scores.read_text()) == measured.json
    assert "labelled" in measured.json["data"]
    assert plot.read_bytes().startswith(b"\x89PNG")
    pruned = run(
        "convert", classifier_folder, "--to", "pruned", "--keep", 0.5, "--scores", scores, "--output", output, "--json",
        "--calibrate", "none",
    )  # fmt: skip
    assert pruned.code == 0, pruned.err
    assert pruned.json["calibration"] == "none, weights only; heads chosen by the scores in scores.json"
    gone = {tuple(head) for head in measured.json["order"][:HEADS]}
    for block in pruned.json["blocks"]:
        assert block["kept"] == [head for head in range(HEADS) if (block["name"], head) not in gone]
    original = AutoModelForSequenceClassification.from_pretrained(classifier_folder)
    masks = {
        block.name: torch.tensor([float((block.name, head) not in gone) for head in range(HEADS)])
        for block in find_blocks(original)
    }
    inputs = {"input_ids": torch.arange(5, 15).view(2, 5)}
    with head_mask(original, masks):
        wanted = logits(original, inputs)
    assert (logits(AutoModelForSequenceClassification.from_pretrained(output), inputs) - wanted).abs().max() < 1e-5
    shown = run("inspect", output, "--json").json
    assert [block["kept"] for block in shown["blocks"]] == [block["kept"] for block in pruned.json["blocks"]]
    assert run("verify", output).code == 0
    assert "pruned" in (output / "README.md").read_text()
    # and on from there
    again = run("convert", output, "--to", "collab", "--rank", 8, "--output", tmp_path / "again", *FAST)
    assert again.code == 0, again.err
    assert run("verify", tmp_path / "again").code == 0


@pytest.mark.parametrize("rule", ["gauss-newton", "gradient", "ablation", "weights", "random"])
def test_every_rule_prunes_from_the_command_line(run: Run, classifier_folder: Path, sentences: Path, rule: str):
    output = classifier_folder.parent / "out"
    data = ("--calibrate", sentences) if rule == "gradient" else ()
    found = run(
        "convert", classifier_folder, "--to", "pruned", "--keep", 0.25, "--score", rule, "--steps", 2, *data, *FAST,
        "--output", output, "--json",
    )  # fmt: skip
    assert found.code == 0, found.err
    assert sum(block["heads"] for block in found.json["blocks"]) == 2
    assert AutoModel.from_pretrained(output).config.model_type == "heads_bert"


def test_ablate_tables(run: Run, classifier_folder: Path, sentences: Path, tmp_path: Path):
    table, plot = tmp_path / "table.json", tmp_path / "table.svg"
    found = run(
        "ablate", classifier_folder, "--metric", "accuracy", "--calibrate", sentences, *FAST, "--output", table,
        "--plot", plot, "--json",
    )  # fmt: skip
    assert found.code == 0, found.err
    assert json.loads(table.read_text()) == found.json
    assert found.json["metric"] == "accuracy" and len(found.json["one_out"]) == 2 * HEADS
    assert plot.is_file()
    shown = run("ablate", classifier_folder, *FAST)  # drift, on made data
    assert shown.code == 0, shown.err
    assert "change of drift with one head out" in shown.out and "encoder.layer.1.attention.self" in shown.out
    shown = run("importance", classifier_folder, *FAST)
    assert "gauss-newton: how far" in shown.out and "first to go" in shown.out


def test_what_studies_and_pruning_refuse(run: Run, classifier_folder: Path, bert_folder: Path, tmp_path: Path):
    exists = tmp_path / "there.json"
    exists.write_text("{}")
    scores = tmp_path / "scores.json"
    assert run("importance", bert_folder, "--score", "weights", "--output", scores).code == 0
    before = leftovers(tmp_path)
    prune = ("convert", classifier_folder, "--to", "pruned", "--output", tmp_path / "out")
    for arguments, words, code in (
        ((*prune,), ("share of heads to keep",), 1),
        ((*prune, "--keep", 1.5), ("'1.5' is not a number from 0 to 1",), 2),
        ((*prune, "--keep", 0.5, "--score", "gradient"), ("labels are needed", "--calibrate"), 1),
        ((*prune, "--keep", 0.5, "--calibrate", "none"), ("gauss-newton needs data",), 1),
        ((*prune, "--keep", 0.5, "--scores", scores), ("were made for another model",), 1),
        ((*prune, "--keep", 0.5, "--scores", tmp_path / "no.json"), ("cannot read the scores",), 1),
        ((*prune, "--keep", 0.5, "--blocks", "decoder.*"), ("no attention block matches 'decoder.*'",), 1),
        ((*prune, "--keep", 0.5, "--score", "best"), ("invalid choice",), 2),
        ((*prune, "--keep", 0.5, "--rank", 3), ("pruned has no --rank",), 2),
        (("importance", bert_folder, "--score", "best"), ("invalid choice",), 2),
        (("importance", bert_folder, "--output", exists), ("exists; choose another name or pass --overwrite",), 1),
        (("importance", bert_folder, "--plot", tmp_path / "x.gif"), ("x.gif",), 1),
        (("importance", bert_folder, "--normalize"), ("leave out normalize",), 1),
        (("importance", bert_folder, "--output", tmp_path / "no" / "x.json"), ("cannot write into",), 1),
        (("ablate", bert_folder, "--metric", "accuracy"), ("labels are needed",), 1),
        (("ablate", bert_folder, "--calibrate", "none"), ("ablation needs data",), 1),
    ):
        check_refused(run(*arguments), *words, code=code)
    assert leftovers(tmp_path) == before
