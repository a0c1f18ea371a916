"""Prints the changelog's section for a tag, after checking that the tag is the version.

python .github/release_notes.py v0.1.0
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent


def section(changelog: str, version: str) -> str:
    """What stands in the changelog under `## VERSION (DATE)`.

    Raises:
        SystemExit: there is no such section, or it has no date yet.
    """
    heading = re.search(rf"^## {re.escape(version)} \((.*)\)$", changelog, re.M)
    if heading is None:
        sys.exit(f"CHANGELOG.md has no section '## {version} (DATE)'")
    if not re.fullmatch(r"\d{4}-\d{2}-\d{2}", heading[1]):
        sys.exit(f"CHANGELOG.md: {version} is '{heading[1]}', expected the date of the release, such as 2026-01-31")
    return re.split(r"^## ", changelog[heading.end() :], flags=re.M)[0].strip()


def main(tag: str) -> None:
    """Print the section of the version that a tag names.

    Raises:
        SystemExit: the tag is not `v` and the version of pyproject.toml, or the changelog is not ready.
    """
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    if tag != f"v{version}":
        sys.exit(f"the tag is {tag}, but pyproject.toml has the version {version}: expected v{version}")
    print(section((ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), version))


if __name__ == "__main__":
    main(sys.argv[1])
