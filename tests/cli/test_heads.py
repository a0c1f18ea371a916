"""Heads with a job from the command line: inspect --heads, --keep-heads, --objective."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.cli import Run, check_refused


def test_inspect_shows_what_heads_look_at(run: Run, bert_folder: Path, tmp_path: Path):
    found = run("inspect", bert_folder, "--heads", "--json")
    assert found.code == 0, found.err
    jobs = found.json
    text = json.dumps(jobs)
    assert "matching" in text and "encoder.layer.0.attention.self" in text
    assert run("inspect", bert_folder, "--heads").code == 0
    pytest.importorskip("matplotlib")
    picture = tmp_path / "h.png"
    assert run("inspect", bert_folder, "--heads", "--plot", picture).code == 0
    assert (tmp_path / "h-matching.png").stat().st_size > 1000
    check_refused(run("inspect", bert_folder, "--heads", "--plot", picture), "h-", "--overwrite")


def test_kept_heads_and_the_objective_stand_in_the_report(run: Run, bert_folder: Path, tmp_path: Path):
    found = run(
        *("convert", bert_folder, "--to", "collab", "--rank", 12, "--calibration-samples", 16, "--json"),
        *("--keep-heads", "encoder.layer.0:1", "--objective", "attention", "--output", tmp_path / "out"),
    )
    assert found.code == 0, found.err
    record = json.loads((tmp_path / "out" / "heads_report.json").read_text())
    assert record["objective"] == "attention" and "encoder.layer.0" in json.dumps(record["kept_heads"])
    assert all(block["divergence"] <= block["divergence_before"] for block in record["blocks"])
    assert run("verify", tmp_path / "out").code == 0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--to", "mhe", "--keep-heads", "encoder.layer.0:1"), "mhe"),
        (("--to", "collab", "--rank", 8, "--keep-heads", "encoder.layer.9:1"), "encoder.layer.9"),
        (("--to", "collab", "--rank", 8, "--keep-heads", "encoder.layer.0:7"), "7"),
        (("--to", "collab", "--rank", 4, "--keep-heads", "encoder.layer.0:1"), "rank"),
        (("--to", "collab", "--rank", 8, "--keep-heads", "watching"), "Jobs: matching, same"),
        (("--to", "collab", "--rank", 8, "--keep-heads", "next"), "no head of the blocks to be converted has the job"),
    ],
)
def test_heads_that_cannot_be_kept(run: Run, bert_folder: Path, tmp_path: Path, more: tuple[str, ...], message: str):
    found = run("convert", bert_folder, *more, "--calibrate", "none", "--output", tmp_path / "out")
    check_refused(found, message)
    assert not (tmp_path / "out").exists()
