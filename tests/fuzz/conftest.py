"""Nothing of hypothesis is left in the working directory, and the end says how many damaged files were read."""

from __future__ import annotations

import hypothesis.configuration
import pytest

from tests.support import fuzz
from tests.support.whole import NAMES, whole


@pytest.fixture(scope="session", autouse=True)
def whole_checkpoints() -> None:
    """What strategies damage; made before they draw, since it takes random numbers."""
    for name in NAMES:
        whole(name)


@pytest.fixture(scope="session", autouse=True)
def no_files_of_hypothesis(tmp_path_factory: pytest.TempPathFactory) -> None:
    hypothesis.configuration.set_hypothesis_home_dir(tmp_path_factory.mktemp("hypothesis"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if fuzz.CASES:
        for name, count in fuzz.counts.items():
            terminalreporter.write_line(f"{count:7} {name}")
        terminalreporter.write_line(f"{fuzz.counts.total():7} damaged files in all")
