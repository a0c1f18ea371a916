"""The folder in which healing keeps its checkpoints: nobody else's, one run's at a time, resumed or started anew."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from hf_heads.core.errors import HeadsError
from hf_heads.jobs.distillation.work import Work
from tests.support.cli import leftovers

ASKED = {"settings": {"seed": 0}, "data": {"source": "random"}, "teacher": None}


@pytest.fixture
def work(tmp_path: Path) -> Work:
    return Work(tmp_path / "out", ASKED)


def save(work: Work, step: int, state: str = "{}") -> Path:
    folder = work.path / f"checkpoint-{step}"
    folder.mkdir()
    (folder / "model.safetensors").write_text("")
    (folder / "trainer_state.json").write_text(state)
    return folder


def test_a_run_that_ends_well_leaves_nothing(work: Work, tmp_path: Path):
    with work.held():
        work.start()
        save(work, 5)
        assert leftovers(tmp_path) == [".out.training"]  # hidden, and by its name no folder that a user makes
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, HeadsError])
def test_a_run_that_fails_can_be_resumed_where_there_is_a_checkpoint(error: type, work: Work, tmp_path: Path):
    with pytest.raises(error), work.held():
        work.start()
        raise error("stopped")
    assert leftovers(tmp_path) == []
    with pytest.raises(error) as raised, work.held():
        work.start()
        save(work, 5)
        save(work, 10)
        raise error("stopped")
    assert error is not KeyboardInterrupt or "--resume" in str(raised.value)
    assert work.resumed().name == "checkpoint-10"
    with pytest.raises(HeadsError, match="pass --resume to go on with it, or --overwrite"):
        work.check_unused(overwrite=False)
    work.check_unused(overwrite=True)
    with pytest.raises(HeadsError, match="had seed 0, not 1"):
        Work(work.output, {**ASKED, "settings": {"seed": 1}}).resumed()


@pytest.mark.parametrize("missing", ["trainer_state.json", "model.safetensors", "half of the state"])
def test_a_run_killed_in_its_first_checkpoint_is_started_anew(missing: str, work: Work):
    work.path.mkdir()
    work.start()
    folder = save(work, 5)
    if missing == "half of the state":
        (folder / "trainer_state.json").write_text('{"best')
    else:
        (folder / missing).unlink()
    work.check_unused(overwrite=False)
    with pytest.raises(HeadsError, match="nothing to resume"):
        work.resumed()
    save(work, 3)
    assert work.resumed().name == "checkpoint-3"  # a later one that is not complete is passed over


def test_two_runs_do_not_share_a_folder(work: Work, tmp_path: Path):
    with work.held():
        work.start()
        with pytest.raises(HeadsError, match="another run is at work on"), Work(work.output, ASKED).held():
            pass
        assert json.loads((work.path / "asked.json").read_text()) == ASKED


def test_what_others_have_put_there_is_left_alone(work: Work):
    work.path.mkdir()
    work.check_unused(overwrite=False)
    (work.path / "notes.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(HeadsError, match=r"holds 'notes.txt', which hf-heads did not write"):
            work.check_unused(overwrite)
    (work.path / "notes.txt").unlink()
    work.path.rmdir()
    os.mkfifo(work.path)
    with pytest.raises(HeadsError, match="is in the way"):
        work.check_unused(overwrite=True)
