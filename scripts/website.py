"""Builds the documentation as a site: README, docs/, CONTRIBUTING and CHANGELOG, by zensical from mkdocs.yml.

Links lead from file to file in the repository, README.md to docs/use.md, say; on the site all pages are in one folder.
What is not on the site, a folder of examples, is named there and not linked.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGES = ROOT / "out" / "site" / "pages"  # as mkdocs.yml says
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^()\s#]*)(#[^()\s]*)?\)")
_PICTURES = (".png", ".svg")


def places() -> dict[Path, Path]:
    """Where each document of the repository is on the site, relative to its root."""
    found = {ROOT / "README.md": Path("index.md"), ROOT / "docs" / "README.md": Path("contents.md")}
    for name in ("CHANGELOG", "CONTRIBUTING"):
        found[ROOT / f"{name}.md"] = Path(f"{name.lower()}.md")
    for path in sorted((ROOT / "docs").rglob("*.md")):
        found.setdefault(path, path.relative_to(ROOT / "docs"))
    for path in sorted((ROOT / "scripts" / "results" / "figures").glob("*.png")):
        found[path] = Path("figures") / path.name
    return found


def staged(path: Path, where: dict[Path, Path]) -> str:
    """A document with its links as they are on the site."""
    here = where[path].parent

    def link(found: re.Match[str]) -> str:
        mark, text, target, anchor = found.groups()
        if "://" in target or not target:
            return found[0]
        other = (path.parent / target).resolve()
        if other not in where:
            return text if text.startswith("`") or not other.exists() else f"{text} (`{other.relative_to(ROOT)}`)"
        return f"{mark}[{text}]({os.path.relpath(where[other], here)}{anchor or ''})"

    parts = re.split(r"(^```.*?^```$)", path.read_text(encoding="utf-8"), flags=re.M | re.S)
    return "".join(part if part.startswith("```") else _LINK.sub(link, part) for part in parts)


def stage(folder: Path) -> None:
    """Write all pages and pictures of the site into an empty folder."""
    where = places()
    for path, place in where.items():
        target = folder / place
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix in _PICTURES:
            shutil.copy(path, target)
        else:
            target.write_text(staged(path, where), encoding="utf-8")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pages", action="store_true", help="only write the pages, build nothing")


def run(options: argparse.Namespace) -> int:
    """Build into out/site/html; a warning is a failure."""
    shutil.rmtree(PAGES.parent, ignore_errors=True)
    stage(PAGES)
    if options.pages:
        return 0
    program = Path(sys.executable).with_name("zensical")
    if not program.is_file():
        print("no zensical beside this Python: pip install '.[site]'", file=sys.stderr)
        return 2
    return subprocess.call([program, "build", "--strict", "-f", ROOT / "mkdocs.yml"], cwd=ROOT)
