"""The one entry of the scripts: every study can be named, and every table has a command that its study takes."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest
import reproduce
import run
import tables

OPTIONS = argparse.Namespace(data="data", models="models", work="work", device="cpu")


def test_the_list_names_every_study_and_starts_no_torch():
    command = [sys.executable, "-X", "importtime", "scripts/run.py", "--list"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == [*run.COMMANDS, *run.STUDIES]
    assert all(line.endswith((".", ").")) for line in lines)
    assert "torch" not in done.stderr


@pytest.mark.parametrize("name", [*run.COMMANDS, *run.STUDIES])
def test_everything_that_can_be_named_has_help(name: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as left:
        run.main([name, "--help"])
    assert left.value.code == 0
    text = capsys.readouterr().out
    assert run.about(name) in text
    if name in run.STUDIES:
        assert all(option in text for option in ("--seed", "--threads", "--device", "--results"))


@pytest.mark.parametrize("name", reproduce.COMMANDS)
def test_every_table_has_a_command_that_its_study_takes(name: str):
    study, *words = reproduce.command(name, OPTIONS)
    _, parser = run.load(study)
    assert parser.parse_args(words).device == "cpu"


def test_every_table_is_made_of_stored_results_by_a_command():
    assert {*reproduce.COMMANDS, *reproduce.TOGETHER} == set(tables.TABLES)
    assert set(reproduce.TOGETHER.values()) <= set(reproduce.COMMANDS)
    stored = {path.stem for path in Path("scripts/results").glob("*.json")}
    assert {study for study, _ in tables.TABLES.values()} == stored
    for name in tables.TABLES:
        assert any(line.startswith("|---") for line in tables.made(name))


def test_tables_are_filled_between_their_markers_and_nowhere_else():
    text = "a\n<!-- table: ways -->\nold\n<!-- end -->\nb\n"
    filled = tables.filled(text)
    assert filled.startswith("a\n<!-- table: ways -->\n| milliseconds |") and filled.endswith("<!-- end -->\nb\n")
    assert tables.filled(filled) == filled


def test_unknown_names_say_what_there_is(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        run.main(["nothing"])
    assert "mgk_stsb" in capsys.readouterr().err
    assert run.main(["reproduce", "nothing"]) == 2
    assert "heal_vit" in capsys.readouterr().err
    assert run.main(["reproduce", "mhe", "--list", "--data", "my data"]) == 0
    assert "mhe_stsb --data 'my data' --threads 1 --device cpu" in capsys.readouterr().out


def test_results_are_kept_with_their_circumstances(tmp_path: Path):
    assert run.main(["listops", "--count", "5", "--output", str(tmp_path / "l.jsonl"), "--results", str(tmp_path)]) == 0
    from studies.shared.running import save

    options = argparse.Namespace(results=tmp_path, device="cpu", threads=3)
    save("mine", {"rows": []}, options)
    found = json.loads((tmp_path / "mine.json").read_text())
    assert found["rows"] == [] and found["circumstances"]["machine"].endswith(" CPU, 3 threads")
