"""What a user reads when something cannot be used: one line, no traceback, nothing that steers the terminal."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from rich.console import Console

import hf_heads
from hf_heads.cli import console
from hf_heads.core.errors import HeadsError, HeadsWarning
from hf_heads.core.vocabulary import printable
from hf_heads.io.checkpoints.weights import Weights
from hf_heads.io.data.reading import Table
from tests.support.cli import Run, check_refused
from tests.support.files import write_rows
from tests.support.twins import TWINS
from tests.support.whole import whole

NONE = ("--to", "mhe", "--calibrate", "none")


def call(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hf_heads.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output="stdout" not in options, text=True, **options)


@pytest.mark.parametrize("program", ["import runpy; runpy.run_module('hf_heads.cli', run_name='__main__')", "console"])
def test_an_interrupt_during_imports_is_one_line(program: str, tmp_path: Path):
    script = (
        "import builtins, sys\n"
        "real = builtins.__import__\n"
        "def late(name, *rest, **more):\n"
        "    if name.startswith('hf_heads.jobs.conversion'): raise KeyboardInterrupt\n"
        "    return real(name, *rest, **more)\n"
        "builtins.__import__ = late\n"
    )
    script += "from hf_heads.cli import main; sys.exit(main())" if program == "console" else program
    found = subprocess.run([sys.executable, "-c", script, "list"], capture_output=True, text=True)
    assert (found.returncode, found.stderr) == (130, "hf-heads: interrupted; nothing was written\n")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_full_standard_output_is_said():
    with open("/dev/full", "w") as full:
        found = call("list", "--json", stdout=full, stderr=subprocess.PIPE)
    assert (found.returncode, found.stderr) == (1, "hf-heads: error: cannot print: No space left on device\n")


def test_a_reader_who_goes_away_hears_nothing():
    reading, writing = os.pipe()
    os.close(reading)
    found = call("list", "--json", stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert (found.returncode, found.stderr) == (1, "")


def test_a_name_that_is_too_long_is_no_surprise(run: Run, bert_folder: Path, tmp_path: Path):
    long = "x" * 300
    check_refused(run("convert", bert_folder, *NONE, "--output", tmp_path / long), "is too long for a name")
    check_refused(run("inspect", tmp_path / long), "File name too long")


def test_a_file_that_may_not_be_read_is_not_called_missing(bert_folder: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*arguments: object, **options: object) -> None:
        raise FileNotFoundError("No such file or directory")

    monkeypatch.setattr("hf_heads.io.checkpoints.weights.safe_open", refuse)
    with pytest.raises(HeadsError, match=r"model.safetensors in '.*' cannot be read: permission denied"):
        Weights(bert_folder)


def test_control_characters_do_not_reach_the_terminal(run: Run, bert_folder: Path, tmp_path: Path):
    name = "a\x1b[31m\x07b"
    found = run("inspect", tmp_path / name)
    assert found.code == 1 and "\x1b" not in found.err and "a\\x1b[31m\\x07b" in found.err
    assert printable("é 漢\n\t\u202e\x9b") == "é 漢\n\t\\u202e\\x9b"
    found = run("convert", bert_folder, *NONE, "--output", tmp_path / name)
    assert found.code == 0 and "\x1b" not in found.out + found.err


@pytest.mark.parametrize(
    "wrong", [("--rank", "\x1b[31m1\nx"), ("--to", "\x1b]0;a\x07"), ("\x1b[2J", "b\u202ec")], ids=repr
)
def test_wrong_arguments_are_shown_without_what_steers_the_terminal(run: Run, wrong: tuple[str, str]):
    found = run("convert", "here", *wrong)
    assert found.code == 2 and found.err.count("hf-heads") >= 2
    assert not set(found.err) & set("\x1b\x07\u202e") and "\\x" in found.err.splitlines()[-1] + "\\x" * (
        "\u202e" in wrong[1]
    )


def test_progress_and_warnings_show_names_without_what_steers_the_terminal(monkeypatch: pytest.MonkeyPatch):
    screen = io.StringIO()
    monkeypatch.setattr(console, "Console", partial(Console, file=screen, force_terminal=True, width=80))
    with console.progress_bar(True) as report:
        assert report is not None
        report("timing \x1b]0;gone\x07 [red]name[/red]\nnext", 1, 2)
    text = screen.getvalue()
    assert "\x1b]0;" not in text and "\x07" not in text
    assert "timing \\x1b]0;gone\\x07 [red]name[/red]\\nnext" in text
    assert str(HeadsWarning("a\x1bb\nc")) == "a\\x1bb\\nc" and len(str(HeadsError("x" * 9999))) < 1010


@pytest.mark.parametrize("part", ["encoder", "decoder"])
@pytest.mark.parametrize("method", [None, "mhe"])
def test_a_part_of_a_model_is_refused_as_such(run: Run, tmp_path: Path, part: str, method: str | None):
    model = TWINS["marian"].model()
    if method:
        model, _ = hf_heads.convert(model, hf_heads.MheSpec(), calibration="none")
    folder = tmp_path / "part"
    model.get_submodule(f"model.{part}").save_pretrained(folder)
    for call in (("inspect", folder), ("convert", folder, *NONE), ("verify", folder, "--against", folder)):
        words = f"holds a Marian{part.capitalize()} alone, the {part} of a model: give the folder of the whole model"
        check_refused(run(*call), words)


def test_texts_beyond_the_positions_are_cut(run: Run, bert_folder: Path, tmp_path: Path):
    rows = [{"text": " ".join(f"word{(row + place) % 90}" for place in range(70))} for row in range(20)]
    data = write_rows(tmp_path / "long.jsonl", rows)
    found = run("convert", bert_folder, "--to", "mhe", "--calibrate", data, "--output", tmp_path / "out")
    assert found.code == 0, found.err


def test_a_column_of_mixed_types_is_refused_by_name():
    table = Table("mixed", [{"text": "a"}, {"text": None}, {"text": 3}], ["text"], {})
    with pytest.raises(HeadsError, match="column 'text' of 'mixed' holds text in some rows and int in others"):
        table.of_kind("text", None)


def test_nested_columns_can_be_named(run: Run, bert_folder: Path, tmp_path: Path):
    rows = [{"translation": {"en": f"word{row} word1", "de": f"word{row + 1}"}} for row in range(40)]
    data = write_rows(tmp_path / "nested.jsonl", rows)
    options = ("convert", bert_folder, "--to", "mhe", "--calibrate", data, "--calibration-samples", 16)
    options = (*options, "--output", tmp_path / "out")
    found = run(*options, "--columns", "translation.en", "--json")
    assert found.code == 0 and "(translation.en)" in found.json["calibration"], found.err
    check_refused(run(*options, "--columns", "translation.fr", "--overwrite"), "no 'fr' in it", "en, de")
    check_refused(run(*options, "--columns", "translations.fr", "--overwrite"), "no column 'translations.fr'")


@pytest.mark.parametrize(
    ("source", "options", "wanted"),
    [
        ("nyu-mll/glue", ("--subset", "sst2"), ("nyu-mll/glue", "sst2", "train")),
        ("nyu-mll/glue:validation", ("--subset", "sst2"), ("nyu-mll/glue", "sst2", "validation")),
        ("nyu-mll/glue:sst2:test", (), ("nyu-mll/glue", "sst2", "test")),
        ("imdb:test", (), ("imdb", None, "test")),
        ("imdb", (), ("imdb", None, "train")),
    ],
)
def test_data_sets_of_the_hub_have_subsets_and_splits(
    run: Run,
    bert_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    source: str,
    options: tuple,
    wanted: tuple,
):
    import datasets

    asked = []

    def load(name: str, subset: str | None, *, split: str, streaming: bool) -> None:
        asked.append((name, subset, split))
        raise ValueError("seen")

    monkeypatch.setattr(datasets, "load_dataset", load)
    call = ("convert", bert_folder, "--to", "mhe", "--calibrate", source, *options, "--output", tmp_path / "out")
    check_refused(run(*call), "seen")
    assert asked == [wanted]


@pytest.mark.parametrize(
    "change",
    [
        {"source": 3},
        {"revision": []},
        {"drift": 1},
        {"drift": {"random": 2}},
        {"drift": {"random": {"cosine": "x"}}},
        {"distillation": "x"},
        {"blocks": {}},
        {"precision": {"bfloat16": {"converted": "x", "original": 1}}},
        {"precision": {"bfloat16": {"converted": 1}}},
    ],
    ids=str,
)
def test_a_report_of_wrong_types_is_refused(run: Run, tmp_path: Path, change: dict):
    _, output = (Path(shutil.copytree(whole(name), tmp_path / name)) for name in ("bert", "bert-mhe"))
    report = output / "heads_report.json"
    report.write_text(json.dumps({**json.loads(report.read_text()), **change}))
    check_refused(run("verify", output), "heads_report.json", "is damaged", next(iter(change)))
