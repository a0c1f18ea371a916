"""Commands that are killed at random times; HF_HEADS_KILLS says how often each."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_kills_leave_nothing_half_written_lost_or_left_over():
    pytest.importorskip("matplotlib")
    # A process of its own: forks of one that has started threads may wait for ever.
    command = [sys.executable, "-m", "tests.support.kills", os.environ.get("HF_HEADS_KILLS", "3")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    found = subprocess.run(command, capture_output=True, text=True, env=environment)
    print(found.stdout)
    assert found.returncode == 0, found.stdout + found.stderr[-2000:]
    assert found.stdout.count("faults: 0") == 5
