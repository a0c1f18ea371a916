"""Runs a study by its name, makes the documents' tables again, or fills them in.

python scripts/run.py --list
python scripts/run.py NAME --help
python scripts/run.py latency --seconds 2 --results out
python scripts/run.py reproduce mhe mgk --data DATA --models MODELS --work WORK
python scripts/run.py tables --check
"""

from __future__ import annotations

import argparse
import ast
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from hf_heads.core.errors import HeadsError

FOLDER = Path(__file__).resolve().parent
COMMANDS = ("reference", "reproduce", "tables", "versions", "website")  # these measure nothing, and start without torch
STUDIES = tuple(sorted(path.stem for path in (FOLDER / "studies").glob("[a-z]*.py")))


def about(name: str) -> str:
    """The first line of a module's docstring, without importing it."""
    path = FOLDER / f"{name}.py" if name in COMMANDS else FOLDER / "studies" / f"{name}.py"
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").splitlines()[0]


def load(name: str) -> tuple[ModuleType, argparse.ArgumentParser]:
    """A study or a command, and the parser of its options."""
    module = importlib.import_module(name if name in COMMANDS else f"studies.{name}")
    parser = argparse.ArgumentParser(
        prog=f"run.py {name}", description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    module.add_options(parser)
    if name in STUDIES:
        importlib.import_module("studies.shared.running").add_common(parser)
    return module, parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the first word names, with the options behind it; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="say what there is")
    parser.add_argument("name", nargs="?", metavar="NAME", choices=(*COMMANDS, *STUDIES), help="what to run")
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = parser.parse_args(words[:1])
    if options.list:
        print("\n".join(f"{name:15} {about(name)}" for name in (*COMMANDS, *STUDIES)))
        return 0
    if options.name is None:
        parser.error("name what to run; --list says what there is")
    module, own = load(options.name)
    chosen = own.parse_args(words[1:])
    if options.name in STUDIES:
        importlib.import_module("studies.shared.running").start(chosen)
    try:
        return module.run(chosen) or 0
    except HeadsError as error:
        print(f"run.py {options.name}: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
