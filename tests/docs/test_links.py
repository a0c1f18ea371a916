"""Links lead somewhere, every page can be reached, and the rooms are those of the import contract."""

from __future__ import annotations

import configparser
import re
from pathlib import Path

import pytest

import hf_heads
from tests.docs.pages import DOCUMENTS, README, anchors, links, read


@pytest.mark.parametrize("page", DOCUMENTS, ids=str)
def test_every_link_leads_somewhere(page: Path):
    for link in links(page):
        target, _, anchor = link.partition("#")
        if target.startswith("https://"):
            continue
        path = (page.parent / target if target else page).resolve()
        assert path.is_relative_to(Path.cwd()) and path.exists(), f"{page}: {link} leads nowhere"
        assert not anchor or anchor in anchors(path), f"{page}: {target or page} has no heading #{anchor}"


def test_every_document_is_reached_from_the_readme():
    found, new = set(), {README.resolve()}
    while new:
        found |= new
        linked = {(page.parent / link.partition("#")[0]).resolve() for page in new for link in links(page)}
        new = {path for path in linked if path.suffix == ".md" and path.is_file()} - found
    assert {page.resolve() for page in DOCUMENTS} <= found


def test_paths_in_the_documents_exist():
    """Paths in code spans, such as `hf_heads/attention/hosts/table.py`; NAME stands for a name of the reader's."""
    package = Path(hf_heads.__file__).parents[1]  # the source, or where the wheel is installed
    for page in DOCUMENTS:
        for path in re.findall(r"`((?:hf_heads|tests|examples|conversions|docs)/[\w/.-]+)`", read(page)):
            assert "NAME" in path or (package / path).exists() or Path(path).exists(), f"{page}: {path}"


def test_contributing_names_every_room():
    contract = configparser.ConfigParser()
    contract.read(".importlinter")
    rooms = set()
    for group in ("rooms", "jobs", "io"):
        layers = contract[f"importlinter:contract:{group}"]["layers"].split("\n")
        inside = "" if group == "rooms" else f"{group}/"
        rooms |= {inside + room for layer in layers for room in re.findall(r"\w+", layer)}
    rows = re.findall(r"^\| (`.*?) \|", read(Path("CONTRIBUTING.md")), re.M)
    named = {room for row in rows for room in re.findall(r"`([\w/]+)`", row)}
    assert rooms - {"jobs", "io"} <= named
