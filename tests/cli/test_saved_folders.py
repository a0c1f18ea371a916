"""Folders that transformers saved, with the code of their classes and without a report, are taken by every command."""

from __future__ import annotations

import json
from pathlib import Path

from transformers import AutoModelForMaskedLM, AutoTokenizer

from tests.support.cli import Run, check_refused


def test_commands_take_a_folder_that_was_saved_again(run: Run, bert_folder: Path, tmp_path: Path):
    options = ("--to", "low-rank", "--rank", 8, "--calibrate", "none", "--output", tmp_path / "converted")
    assert run("convert", bert_folder, *options).code == 0
    saved = tmp_path / "saved"
    for kind in (AutoModelForMaskedLM, AutoTokenizer):
        kind.from_pretrained(tmp_path / "converted").save_pretrained(saved)
    assert (saved / "modeling_heads_bert.py").is_file() and not (saved / "heads_report.json").exists()
    shown = [run("inspect", folder, "--json").json for folder in (tmp_path / "converted", saved)]
    assert shown[0]["blocks"] == shown[1]["blocks"]
    check_refused(run("verify", saved), "--against")
    verified = [
        run("verify", folder, "--against", bert_folder, "--json").json for folder in (tmp_path / "converted", saved)
    ]
    assert verified[0]["figures"] == verified[1]["figures"] and verified[1]["failures"] == []
    found = run("compare", bert_folder, saved, "--no-latency", "--no-control", "--drift-samples", 4, "--json")
    assert found.code == 0, found.err
    assert found.json["models"][1]["role"] == "converted"
    healed = ("--data", "random", "--steps", 12, "--samples", 32, "--batch-size", 4, "--output", tmp_path / "healed")
    check_refused(run("distill", saved, *healed), "--teacher")
    assert run("distill", saved, "--teacher", bert_folder, *healed, "--json").code == 0
    entries = json.loads((tmp_path / "healed" / "config.json").read_text())
    assert "not known, the folder came without a report" in (tmp_path / "healed" / "README.md").read_text()
    assert entries["auto_map"]["AutoConfig"] == "modeling_heads_bert.HeadsBertConfig"
