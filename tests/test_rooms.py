"""The house itself: every module has a room, imports go down, and files and functions stay small."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "hf_heads"
OURS = ("hf_heads", "tests", "scripts", "examples")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The package and its contract in a folder of their own."""
    shutil.copytree(PACKAGE, tmp_path / "hf_heads", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / ".importlinter", tmp_path)
    return tmp_path


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    """What import-linter says of the copy; in a Python of its own, since it imports what it looks at."""
    program = "from importlinter.cli import lint_imports; raise SystemExit(lint_imports(no_cache=True))"
    environment = {"PYTHONPATH": str(folder), "PATH": ""}
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=folder, env=environment)


def test_the_contract_is_kept_and_a_stray_module_breaks_it(copy: Path):
    kept = lint(copy)
    assert kept.returncode == 0 and " 0 broken" in kept.stdout, kept.stdout + kept.stderr
    (copy / "hf_heads" / "stray.py").write_text('"""A module that nobody gave a room."""\n')
    broken = lint(copy)
    assert broken.returncode == 1 and "stray" in broken.stdout, broken.stdout + broken.stderr


def test_an_import_that_climbs_breaks_the_contract(copy: Path):
    with (copy / "hf_heads" / "core" / "batches.py").open("a") as file:
        file.write("import hf_heads.jobs.conversion.convert\n")
    broken = lint(copy)
    assert broken.returncode == 1 and "hf_heads.core.batches" in broken.stdout, broken.stdout + broken.stderr


def test_the_root_of_the_package_holds_rooms_and_few_files():
    ours = (path.name for path in PACKAGE.iterdir() if path.name != "__pycache__")
    entries = sorted(name for name in ours if name != "__main__.py")  # Python wants it there, for `python -m hf_heads`
    files = [name for name in entries if not (PACKAGE / name).is_dir()]
    assert len(entries) <= 12 and len(files) <= 5, entries


def python_files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def test_no_file_is_longer_than_400_lines():
    lengths = {str(path.relative_to(ROOT)): path.read_text().count("\n") for path in python_files(*OURS)}
    assert len(lengths) > 100
    assert not {path: length for path, length in lengths.items() if length > 400}


def functions() -> Iterator[tuple[str, ast.FunctionDef, list[str]]]:
    """The place, the tree and the lines of the file of every function of the package."""
    for path in python_files("hf_heads"):
        lines = path.read_text().splitlines()
        for node in ast.walk(ast.parse("\n".join(lines))):
            if isinstance(node, ast.FunctionDef):
                yield f"{path.relative_to(ROOT)}:{node.lineno} {node.name}", node, lines


def lines_of_code(node: ast.FunctionDef, lines: list[str]) -> int:
    """Without the docstring, comments and blank lines."""
    start = node.lineno - 1
    documented = ast.get_docstring(node) is not None
    counted = lines[start : node.body[0].lineno - 1] if documented else []
    counted += lines[node.body[0].end_lineno if documented else start : node.end_lineno]
    return sum(bool(line.strip()) and not line.strip().startswith("#") for line in counted)


def test_no_function_is_longer_than_60_lines_of_code():
    lengths = {place: lines_of_code(node, lines) for place, node, lines in functions()}
    assert len(lengths) > 300
    assert not {place: length for place, length in lengths.items() if length > 60}


def test_imports_inside_functions_say_why():
    """By a comment at the line, or above the first of several: what takes long to import, or may not be there."""
    silent = set()
    for place, node, lines in functions():
        explained = 0
        inside = [one for one in ast.walk(node) if isinstance(one, ast.Import | ast.ImportFrom)]
        for one in sorted(inside, key=lambda one: one.lineno):
            above = lines[one.lineno - 2].strip()
            if "#" in lines[one.lineno - 1] or above.startswith("#") or explained == one.lineno - 1:
                explained = one.end_lineno or one.lineno
            else:
                silent.add(f"{place}: {lines[one.lineno - 1].strip()}")
    assert not silent, "\n".join(sorted(silent))
