"""What `verify` notices: every bit of the tensors that were written."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from hf_heads.core.errors import HeadsWarning
from hf_heads.jobs.evaluation.verify import compare_digests
from tests.support.cli import Run


def tensor_bytes(file: Path, inside: bool) -> list[range]:
    """The places in a file of the tensors inside, or outside, of the attention."""
    size = int.from_bytes(file.read_bytes()[:8], "little")
    header = json.loads(file.read_bytes()[8 : 8 + size])
    found: list[range] = []
    for name, entry in header.items():
        if name != "__metadata__" and (".attention." in name) == inside:
            start, end = entry["data_offsets"]
            found.append(range(8 + size + start, 8 + size + end))
    return found


@pytest.fixture
def converted(run: Run, bert_folder: Path, tmp_path: Path) -> Path:
    options = ("--to", "collab", "--rank", 10, "--calibrate", "none", "--output", tmp_path / "out")
    assert run("convert", bert_folder, *options).code == 0
    return tmp_path / "out"


@pytest.mark.parametrize("flips", [20, pytest.param(500, marks=pytest.mark.full)])
@pytest.mark.parametrize("inside", [True, False], ids=["attention", "outside"])
def test_every_flipped_bit_is_noticed(converted: Path, inside: bool, flips: int):
    file, chosen = converted / "model.safetensors", random.Random(0)
    whole, places = file.read_bytes(), tensor_bytes(file, inside)
    written: Any = json.loads((converted / "heads_report.json").read_text())["sha256"]
    with safe_open(file, "pt") as handle:
        assert set(handle.keys()) == set(written)
    assert compare_digests(converted, written) == []
    for _ in range(flips):
        place = chosen.choice(chosen.choice(places))
        damaged = bytearray(whole)
        damaged[place] ^= 1 << chosen.randrange(8)
        file.write_bytes(damaged)
        (failure,) = compare_digests(converted, written)
        assert failure.startswith("1 tensors are not those that were written")


@pytest.mark.parametrize("inside", [True, False], ids=["attention", "outside"])
def test_the_command_notices_the_lowest_bit(converted: Path, run: Run, inside: bool):
    assert run("verify", converted).code == 0
    file = converted / "model.safetensors"
    damaged = bytearray(file.read_bytes())
    damaged[tensor_bytes(file, inside)[0][0]] ^= 1
    file.write_bytes(damaged)
    found = run("verify", converted, "--json")
    assert found.code == 1 and "not those that were written" in found.json["failures"][0]


def test_a_report_without_digests_is_checked_by_outputs_and_says_so(converted: Path, run: Run):
    report = json.loads((converted / "heads_report.json").read_text())
    del report["sha256"]
    (converted / "heads_report.json").write_text(json.dumps(report))
    with pytest.warns(HeadsWarning, match="no sha256"):
        assert run("verify", converted).code == 0
