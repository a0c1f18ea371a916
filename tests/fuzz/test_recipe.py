"""Damaged recipes: refused in a line."""

from __future__ import annotations

import json
import math
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from hf_heads.jobs.conversion.recipes import load_recipe
from tests.support.fuzz import commanded, damaged, flipped, fuzz, put, refused
from tests.support.whole import whole

RECIPES = [path.read_text() for path in sorted((Path(__file__).parents[2] / "conversions").glob("*.toml"))]
SMALL = {
    "base": "some/model",
    "source": "SOURCE",
    "paper": "arXiv:2006.16362",
    "heads": {
        "method": "collab",
        "rank": 16,
        "blocks": "encoder.*",
        "only": [{"blocks": "encoder.layer.0.*", "method": "mhe", "variant": "mul"}],
    },
    "calibration": {"source": "random", "samples": 8, "seed": 3},
    "expect": {"attention_parameters": 1, "cosine": 0.5},
}


def toml(value: Any) -> str:
    """A value in TOML, tables in one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(name)} = {toml(one)}" for name, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"
    return "1979-05-27" if value is None else json.dumps(value)


def text_of(recipe: Any) -> bytes:
    lines = [f"{json.dumps(name)} = {toml(value)}\n" for name, value in recipe.items()]
    return "".join(lines).encode("utf-8", "surrogatepass")


wholes = [*map(tomllib.loads, RECIPES), SMALL]
recipes = st.one_of(
    st.sampled_from(wholes).flatmap(damaged).map(text_of),
    st.sampled_from(wholes).flatmap(lambda one: damaged(one, 1)).map(text_of),
    st.sampled_from(RECIPES).flatmap(lambda text: flipped(text.encode())),
    st.sampled_from([b"a=" + b"[" * 100_000, b"a" + b".a" * 5_000 + b"=1", b"[a]\n" * 2, b"\xff", b"a = 1e999", b""]),
)


@fuzz(
    0.14,
    b"a=" + b"[" * 100_000,  # RecursionError
    f'base = "a"\npaper = "b"\nsource = {[0] * 500}\n[heads]\nmethod = "mhe"\n'.encode(),  # a line of 1,500 characters
    content=recipes,
)
def test_reading(tmp_path_factory: pytest.TempPathFactory, content: bytes):
    path = put(tmp_path_factory.getbasetemp(), "recipe.toml", content)
    refused(lambda: load_recipe(path))


@fuzz(0.005, least=2, content=recipes)
def test_commands(capsys: pytest.CaptureFixture[str], tmp_path_factory: pytest.TempPathFactory, content: bytes):
    base = tmp_path_factory.getbasetemp()
    path = put(base, "recipe.toml", content)
    output = ("--output", base / "from-recipe", "--overwrite", "--calibrate", "none")
    commanded(capsys, "convert", whole("bert"), "--recipe", path, *output)
