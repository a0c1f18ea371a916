"""Weights on a shelf: the same numbers to the bit, and pages of files that do not stay in memory."""

from __future__ import annotations

import copy
import errno
import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from hf_heads import CollabSpec, HeadsError, HeadsSpec, MheSpec, PrunedSpec
from hf_heads.io.checkpoints import shelf as shelf_module
from hf_heads.io.checkpoints.pages import give_back, mapped_parts
from hf_heads.io.checkpoints.shelf import Shelf
from hf_heads.io.data.choice import CalibrationChoice
from hf_heads.jobs.conversion import checkpoint
from hf_heads.jobs.conversion.checkpoint import convert_checkpoint
from hf_heads.jobs.conversion.request import ConversionRequest
from tests.support.cli import leftovers
from tests.support.files import save_checkpoint
from tests.support.twins import TWINS

linux = pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="only Linux says which pages are in memory")
SPECS: dict[str, HeadsSpec] = {"collab": CollabSpec(rank=8), "mhe": MheSpec(groups=2), "pruned": PrunedSpec(keep=0.5)}


def converted(request: ConversionRequest, output: Path) -> tuple[dict[str, bytes], dict[str, Any]]:
    """The files of weights and the config of a conversion, and its report without what is not the same."""
    convert_checkpoint(request, output)
    report = json.loads((output / "heads_report.json").read_text())
    files = {path.name: path.read_bytes() for path in output.iterdir() if path.suffix != ".md"}
    report = {**report, "seconds": None, "precision": None}  # of models in memory alone
    return {name: text for name, text in files.items() if name != "heads_report.json"}, report


def on_shelf(monkeypatch: pytest.MonkeyPatch) -> list[Shelf]:
    """Have conversions use a shelf with room for a few pages and no tensors, and say which."""
    shelves: list[Shelf] = []

    def made(output: Path) -> Shelf:
        shelves.append(Shelf(output, room=2**16))
        shelves[-1]._kept = 2**16
        return shelves[-1]

    monkeypatch.setattr(checkpoint, "Shelf", made)
    return shelves


@pytest.mark.parametrize(
    ("twin", "kind", "method", "data", "dtype"),
    [
        ("bert", "float32", "collab", "none", None),
        ("bert", "float32", "collab", "random", None),
        ("bert", "bfloat16", "collab", "random", None),
        pytest.param("bert", "bfloat16", "mhe", "none", None, marks=pytest.mark.full),
        ("bert", "float32", "mhe", "none", "bfloat16"),
        pytest.param("bert", "float16", "mhe", "random", "float32", marks=pytest.mark.full),
        pytest.param("marian", "bfloat16", "collab", "random", None, marks=pytest.mark.full),
        ("vit", "float32", "pruned", "random", None),
    ],
)
def test_what_is_written_is_the_same_with_and_without_a_shelf(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    twin: str,
    kind: str,
    method: str,
    data: str,
    dtype: str | None,
):
    source = save_checkpoint(TWINS[twin].model().to(getattr(torch, kind)), tmp_path / "source")
    choice = CalibrationChoice(data, samples=16) if data != "none" else CalibrationChoice(data)
    request = ConversionRequest(str(source), SPECS[method], calibration=choice, dtype=dtype)
    in_memory = converted(request, tmp_path / "in-memory")
    shelves = on_shelf(monkeypatch)
    assert converted(request, tmp_path / "on-shelf") == in_memory
    assert shelves[0]._count >= 2  # files of blocks
    assert leftovers(tmp_path) == ["in-memory", "on-shelf", "source"]


def test_a_small_model_never_leaves_the_memory(monkeypatch: pytest.MonkeyPatch, bert_folder: Path, tmp_path: Path):
    monkeypatch.setattr(Shelf, "folder", property(lambda _: pytest.fail("a folder was made")))
    request = ConversionRequest(str(bert_folder), SPECS["collab"], calibration=CalibrationChoice(samples=16))
    convert_checkpoint(request, tmp_path / "out")


def test_a_full_disk_leaves_nothing(monkeypatch: pytest.MonkeyPatch, bert_folder: Path, tmp_path: Path):
    on_shelf(monkeypatch)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shelf_module, "save_file", full)
    request = ConversionRequest(str(bert_folder), SPECS["collab"], calibration=CalibrationChoice("none"))
    with pytest.raises(HeadsError, match="the disk is full; nothing was left at"):
        convert_checkpoint(request, tmp_path / "out")
    assert leftovers(tmp_path) == [bert_folder.name]


def mapped(file: Path) -> dict[str, torch.Tensor]:
    with safe_open(file, framework="pt") as handle:
        return {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118


def resident(file: Path) -> int:
    return sum(part.resident for part in mapped_parts({str(file.resolve())}))


@linux
def test_pages_are_given_back_and_read_again(tmp_path: Path):
    file, wanted = tmp_path / "a file.safetensors", torch.randn(2**20)
    save_file({"it": wanted}, file)
    found = mapped(file)["it"]
    assert torch.equal(found, wanted)
    assert resident(file) > 4 * 2**20 - 2**14
    give_back({str(file.resolve())})
    assert resident(file) == 0
    assert torch.equal(found, wanted)


@linux
def test_pages_that_were_written_to_stay(tmp_path: Path):
    file = tmp_path / "it.safetensors"
    save_file({"it": torch.zeros(2**20)}, file)
    found = mapped(file)["it"]
    found[1000] = 1.0
    give_back({str(file.resolve())})
    assert float(found.sum()) == 1.0


@linux
def test_a_model_that_runs_holds_no_more_than_its_room(tmp_path: Path):
    file, room = tmp_path / "model.safetensors", 2**21
    model = nn.Sequential(*(nn.Linear(512, 512) for _ in range(16)))  # of 1 MiB each
    inputs = torch.randn(4, 512)
    wanted = model(inputs)
    save_file(model.state_dict(), file)
    model.load_state_dict(mapped(file), assign=True)
    with Shelf(tmp_path / "out", room) as shelf:
        shelf.add_files([file])
        shelf.watch(model)
        shelf.release()
        seen: list[int] = []
        for part in model:
            part.register_forward_pre_hook(lambda *_: seen.append(resident(file)))
        assert torch.equal(model(inputs), wanted)
    assert max(seen) <= room + 2**20 and seen[-1] > 0


@linux
def test_a_tensor_that_is_larger_than_the_room_is_read_in_parts(tmp_path: Path):
    file, wanted = tmp_path / "it.safetensors", torch.randn(2**23)
    save_file({"it": wanted}, file)
    found = mapped(file)["it"]
    with Shelf(tmp_path / "out", room=2**23) as shelf:
        shelf.add_files([file])
        for part, same in zip(found.split(2**18), wanted.split(2**18), strict=True):
            shelf.read(part)
            assert torch.equal(part, same)
            assert 0 < resident(file) <= 2**23 + 2**22  # the system reads up to 2 MiB ahead


def test_what_is_put_on_a_shelf_is_in_files_and_needs_no_memory(tmp_path: Path):
    model = nn.Linear(64, 64)
    with Shelf(tmp_path / "out", room=0) as shelf:
        shelf.watch(model)
        bias, weight = model.bias, nn.Parameter(torch.randn(64, 64), requires_grad=False)
        wanted = weight.clone()
        model.weight = weight
        shelf.put(model)
        assert model.bias is bias  # it was there
        assert model.weight is not weight and torch.equal(model.weight, wanted) and not model.weight.requires_grad
        before = model.weight
        shelf.put(model)
        assert model.weight is before
        (file,) = shelf.folder.iterdir()
        assert torch.equal(next(iter(load_file(file).values())), wanted)
    assert leftovers(tmp_path) == []


def test_copies_are_watched_with_their_model(tmp_path: Path):
    model = nn.Linear(8, 8)
    with Shelf(tmp_path / "out", room=0) as shelf:
        shelf.watch(model)
        calls: list[int] = []
        shelf.release = partial(calls.append, 1)  # type: ignore[method-assign]
        copy.deepcopy(model)(torch.ones(1, 8))
    assert calls == [1]
