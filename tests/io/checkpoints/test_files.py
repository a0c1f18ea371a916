"""Folders and files appear when they are complete, whatever happens; what is not ours stays."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hf_heads.core.errors import HeadsError
from hf_heads.io.checkpoints import files, hidden, renames
from hf_heads.io.checkpoints.files import Place, check_apart, check_file, check_output, finished_folder, write_file
from tests.support.cli import leftovers

FORK = multiprocessing.get_context("fork")


def make_checkpoint(folder: Path, text: str = "old") -> Path:
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "README.md", "tokenizer.json"):
        (folder / name).write_text(text)
    return folder


def write(place: Place, text: str = "new") -> None:
    with finished_folder(place) as partial:
        (partial / "config.json").write_text(text)


def killed_at(step: str, work: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run in a process of its own that is killed when it has come to a function of `files`."""

    def die(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    with monkeypatch.context() as patch:
        patch.setattr(files, step, die)
        child = FORK.Process(target=work)
        child.start()
        child.join()
    assert child.exitcode == -signal.SIGKILL


@pytest.fixture(params=[True, False], ids=["exchanged", "renamed twice"])
def swap(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With and without a system that exchanges names."""
    if not request.param:
        monkeypatch.setattr(renames, "_renameat2", lambda: None)


@pytest.mark.usefixtures("swap")
def test_a_replaced_folder_leaves_nothing_behind(tmp_path: Path):
    out = make_checkpoint(tmp_path / "out")
    write(check_output(out, True))
    assert leftovers(tmp_path) == ["out"] and leftovers(out) == ["config.json"]


@pytest.mark.usefixtures("swap")
@pytest.mark.parametrize("step", ["_open_to_readers", "_put", "_check_strange", "exchange", "remove"])
def test_a_kill_at_any_step_leaves_the_old_or_the_new_and_the_next_run_clears(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    out = make_checkpoint(tmp_path / "out")
    if step == "remove" and renames._renameat2() is not None:
        pytest.skip("nothing is removed where names are exchanged")
    place = check_output(out, True)
    killed_at(step, lambda: write(place), monkeypatch)
    check_output(out, True)
    assert leftovers(tmp_path) == ["out"]
    assert (out / "config.json").read_text() in ("old", "new")


def test_a_kill_between_two_renames_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    out = make_checkpoint(tmp_path / "out")
    place = check_output(out, True)

    def work() -> None:
        def die(path: Path, target: Path) -> None:
            os.rename(path, target)
            os.kill(os.getpid(), signal.SIGKILL)

        monkeypatch.setattr(renames, "_renameat2", lambda: None)
        monkeypatch.setattr(Path, "rename", die)
        write(place)

    child = FORK.Process(target=work)
    child.start()
    child.join()
    assert not out.exists()
    with pytest.raises(HeadsError, match="exists"):
        check_output(out, False)
    assert leftovers(tmp_path) == ["out"] and (out / "config.json").read_text() == "old"


def test_what_a_running_process_writes_is_not_cleared(tmp_path: Path):
    out, started = tmp_path / "out", FORK.Event()

    def work() -> None:
        with finished_folder(check_output(out, False)) as partial:
            (partial / "config.json").write_text("new")
            started.set()
            time.sleep(60)

    child = FORK.Process(target=work)
    child.start()
    assert started.wait(20)
    check_output(out, False)
    assert len(leftovers(tmp_path)) == 1
    child.kill()
    child.join()
    check_output(out, False)
    assert leftovers(tmp_path) == []


def test_names_like_ours_that_are_not_are_left_alone(tmp_path: Path):
    others = [".out.partial-mine", ".out.old", "out.partial-12345678", ".other.partial-12345678"]
    for name in others:
        (tmp_path / name).mkdir()
    os.mkfifo(tmp_path / ".out.partial-00000000")
    check_output(tmp_path / "out", False)
    assert set(others) <= set(leftovers(tmp_path))


def test_an_error_or_an_interrupt_leaves_nothing(tmp_path: Path):
    out = make_checkpoint(tmp_path / "out")
    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error), finished_folder(check_output(out, True)) as partial:
            (partial / "config.json").write_text("half")
            raise error
    assert leftovers(tmp_path) == ["out"] and (out / "config.json").read_text() == "old"


@pytest.mark.parametrize("name", ["notes.txt", ".env", "train.py", "pytorch_model.bin", "runs/events", "link"])
def test_a_folder_with_other_files_is_not_overwritten(name: str, tmp_path: Path):
    out = make_checkpoint(tmp_path / "out")
    (out / name).parent.mkdir(exist_ok=True)
    if name == "link":
        (out / name).symlink_to(tmp_path)
    else:
        (out / name).write_text("mine")
    with pytest.raises(HeadsError, match=f"holds '{name}', which hf-heads did not write"):
        check_output(out, True)


def test_a_folder_that_is_no_checkpoint_is_not_overwritten(tmp_path: Path):
    (tmp_path / "out").mkdir()
    check_output(tmp_path / "out", True)  # nothing to lose
    (tmp_path / "out" / "README.md").write_text("mine")
    with pytest.raises(HeadsError, match=r"holds 'README.md'"):
        check_output(tmp_path / "out", True)


def test_the_working_directory_and_what_holds_it_are_not_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    out = make_checkpoint(tmp_path / "out")
    (out / "1_Pooling").mkdir()
    for place in (out, out / "1_Pooling"):
        monkeypatch.chdir(place)
        for given in (out, Path(os.path.relpath(out))):
            with pytest.raises(HeadsError, match="working directory"):
                check_output(given, True)


def test_an_output_and_a_source_lie_apart(tmp_path: Path):
    source = make_checkpoint(tmp_path / "a")
    (tmp_path / "link").symlink_to(source)
    for output, words in (
        (source, "is the source"),
        (tmp_path / "link", "is the source"),
        (tmp_path, "holds the source"),
        (source / "out", "lies in the source"),
        (tmp_path / "link" / "b" / "c", "lies in the source"),
    ):
        with pytest.raises(HeadsError, match=words):
            check_apart(output, source, "source")
    check_apart(tmp_path / "ab", source, "source")


@pytest.mark.usefixtures("swap")
@pytest.mark.parametrize("appeared", ["empty", "full", "file"])
def test_what_appears_at_the_outputs_place_is_left_alone_and_the_work_kept(appeared: str, tmp_path: Path):
    out = tmp_path / "out"
    place = check_output(out, True)
    (tmp_path / "out-2").mkdir()
    with pytest.raises(HeadsError, match=r"appeared while this ran.*out-3'"), finished_folder(place) as partial:
        (partial / "config.json").write_text("new")
        out.write_text("mine") if appeared == "file" else out.mkdir()
        if appeared == "full":
            (out / "config.json").write_text("mine")
    assert leftovers(tmp_path) == ["out", "out-2", "out-3"]
    assert (tmp_path / "out-3" / "config.json").read_text() == "new"
    assert out.is_file() or leftovers(out) == (["config.json"] if appeared == "full" else [])


def test_another_folder_or_a_new_file_in_the_old_one_is_left_alone(tmp_path: Path):
    out = make_checkpoint(tmp_path / "out")
    with pytest.raises(HeadsError, match=r"holds 'notes.txt'.*out-2"), finished_folder(check_output(out, True)):
        (out / "notes.txt").write_text("mine")
    (out / "notes.txt").unlink()
    with pytest.raises(HeadsError, match="appeared while this ran"), finished_folder(check_output(out, True)):
        out.rename(tmp_path / "moved")
        make_checkpoint(out, "mine")
    assert (out / "config.json").read_text() == "mine"


def test_a_full_disk_says_so_and_what_was_there_is_intact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    out, file = make_checkpoint(tmp_path / "out"), tmp_path / "scores.json"
    file.write_text("old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "_sync", full)
    with pytest.raises(HeadsError, match=r"the disk is full; what was at .* is untouched"):
        write(check_output(out, True))
    with pytest.raises(HeadsError, match=r"the disk is full; what was at .* is untouched"):
        write_file(file, "new")
    with pytest.raises(HeadsError, match="the disk is full; nothing was left"):
        write(check_output(tmp_path / "other", True))
    assert leftovers(tmp_path) == ["out", "scores.json"] and file.read_text() == "old"
    assert {path.read_text() for path in out.iterdir()} == {"old"}


@pytest.mark.parametrize("step", ["_sync"])
def test_a_file_is_the_old_or_the_new_and_the_next_write_clears(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    file = tmp_path / "scores.json"
    file.write_text("old")
    killed_at(step, lambda: write_file(file, "new"), monkeypatch)
    assert file.read_text() == "old" and len(leftovers(tmp_path)) == 2
    write_file(file, "new")
    assert leftovers(tmp_path) == ["scores.json"] and file.read_text() == "new"
    assert file.stat().st_mode & 0o777 == 0o666 & ~hidden_umask()


def hidden_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_written_file_does_not_follow_a_link(tmp_path: Path):
    (tmp_path / "real").write_text("mine")
    (tmp_path / "link").symlink_to("real")
    write_file(tmp_path / "link", "new")
    assert (tmp_path / "real").read_text() == "mine" and (tmp_path / "link").read_text() == "new"


def test_what_is_no_regular_file_is_not_replaced(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(HeadsError, match="not a regular file"):
        check_file(str(tmp_path / "pipe"), True)
    with pytest.raises(HeadsError, match="not a regular file"):
        check_file("/dev/null", True)


def test_a_file_of_a_checkpoint_is_not_replaced(tmp_path: Path):
    folder = make_checkpoint(tmp_path / "bert")
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        with pytest.raises(HeadsError, match="is part of a checkpoint"):
            check_file(str(folder / name), True)
    check_file(str(folder / "scores.json"), True)


def test_names_that_leave_no_room_for_hidden_ones_are_refused_early(tmp_path: Path):
    for refuse in (lambda path: check_output(path, False), lambda path: check_file(str(path), False)):
        with pytest.raises(HeadsError, match="too long for a name"):
            refuse(tmp_path / ("x" * 240))
    assert hidden.hidden_name(tmp_path / ("x" * 200), "partial").name
