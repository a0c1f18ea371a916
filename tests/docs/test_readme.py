"""README's command prints what README says, and its Python what stands below it. Run by name, it takes a minute."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.pages import README, blocks

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def skeleton(text: str) -> tuple[str, list[float]]:
    """A printed text without its numbers and spaces, and the numbers."""
    lines = [line for line in text.splitlines() if line.strip()]
    words = _NUMBER.sub("#", "\n".join(lines))
    return re.sub(r"\s+", " ", words).strip(), [
        float(one.replace(",", "")) for one in _NUMBER.findall("\n".join(lines))
    ]


def check_same(found: str, said: str) -> None:
    """The same words; the same numbers, but for rounding and for the seconds, which stand last."""
    (words, numbers), (wanted, figures) = skeleton(found), skeleton(said)
    assert words == wanted
    assert numbers[:-1] == pytest.approx(figures[:-1], rel=0.05, abs=0.011)


def test_a_changed_word_or_number_is_seen():
    check_same("rank 96  cosine 0.9931\nin 54 s", "rank 96 cosine 0.9930\nin 61 s")
    for found in ("rank 95 x cosine 0.9931\nin 54 s", "rank 48 cosine 0.9931\nin 54 s"):
        with pytest.raises(AssertionError):
            check_same(found, "rank 96 cosine 0.9931\nin 54 s")


@pytest.mark.slow
def test_the_commands_of_the_readme_print_what_it_says(tmp_path: Path):
    command, printed, loaded = blocks(README)[:3]
    environment = {**os.environ, "COLUMNS": "110", "PYTHONPATH": str(Path.cwd())}

    def run(*words: str) -> str:
        found = subprocess.run([sys.executable, *words], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert found.returncode == 0, found.stderr
        return found.stdout

    check_same(run("-m", "hf_heads.cli", *shlex.split(command)[1:]), printed)
    (program,) = blocks(README, "python")[:1]
    assert run("-c", program) == loaded
