"""The folder that `python scripts/run.py` finds its modules in, and what it changes in the process put back."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from transformers.utils import logging

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))


@pytest.fixture(autouse=True)
def process_as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A study sets torch's threads; two of them in each of two test processes would slow down all tests that follow."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")  # as a study does; gone afterwards
    AcceleratorState._reset_state(reset_partial_state=True)  # it holds a process to its first precision
    threads, verbosity = torch.get_num_threads(), logging.get_verbosity()
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    torch.set_num_threads(threads)
    logging.set_verbosity(verbosity)
    logging.disable_progress_bar()
