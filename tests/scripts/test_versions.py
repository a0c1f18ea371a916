"""The script that has two versions of transformers read each other's checkpoints: what it calls the same."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
import torch
import versions
from safetensors.torch import load_file, save_file

FOUND = {"old": "5.20.2", "new": "5.24.0"}


def test_the_lowest_version_is_that_of_pyproject():
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    assert f"transformers>={versions.lowest().removesuffix('.*')},<6" in project["dependencies"]
    assert versions.same_version("5.20.2", versions.lowest()) and versions.same_version("5.20.2", "5.20.2")
    assert not versions.same_version("5.24.0", "5.20.*") and not versions.same_version("5.20.10", "5.20.1")


def test_a_python_without_the_wanted_version_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    import run

    monkeypatch.setattr(versions, "call", lambda python, *words: "5.24.0")
    words = ["versions", "--old", "5.20.2", "--python", "python", "--work", str(tmp_path)]
    assert run.main(words) == 2
    assert "wanted 5.20.2" in capsys.readouterr().out


def cases(folder: Path) -> Path:
    """What two readers leave behind that agree on everything, with the outputs that are stored."""
    digests = {}
    for stored in sorted((versions.FORMAT_1 / "outputs").glob("*.safetensors")):
        host, _, name = stored.stem.partition("-")
        outputs = {key: tensor for key, tensor in load_file(stored).items() if key in ("eager", "sdpa")}
        for writer in ("old", "new", "stored"):
            digests[f"{writer}/{host}/{name}"] = "same"
            (place := folder / writer / host / f"{name}.outputs").mkdir(parents=True)
            for reader in FOUND:
                save_file(outputs, place / f"{reader}.safetensors")
    for reader in FOUND:
        (folder / f"{reader}.json").write_text(json.dumps(digests))
    return folder


def test_what_is_the_same_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert versions.report(cases(tmp_path), FOUND) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "transformers 5.20.2 and 5.24.0"
    assert lines[3] == (
        "written by format 1: 24 read by both, weights the same bits in 24, outputs in 24, largest difference 0.0e+00"
    )


@pytest.mark.parametrize("writer", ["old", "new", "stored"])
@pytest.mark.parametrize("what", ["weights", "outputs", "shapes", "missing"])
def test_what_differs_fails(tmp_path: Path, writer: str, what: str):
    cases(tmp_path)
    digests = json.loads((tmp_path / "old.json").read_text())
    file = tmp_path / writer / "vit" / "mhe.outputs" / "old.safetensors"
    if what == "weights":
        digests[f"{writer}/vit/mhe"] = "other"
        (tmp_path / "old.json").write_text(json.dumps(digests))
    elif what == "missing":
        del digests[f"{writer}/vit/mhe"]
        for reader in FOUND:
            (tmp_path / f"{reader}.json").write_text(json.dumps(digests))
    else:
        outputs = load_file(file)
        outputs["sdpa"] = outputs["sdpa"] + 1e-4 if what == "outputs" else torch.zeros(1)
        save_file(outputs, file)
    assert versions.report(tmp_path, FOUND) == 1
