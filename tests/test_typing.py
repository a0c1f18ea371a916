"""What a user's type checker sees: real signatures, not Any."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import hf_heads
import hf_heads.extend

RIGHT = """
from pathlib import Path

import hf_heads
from transformers import AutoModel

model, report = hf_heads.convert(AutoModel.from_pretrained("x"), hf_heads.CollabSpec(rank=96, form="cp"), blocks="*")
rank: int | None = hf_heads.CollabSpec(rank=96).rank
hf_heads.load_recipe(Path("recipe.toml"))
seconds: float = report.seconds
hf_heads.prune_heads(model, {0: [1]})
"""
MISTAKES = {
    'form="cp"': ('from="cp"'.replace("from", "frm"), 'Unexpected keyword argument "frm"'),
    'Path("recipe.toml")': ("7", 'has incompatible type "int"'),
    "hf_heads.prune_heads(model": ("hf_heads.prune_head(model", 'no attribute "prune_head"'),
    "(rank=96).rank": ("(rank=96).ranks", 'no attribute "ranks"'),
    ", {0: [1]})": (")", "Missing positional argument"),
}
# Types of these are not what is tested, and reading them takes minutes.
CONFIG = """
[mypy]
strict = True
[mypy-torch.*,transformers.*,huggingface_hub.*,datasets.*,accelerate.*,safetensors.*,rich.*]
follow_imports = skip
ignore_missing_imports = True
"""


def errors(folder: Path, **programs: str) -> list[list[str]]:
    """The lines about each program; all are read at once, since the packages that they import take seconds."""
    for name, program in programs.items():
        (folder / f"{name}.py").write_text(program)
    (folder / "mypy.ini").write_text(CONFIG)
    command = [sys.executable, "-m", "mypy", "--config-file", "mypy.ini", "--cache-dir", ".cache"]
    command += [f"{name}.py" for name in programs]
    root = Path(hf_heads.__file__).parents[1]
    found = subprocess.run(
        command, cwd=folder, env={**os.environ, "MYPYPATH": str(root)}, capture_output=True, text=True
    )
    lines = [line for line in found.stdout.splitlines() if "error:" in line]
    return [[line for line in lines if line.startswith(f"{name}.py:")] for name in programs]


@pytest.mark.full  # half a minute, of which mypy needs most to read what is imported
def test_mistakes_in_a_program_are_found_by_a_strict_type_checker(tmp_path: Path):
    wrong, missing = RIGHT, RIGHT.replace(", {0: [1]})", ")")
    for right, (mistake, _) in MISTAKES.items():
        assert right in wrong
        wrong = wrong.replace(right, mistake, 1)
    none, found, (line,) = errors(tmp_path, right=RIGHT, wrong=wrong, missing=missing)
    assert none == []
    # The call that is misspelt and lacks an argument is one line, and one error.
    wanted = [text for right, (_, text) in MISTAKES.items() if right != ", {0: [1]})"]
    assert len(found) == len(wanted), found
    for text in wanted:
        assert any(text in line for line in found), (text, found)
    assert "prune_heads" in line and ("Missing positional argument" in line or "Too few arguments" in line)


@pytest.mark.parametrize("module", [hf_heads, hf_heads.extend], ids=lambda one: one.__name__)
def test_what_a_type_checker_sees_is_what_there_is(module):
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    guarded = next(one for one in tree.body if isinstance(one, ast.If) and ast.unparse(one.test) == "TYPE_CHECKING")
    seen = {
        alias.name: one.module.removeprefix("hf_heads").removeprefix(".")
        for one in guarded.body
        if isinstance(one, ast.ImportFrom)
        for alias in one.names
    }
    later = {name: place for name, place in seen.items() if place}
    assert later == module._PLACES
    assert {name for name, place in seen.items() if not place} == set(getattr(module, "_MODULES", ()))
    assert set(module._PLACES) <= set(module.__all__) <= {*dir(module), *module._PLACES}
    for name in module.__all__:
        assert getattr(module, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        module.nothing  # noqa: B018
