"""Pages that are made from the code are up to date; the site has every document, and builds without a warning."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import hf_heads
from tests.docs.pages import DOCUMENTS, links, read
from tests.docs.test_docs import script


def test_pages_made_from_the_code_are_up_to_date():
    for path, text in script("reference").pages().items():
        assert path.read_text(encoding="utf-8") == text, f"{path}: run `python scripts/run.py reference`"


def test_every_public_name_and_every_command_has_its_place():
    names = re.findall(r"^### (\w+)$", read(Path("docs/reference/python.md")), re.M)
    modules = {"compat", "extend", "methods", "models"}
    assert {name for name in hf_heads.__all__ if not name.startswith("_")} - modules <= set(names)
    assert set(hf_heads.extend.__all__) <= set(names)


def navigation(entries: list[object]) -> list[str]:
    """The pages that the site's navigation names."""
    found: list[str] = []
    for entry in entries:
        inner = list(entry.values()) if isinstance(entry, dict) else [entry]
        for one in inner:
            found += navigation(one) if isinstance(one, list) else [str(one)]
    return found


def test_the_navigation_has_every_page_once():
    settings = yaml.safe_load(Path("mkdocs.yml").read_text(encoding="utf-8"))
    pages = [str(place) for place in script("website").places().values() if place.suffix == ".md"]
    assert sorted(navigation(settings["nav"])) == sorted(pages)
    assert len(pages) == len(DOCUMENTS)
    assert "plugins" not in settings


def test_links_lead_to_the_places_on_the_site(tmp_path: Path):
    script("website").stage(tmp_path)
    for page in tmp_path.rglob("*.md"):
        for link in links(page):
            target = link.partition("#")[0]
            assert "://" in link or not target or (page.parent / target).is_file(), f"{page.name}: {link}"
    assert "](docs/" not in read(tmp_path / "index.md")
    assert "examples (`examples`)" in re.sub("/", "", read(tmp_path / "use.md"))


@pytest.mark.skipif(not Path(sys.executable).with_name("zensical").is_file(), reason="no zensical")
def test_the_site_builds_without_warnings():
    found = subprocess.run([sys.executable, "scripts/run.py", "website"], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr
    home = Path("out/site/html/index.html").read_text(encoding="utf-8")
    assert "Shrink the attention heads" in home
