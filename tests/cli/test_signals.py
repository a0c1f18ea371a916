"""What ends a command from outside: it cleans up and says so."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from hf_heads.io.checkpoints import files
from tests.support.cli import Run, leftovers
from tests.support.whole import whole


@pytest.fixture
def as_in_a_terminal() -> Iterator[None]:
    """Ctrl-C counts: a shell starts background jobs, tests among them, with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("as_in_a_terminal")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT], ids=lambda one: one.name)
def test_a_signal_cleans_up_and_the_old_output_stays(
    number: signal.Signals, run: Run, bert_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    options = ("convert", bert_folder, "--to", "collab", "--rank", 8, "--calibrate", "none", "--output")
    shutil.copytree(whole("bert-collab"), tmp_path / "out")
    before = (tmp_path / "out" / "config.json").read_bytes()
    monkeypatch.setattr(files, "_sync", lambda path: os.kill(os.getpid(), number))
    found = run(*options, tmp_path / "out", "--overwrite")
    assert found.code == 128 + number and found.err.startswith("hf-heads: interrupted; ")
    assert "Traceback" not in found.err
    assert leftovers(tmp_path) == ["out", "tiny-bert"]
    assert (tmp_path / "out" / "config.json").read_bytes() == before


def test_the_callers_own_handlers_stay(run: Run):
    def handler(*_: object) -> None: ...

    before = signal.signal(signal.SIGTERM, handler)
    try:
        assert run("list").code == 0
        assert signal.getsignal(signal.SIGTERM) is handler
    finally:
        signal.signal(signal.SIGTERM, before)
    assert run("list").code == 0 and signal.getsignal(signal.SIGTERM) is before
