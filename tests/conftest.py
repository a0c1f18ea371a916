"""The fixtures of all rooms: the command line as a user calls it, and a checkpoint to call it with."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest

from hf_heads.cli.program import main
from tests.support.cli import Outcome, Run

# Of pytest-xdist's processes the first runs no test, but reads this file: imports that take seconds are in functions.


@pytest.fixture(scope="session", autouse=True)
def no_progress_bars() -> None:
    from transformers.utils import logging  # see above

    logging.disable_progress_bar()


@pytest.fixture(scope="module", autouse=True)
def no_searches_through_what_stays() -> None:
    """The Trainer collects garbage after every run, which takes half a second where so many modules are."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def no_naps(monkeypatch: pytest.MonkeyPatch) -> None:
    """`datasets` sleeps for 5 s after every parquet file, lest the process ends before Arrow's threads."""
    monkeypatch.setattr("datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)


@pytest.fixture
def bert_folder(tmp_path: Path) -> Path:
    """A tiny BERT checkpoint with a tokenizer."""
    from tests.support.files import save_checkpoint  # see above
    from tests.support.twins import TWINS

    return save_checkpoint(TWINS["bert"].model(), tmp_path / "tiny-bert")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Call the command line in this process."""

    def call(*arguments: object) -> Outcome:
        capsys.readouterr()
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return call
