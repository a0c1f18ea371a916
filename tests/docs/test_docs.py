"""The documents: tables are those of the stored results, and the commands that they show exist."""

from __future__ import annotations

import importlib
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import hf_heads
from hf_heads.cli.program import build_parser
from tests.docs.pages import DOCUMENTS, PAGES, README, blocks, prose, read


def script(name: str) -> Any:
    """A module of scripts/, which find each other as `python scripts/run.py` does."""
    folder = str(Path("scripts").resolve())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    return importlib.import_module(name)


def test_the_tables_are_those_of_the_stored_results():
    module = script("tables")
    names = [name for page in PAGES for name in re.findall(r"<!-- table: (\w+) -->", read(page))]
    assert sorted(names) == sorted(module.TABLES)
    for page in PAGES:
        assert module.filled(read(page)) == read(page), f"{page}: its tables are not those of scripts/results/"


def commands() -> list[str]:
    """The hf-heads commands in the code blocks of all documents, without their comments."""
    lines = [line for page in DOCUMENTS for block in blocks(page) for line in block.splitlines()]
    found = [re.match(r"(?:hf-heads|accelerate .* -m hf_heads\.cli) (.*?)(?:  +#.*)?$", line) for line in lines]
    return [match[1] for match in found if match]


def test_the_commands_in_the_documents_parse():
    assert len(commands()) >= 20
    parser = build_parser()
    for line in commands():
        parser.parse_args(shlex.split(line))


def test_the_options_in_the_documents_exist():
    parser = build_parser()
    choices = parser._subparsers._group_actions[0].choices.values()
    known = {option for command in choices for action in command._actions for option in action.option_strings}
    spans = [span for page in DOCUMENTS for span in re.findall(r"`((?:--|hf-heads )[^`]*)`", prose(page))]
    named = {option for span in spans for option in re.findall(r"(?<!\S)--[a-z0-9-]+", span)}
    assert len(named) >= 30
    assert named <= known | {"--version", "--small"}  # of studies


def test_the_readme_is_short_and_its_summary_quotes_the_tables():
    text = read(README)
    assert len(text.splitlines()) <= 120
    rows = re.findall(r"^\| \[`.*$", text, re.M)
    assert len(rows) == len(hf_heads.methods)
    tables = " ".join(re.findall(r"<!-- table: .*?<!-- end -->", " ".join(map(read, PAGES)), re.S))
    for row in rows:
        for number in re.findall(r"[+-]?\d+\.\d+|-?\d+ %|\b\d{3,}\b", row.partition(" | ")[2]):
            assert re.search(rf"(?<![\d.]){re.escape(number.lstrip('+-'))}(?![\d])", tables), f"{number} in {row}"


def test_decisions_quote_the_tables():
    tables = " ".join(map(read, PAGES))
    for page in DOCUMENTS:
        for number in re.findall(r"\b0\.\d{4}\b", read(page)):
            assert page in PAGES or number in tables, f"{page}: {number}"


def test_public_names_and_version():
    for name in hf_heads.__all__:
        assert getattr(hf_heads, name) is not None
    assert f'version = "{hf_heads.__version__}"' in Path("pyproject.toml").read_text()
