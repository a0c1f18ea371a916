"""Every option that a command takes is used: none is parsed and forgotten."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hf_heads.cli.program import build_parser
from tests.support.whole import whole


class Watched(argparse.Namespace):
    """A namespace that remembers what was asked of it after parsing."""

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("_"):
            asked.add(name)
        return super().__getattribute__(name)


asked: set[str] = set()


def options_of(command: str) -> set[str]:
    """The names under which a command's parsed options are kept."""
    (commands,) = (one for one in build_parser()._actions if isinstance(one, argparse._SubParsersAction))
    return {action.dest for action in commands.choices[command]._actions} - {"help"}


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    """What the commands work on."""
    bert, converted = (Path(shutil.copytree(whole(name), tmp_path / name)) for name in ("bert", "bert-mhe"))
    data, compared = tmp_path / "data.txt", tmp_path / "compared.json"
    data.write_text("".join(f"word{number} word{number + 1} word{number % 7}\n" for number in range(40)))
    return {"SOURCE": bert, "CONVERTED": converted, "DATA": data, "OUT": tmp_path / "out", "RECORD": compared}


CALLS = {
    "convert": "SOURCE --to collab --rank 8 --calibrate none --output OUT",
    "distill": "CONVERTED --data random --samples 40 --steps 2 --batch-size 4 --evaluations 1 --output OUT "
    "--learning-rate 1e-5",
    "importance": "SOURCE --score weights",
    "ablate": "SOURCE --calibration-samples 4 --blocks *layer.0*",
    "compare": "SOURCE CONVERTED --no-latency --no-control --drift-samples 8 --lengths 4 --batches 1 --output RECORD",
    "export": "CONVERTED --native --nearest --calibration-samples 8 --output OUT",
    "inspect": "CONVERTED",
    "verify": "CONVERTED --data DATA --calibration-samples 8",
    "report": "RECORD --output OUT",
    "list": "",
    "recipes": "",
    "completion": "bash",
    "recommend": "SOURCE --calibration-samples 8",
}


def test_every_command_is_called_below():
    (commands,) = (one for one in build_parser()._actions if isinstance(one, argparse._SubParsersAction))
    assert set(commands.choices) == set(CALLS)


@pytest.mark.parametrize("command", CALLS)
def test_every_option_is_asked_for(
    command: str, folders: dict[str, Path], capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
):
    def call(name: str) -> set[str]:
        words = [str(folders.get(word, word)) for word in CALLS[name].split()]
        parser = build_parser()
        options = parser.parse_args([name, *words], Watched())
        asked.clear()
        assert options.run(options, parser) == 0, capsys.readouterr()
        return set(asked)

    if command == "report":
        call("compare")
    assert options_of(command) <= call(command) | {"private"}  # --private is read where --push-to-hub is given


def test_a_label_is_never_read_as_an_input(run: Callable[..., Any], folders: dict[str, Path], tmp_path: Path):
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps({"text": f"word{i} word3", "mood": "word90 word91"}) + "\n" for i in range(30)))
    command = ("verify", folders["CONVERTED"], "--json", "--data", data)
    found, without, text = run(*command, "--label", "mood"), run(*command), run(*command, "--columns", "text")
    assert found.code == 0, found.err
    assert found.json["figures"] == text.json["figures"] != without.json["figures"]
    wrong = run(*command, "--label", "moods")
    assert wrong.code == 1 and "no column 'moods'" in wrong.err
    wrong = run("verify", folders["CONVERTED"], "--label", "mood")
    assert wrong.code == 1 and "label says what to read of a data set" in wrong.err


def test_verify_wants_inputs(run: Callable[..., Any], folders: dict[str, Path]):
    found = run("verify", folders["CONVERTED"], "--data", "none")
    assert found.code == 1 and "name data with --data SRC, or leave it out for random ones" in found.err
