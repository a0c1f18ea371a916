"""Lengths and pairs from the command line to the report: convert, verify, compare, distill."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer, BertForSequenceClassification, BertTokenizer

from hf_heads.cli import main
from tests.support.cli import Run
from tests.support.files import write_rows
from tests.support.labelled import words
from tests.support.tokenizers import save_tokenizer
from tests.support.twins import bert_config, randomize


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of pairs with 512 positions."""
    folder = tmp_path_factory.mktemp("lengths") / "classifier"
    config = bert_config()
    config.max_position_embeddings = 512
    model = BertForSequenceClassification(config)
    randomize(model)
    model.save_pretrained(folder)
    save_tokenizer(folder)
    BertTokenizer(vocab=AutoTokenizer.from_pretrained(folder).get_vocab()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Pairs with labels, and single texts."""
    folder = tmp_path_factory.mktemp("data")
    numbers = range(400)
    pairs = [{"one": words(1, n % 50), "two": words(n % 40, 3), "label": n % 2} for n in numbers]
    texts = [{"text": words(*(one % 80 for one in range(n, n + 5 + n % 7)))} for n in numbers]
    return write_rows(folder / "pairs.jsonl", pairs), write_rows(folder / "texts.jsonl", texts)


@pytest.fixture(scope="module")
def converted(classifier: Path, data: tuple[Path, Path]) -> Path:
    output = classifier.parent / "converted"
    arguments = ["convert", str(classifier), "--to", "collab", "--rank", "8", "--output", str(output)]
    arguments += ["--calibration-samples", "64", "--calibrate", str(data[0]), "--calibrate", str(data[1])]
    assert main(arguments) == 0
    return output


def test_the_report_says_how_texts_were_read_and_the_lowest_cosine(converted: Path):
    record = json.loads((converted / "heads_report.json").read_text())
    assert "pairs, as BertForSequenceClassification takes them" in record["calibration"]
    assert "32 examples of texts.jsonl (text)" in record["calibration"]
    names = {"random", "held-out"}
    longer = {f"{name} of {length} tokens" for name in names for length in (128, 512)}
    assert record["drift"].keys() == {*names, *longer, "held-out of 16 tokens"}
    assert record["calibration_choice"]["source"] == ["pairs.jsonl", "texts.jsonl"]
    lowest = min(row["cosine"] for row in record["drift"].values())
    assert f"The lowest cosine to the original's outputs is **{lowest:.4f}**" in (converted / "README.md").read_text()


def test_verify_and_compare_measure_by_length(run: Run, converted: Path, classifier: Path, data: tuple[Path, Path]):
    record = json.loads((converted / "heads_report.json").read_text())
    found = run("verify", converted, "--json")
    assert found.code == 0, found.err
    for length in (128, 512):
        recorded = record["drift"][f"random of {length} tokens"]["cosine"]
        assert found.json["figures"][f"cosine of {length} tokens"] == pytest.approx(recorded, abs=1e-5)
    worst = min(found.json["figures"][name] for name in ("cosine", "cosine of 128 tokens", "cosine of 512 tokens"))
    best = max(found.json["figures"][name] for name in ("cosine", "cosine of 128 tokens", "cosine of 512 tokens"))
    failed = run("verify", converted, "--min-cosine", (worst + best) / 2, "--json")
    assert failed.code == 1 and len(failed.json["failures"]) in (1, 2)
    compared = run(
        *("compare", classifier, converted, "--data", data[0], "--label", "label", "--no-latency", "--no-control"),
        *("--drift-samples", 24, "--samples", 24, "--json"),
    )
    assert compared.code == 0, compared.err
    assert compared.json["models"][1]["cosine_by_length"].keys() == {"16", "128"}


def test_single_texts_and_pairs_differ_where_somebody_says_so(run: Run, classifier: Path, data: tuple[Path, Path]):
    common = ("convert", classifier, "--to", "mhe", "--calibrate", data[0], "--calibration-samples", 32)
    single = run(*common, "--no-pairs", "--no-pack", "--max-length", 32, "--output", classifier.parent / "s", "--json")
    assert single.code == 0, single.err
    assert "single texts, as asked" in single.json["calibration"] and "4 tokens" in single.json["calibration"]
    refused = run(
        *("convert", classifier, "--to", "collab", "--rank", 8, "--calibrate", data[1], "--pairs", "--json"),
        *("--output", classifier.parent / "r"),
    )
    assert refused.code == 1 and "has 1 text column; name one, or two for pairs" in refused.err
    assert not (classifier.parent / "r").exists()


def test_healing_sees_pairs_and_lengths(run: Run, converted: Path, data: tuple[Path, Path], tmp_path: Path):
    found = run(
        *("distill", converted, "--data", data[0], "--steps", 8, "--batch-size", 8, "--learning-rate", 1e-3),
        *("--warmup", 1, "--evaluations", 4, "--device", "cpu", "--output", tmp_path / "healed", "--json"),
    )
    assert found.code == 0, found.err
    said = found.json["distillation"]["data"]
    assert "pairs, as BertForSequenceClassification takes them" in said and "mixed lengths" in said
    assert "random of 512 tokens" in found.json["drift"]
