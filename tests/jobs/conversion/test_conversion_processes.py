"""Several processes convert as one does: they share blocks where they can, and batches where blocks wait."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModel

from hf_heads.cli import main
from tests.support.files import save_checkpoint
from tests.support.processes import forked
from tests.support.tokenizers import save_image_processor, save_marian_tokenizer, save_tokenizer
from tests.support.twins import TWINS


def tensors(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("data", "method"),
    [("none", "collab --rank 16"), ("random", "collab --rank 16"), ("random", "pruned --keep 0.5")],
)
def test_two_processes_write_what_one_does(data: str, method: str, bert_folder: Path, tmp_path: Path):
    def arguments(output: str) -> list[str]:
        words = ["convert", str(bert_folder), "--to", *method.split(), "--calibration-samples", "32"]
        return [*words, "--calibrate", data, "--inputs", "original", "--output", str(tmp_path / output)]

    assert main(arguments("one")) == 0
    (tmp_path / "logs").mkdir()
    forked(2, arguments("two"), tmp_path / "logs")
    one, two = (tensors(tmp_path / name) for name in ("one", "two"))
    assert same(one, two)
    reports = [json.loads((tmp_path / name / "heads_report.json").read_text()) for name in ("one", "two")]
    assert {**reports[0], "seconds": 0} == {**reports[1], "seconds": 0}  # what is measured is shared too
    assert sorted(path.name for path in tmp_path.iterdir()) == ["logs", "one", bert_folder.name, "two"]


CASES = {  # the twin, and settings of which each way through a block has some
    "collab": ("vit", "collab --rank 12"),
    "collab by energy": ("bert", "collab --energy 0.9"),
    "low-rank, allocated": ("vit", "low-rank --rank 8 --allocate"),
    "pruned": ("bert", "pruned --keep 0.5"),
    "mhe": ("vit", "mhe --groups 2"),
    "mhe, also across": ("marian", "mhe --groups 2"),
    "merge": ("bert", "mgk --merge 2"),
}
SAVERS = {"bert": save_tokenizer, "vit": save_image_processor, "marian": save_marian_tokenizer}


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=pytest.mark.full if "across" in case else ()) for case in CASES]
)
def test_three_processes_find_what_one_does_on_converted_inputs(case: str, tmp_path: Path):
    """To rounding, since they add in another order, of which descents make more from block to block."""
    kind, settings = CASES[case]
    source = save_checkpoint(TWINS[kind].model(), tmp_path / kind, SAVERS[kind])

    def arguments(output: str) -> list[str]:
        words = ["convert", str(source), "--to", *settings.split(), "--calibration-samples", "200"]
        return [*words, "--output", str(tmp_path / output)]

    assert main(arguments("one")) == 0
    (tmp_path / "logs").mkdir()
    forked(3, arguments("three"), tmp_path / "logs")
    reports = [json.loads((tmp_path / name / "heads_report.json").read_text()) for name in ("one", "three")]
    for index, (before, after) in enumerate(zip(*(report["blocks"] for report in reports), strict=True)):
        numbers = {name: value for name, value in before.items() if isinstance(value, float)}
        assert {name: after[name] for name in numbers} == pytest.approx(numbers, rel=0.05 if index else 1e-3)
        assert {**after, **numbers} == before
    gains = [block["divergence"] < block["divergence_before"] for block in reports[0]["blocks"] if block["divergence"]]
    assert any(gains) or case not in ("collab", "low-rank, allocated", "mhe, also across")
    found = [AutoModel.from_pretrained(tmp_path / name).eval() for name in ("one", "three")]
    with torch.no_grad():
        one, three = (model(**TWINS[kind].inputs())[0] for model in found)
    assert (three - one).norm() < 5e-3 * one.norm()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["logs", "one", kind, "three"])


def test_processes_go_on_together_where_a_conversion_has_ended(bert_folder: Path, tmp_path: Path):
    def arguments(output: str) -> list[str]:
        words = ["convert", str(bert_folder), "--to", "collab", "--rank", "16", "--calibration-samples", "64"]
        return [*words, "--cache", str(tmp_path / "cache"), "--output", str(tmp_path / output)]

    (tmp_path / "logs").mkdir()
    forked(2, arguments("two"), tmp_path / "logs")
    (last,) = (tmp_path / "cache").rglob("encoder.layer.1*.json")
    kept = last.read_text()
    last.unlink()
    assert main(arguments("one")) == 0  # blocks of several processes serve one
    last.write_text(kept)
    forked(2, arguments("again"), tmp_path / "logs")
    two, one, again = (tensors(tmp_path / name) for name in ("two", "one", "again"))
    assert same(two, again)
    first = [name for name in two if "layer.0.attention" in name]
    assert first and all(torch.equal(two[name], one[name]) for name in first)
