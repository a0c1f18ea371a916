"""Several converted models of one original healed in one run: each as if it had been healed alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hf_heads import CollabSpec, HeadsSpec, MheSpec
from hf_heads.core.errors import HeadsError
from hf_heads.core.vocabulary import NONE, RANDOM
from hf_heads.io.checkpoints.sources import resolve_source
from hf_heads.io.data.choice import CalibrationChoice
from hf_heads.jobs.conversion.checkpoint import convert_checkpoint
from hf_heads.jobs.conversion.request import ConversionRequest
from hf_heads.jobs.distillation import several
from hf_heads.jobs.distillation.checkpoint import distill_checkpoint
from hf_heads.jobs.distillation.losses import Matching
from hf_heads.jobs.distillation.settings import DistillSettings
from hf_heads.jobs.distillation.several import distill_checkpoints
from hf_heads.jobs.team import Team
from tests.support.cli import Run
from tests.support.files import save_checkpoint
from tests.support.twins import TWINS

SPECS: dict[str, HeadsSpec] = {"one": CollabSpec(rank=4), "two": MheSpec()}
SETTINGS = DistillSettings(steps=12, batch_size=8, evaluations=2, learning_rate=1e-3)
DATA, SAMPLES = CalibrationChoice(RANDOM), 64
BATCHES = 8  # of a round


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """A folder with a BERT, and `one` and `two` made of it."""
    source = save_checkpoint(TWINS["bert"].model(), tmp_path / "bert")
    for name, spec in SPECS.items():
        convert_checkpoint(ConversionRequest(str(source), spec, calibration=CalibrationChoice(NONE)), tmp_path / name)
    return tmp_path


def together(folder: Path, output: str = "healed", **how: Any) -> Any:
    sources = [resolve_source(str(folder / name)) for name in SPECS]
    return distill_checkpoints(sources, folder / output, SETTINGS, DATA, samples=SAMPLES, **how)


def same(one: Path, other: Path) -> bool:
    here, there = (load_file(folder / "model.safetensors") for folder in (one, other))
    return here.keys() == there.keys() and all(torch.equal(here[name], there[name]) for name in here)


def interrupted(steps: int) -> Callable[[str, int, int], None]:
    """A progress callback by which the user interrupts after so many steps of all runs."""
    seen: list[int] = []

    def progress(what: str, done: int, total: int) -> None:
        seen.extend([done] * (what == "healing"))
        if len(seen) == steps:
            raise KeyboardInterrupt

    return progress


def test_each_is_healed_as_if_it_were_alone_and_the_teacher_is_asked_once(
    folders: Path, monkeypatch: pytest.MonkeyPatch
):
    asked: list[int] = []
    teach = Matching.teach
    monkeypatch.setattr(Matching, "teach", lambda self, batch: asked.append(0) or teach(self, batch))
    found = together(folders)
    first = len(asked)
    assert list(found) == [folders / "healed" / name for name in SPECS]
    for name in SPECS:
        asked.clear()
        source = resolve_source(str(folders / name))
        alone = distill_checkpoint(source, folders / f"{name}-alone", SETTINGS, DATA, samples=SAMPLES)
        assert same(folders / "healed" / name, folders / f"{name}-alone")
        curves = [one.distillation["curve"] for one in (found[folders / "healed" / name], alone)]
        assert len({json.dumps([(point["step"], point["kl"]) for point in curve]) for curve in curves}) == 1
    scales = len(asked) - BATCHES  # batches on which losses are scaled, for every model anew
    assert scales > 0 and first == BATCHES + 2 * scales


def test_an_interrupted_run_leaves_what_is_done_and_goes_on_with_the_rest(folders: Path):
    together(folders, "whole")
    with pytest.raises(HeadsError, match="nothing to resume in"):
        together(folders, resume=True)
    with pytest.raises(KeyboardInterrupt):
        together(folders, progress=interrupted(12 + 8))
    assert (folders / "healed" / "one").is_dir() and not (folders / "healed" / "two").exists()
    with pytest.raises(HeadsError, match="exists"):
        together(folders)
    before = (folders / "healed" / "one" / "heads_report.json").read_bytes()
    found = together(folders, resume=True)
    assert found[folders / "healed" / "one"].distillation["steps"] == 12
    assert (folders / "healed" / "one" / "heads_report.json").read_bytes() == before
    assert all(same(folders / "whole" / name, folders / "healed" / name) for name in SPECS)


def test_what_cannot_be_healed_together_is_refused_before_anything_is_done(folders: Path, run: Run):
    other = save_checkpoint(TWINS["bert"].model(), folders / "another")
    convert_checkpoint(
        ConversionRequest(str(other), MheSpec(), calibration=CalibrationChoice(NONE)), folders / "of-another"
    )
    cases = {
        "one was made from": ("one", "of-another"),
        "two checkpoints would become": ("one", "one"),
        "has no converted attention heads": ("one", "bert"),
    }
    for said, names in cases.items():
        command = ["distill", *(folders / name for name in names), "--data", RANDOM, "--output", folders / "out"]
        found = run(*command, "--teacher", folders / "bert") if "bert" in names else run(*command)
        assert found.code == 1, (said, found.err)
        assert said.replace("one was", "was") in found.err and not (folders / "out").exists()
    found = run("distill", folders / "one", folders / "two", "--data", RANDOM, "--output", folders / "out",
                "--push-to-hub", "me/it")  # fmt: skip
    assert found.code == 2 and "give one" in found.err


def test_one_that_only_gets_worse_does_not_keep_the_others_from_being_healed(
    folders: Path, run: Run, monkeypatch: pytest.MonkeyPatch
):
    command = ["distill", folders / "one", folders / "two", "--data", RANDOM, "--samples", 64, "--batch-size", 8]
    found = run(*command, "--steps", 12, "--learning-rate", 1e-3, "--output", folders / "good", "--json")
    assert found.code == 0, found.err
    models = json.loads(found.out)["models"]
    assert [Path(one["output"]).name for one in models] == ["one", "two"]
    healing = several.distill_checkpoint

    def worse(source: Any, *args: Any, **how: Any) -> Any:
        if source.name == "one":
            raise several.OnlyWorse("healing only made it worse: kl 1 at the start, 2 at best")
        return healing(source, *args, **how)

    monkeypatch.setattr(several, "distill_checkpoint", worse)
    found = run(*command, "--steps", 12, "--learning-rate", 1e-3, "--output", folders / "out")
    assert found.code == 1 and "1 of 2 not healed, the others are" in found.err and "only made it worse" in found.err
    assert not (folders / "out" / "one").exists() and same(folders / "out" / "two", folders / "good" / "two")
    assert str(folders / "out" / "two") in found.out.replace("\n", "")
    again = run(*command, "--steps", 12, "--learning-rate", 1e-3, "--output", folders / "out", "--resume", "--json")
    assert again.code == 1 and [Path(one["output"]).name for one in json.loads(again.out)["models"]] == ["two"]


def test_what_was_done_already_is_shown_by_the_first_of_several_processes_alone(
    folders: Path, monkeypatch: pytest.MonkeyPatch
):
    together(folders)
    for rank in (0, 1):
        monkeypatch.setattr(several, "launched", lambda cpu, rank=rank: Team(rank, 2))
        assert {one.main for one in together(folders, resume=True).values()} == {rank == 0}
