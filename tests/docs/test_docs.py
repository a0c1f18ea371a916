"""The documents: tables are those of the stored results, and the commands that they show exist."""

from __future__ import annotations

import importlib.util
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import hf_heads
from hf_heads.cli.program import build_parser

README = Path("README.md").read_text(encoding="utf-8")


def script(name: str) -> Any:
    """A module of scripts/."""
    spec = importlib.util.spec_from_file_location(name, Path(f"scripts/{name}.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


def test_the_readmes_tables_are_those_of_the_stored_results():
    module = script("tables")
    assert set(re.findall(r"<!-- table: (\w+) -->", README)) == set(module.TABLES)
    assert module.filled(README) == README, "run python scripts/tables.py"


def test_the_commands_in_the_readme_parse():
    lines = [line.split("  #")[0] for line in README.splitlines() if line.startswith("hf-heads ")]
    assert len(lines) >= 4
    for line in lines:
        build_parser().parse_args(shlex.split(line)[1:])


def test_the_options_in_the_readme_exist():
    parser = build_parser()
    text = " ".join(re.findall(r"^\| `(--.*?)` \|", README, re.M))
    known = {
        option
        for action in parser._subparsers._group_actions[0].choices["convert"]._actions
        for option in action.option_strings
    }
    assert set(re.findall(r"--[a-z-]+", text)) <= known


def test_public_names_and_version():
    for name in hf_heads.__all__:
        assert getattr(hf_heads, name) is not None
    assert f'version = "{hf_heads.__version__}"' in Path("pyproject.toml").read_text()
