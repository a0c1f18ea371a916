"""What the command line costs before it does anything."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest

SLOW = {"torch", "transformers", "datasets"}
PROGRAM = (
    "import sys; from hf_heads.cli import main\n"
    "try: main(sys.argv[1:])\n"
    "except SystemExit: pass\n"
    "print(*sys.modules, file=sys.stderr)"
)


def seconds() -> float:
    """Processor time of all children so far."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(("--help",), "convert"), (("convert", "--help"), "--rank"), (("list",), "collab"), (("list", "--json"), "bert")],
)
def test_commands_that_only_show_something_import_no_torch(arguments: tuple[str, ...], words: str):
    before = seconds()
    command = [sys.executable, "-c", PROGRAM, *arguments]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert seconds() - before < 1.5  # about a fifth of that on an idle core
    assert words in found.stdout
    assert not SLOW & set(found.stderr.split())
