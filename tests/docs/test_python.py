"""Python in the documents compiles and names what is public; the example of an extension is installed and run."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import hf_heads
from tests.docs.pages import DOCUMENTS, blocks

EXTENDING = Path("docs/extending.md")


@pytest.mark.parametrize("page", [page for page in DOCUMENTS if blocks(page, "python")], ids=str)
def test_python_compiles_and_names_what_is_public(page: Path):
    for code in blocks(page, "python"):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "hf_heads":
                assert node.attr in hf_heads.__all__, node.attr


PROGRAM = """
import hf_heads, mean_query, torch
from transformers import AutoModel, BertModel
from tests.support.twins import TWINS, bert_config, randomize

inputs = TWINS["bert"].inputs()
assert "mean-query" in hf_heads.methods

def states(model):
    with torch.no_grad():
        return model.eval()(**inputs).last_hidden_state

def check(model, spec, name):
    randomize(model)
    converted, _ = hf_heads.convert(model, spec, calibration=[inputs])
    converted.save_pretrained(name)
    loaded = AutoModel.from_pretrained(name)
    assert type(loaded).__name__ == f"Heads{type(model).__name__}"
    assert torch.equal(states(loaded), states(converted))
    return (states(converted) - states(model)).abs().max()

assert check(BertModel(bert_config()), mean_query.MeanQuerySpec(), "mean-query") > 1e-3
import check_megatron
from hf_heads.extend import contract
assert check(check_megatron.tiny(), hf_heads.CollabSpec(rank=32), "megatron-bert") < 1e-4
contract(check_megatron.TWIN, ["pruned", "mhe"], ["exact", "lossy"])
"""


def test_the_example_of_an_extension_works_as_it_stands(tmp_path: Path):
    """The page's files and entry points, installed as a package would be: found, converted, saved, loaded."""
    names = re.findall(r"`(\w+\.py)`:?", EXTENDING.read_text(encoding="utf-8"))
    for name, code in zip(names, blocks(EXTENDING, "python"), strict=True):
        (tmp_path / name).write_text(code, encoding="utf-8")
    lines = []
    for block in blocks(EXTENDING, "toml"):
        for group, points in tomllib.loads(block)["project"]["entry-points"].items():
            lines += [f"[{group}]", *(f"{name} = {value}" for name, value in points.items())]
    installed = tmp_path / "example-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: example\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text("\n".join(lines))
    path = os.pathsep.join([str(tmp_path), str(Path.cwd())])
    found = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stderr
