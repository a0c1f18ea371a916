"""The command line as a user calls it, and what its refusals look like."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Outcome:
    """What a call of the command line gave."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        return json.loads(self.out)


Run = Callable[..., Outcome]


def check_refused(found: Outcome, *words: str, code: int = 1) -> None:
    """One line that holds the words; where the usage was wrong, the usage stands before it."""
    assert found.code == code, (found.out, found.err)
    assert "Traceback" not in found.err
    text = found.err.strip().splitlines()[-1]
    for word in words:
        assert word in text, text
    assert code == 2 or len(found.err.strip().splitlines()) == 1, found.err


def leftovers(folder: Path) -> list[str]:
    """The names in a folder, sorted."""
    return sorted(path.name for path in folder.iterdir())
