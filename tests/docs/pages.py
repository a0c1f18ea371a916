"""The documents as tests read them: texts, code blocks, headings, links."""

from __future__ import annotations

import re
from pathlib import Path

README = Path("README.md")
PAGES = [README, *sorted(Path("docs").glob("*.md"))]  # where tables may stand
DOCUMENTS = [*PAGES, Path("CONTRIBUTING.md"), Path("CHANGELOG.md"), *sorted(Path("docs").glob("*/*.md"))]

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
_LINK = re.compile(r"\[[^\]]*\]\(([^()\s]+)\)")


def read(path: Path) -> str:
    """A document's text."""
    return path.read_text(encoding="utf-8")


def blocks(path: Path, language: str = "") -> list[str]:
    """The code blocks of a document in one language; without a name those that have none."""
    return [code for found, code in _FENCE.findall(read(path)) if found == language]


def prose(path: Path) -> str:
    """A document without its code blocks."""
    return _FENCE.sub("", read(path))


def anchors(path: Path) -> set[str]:
    """What links to headings of a document may say after the #, as GitHub makes it."""
    headings = re.findall(r"^#+ (.*)$", prose(path), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(path: Path) -> list[str]:
    """Where a document's links and images lead."""
    return _LINK.findall(prose(path))
