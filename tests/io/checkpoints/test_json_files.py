"""JSON files: what is refused, and how it is said."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from hf_heads.core.errors import HeadsError
from hf_heads.io.checkpoints.json_files import as_record, read_json, without_nan


@dataclass(frozen=True)
class Leaf:
    share: float
    colour: Literal["red", "green"] = "green"


@dataclass(frozen=True)
class Tree:
    name: str
    leaves: tuple[Leaf, ...]
    place: tuple[str, int] | None = None
    by_number: Mapping[int, bool] | None = None
    anything: Any = None


WHOLE = {"name": "oak", "leaves": [{"share": 1, "colour": "red"}], "place": ["hill", 3], "by_number": {"7": True}}


def test_a_record_is_read_and_what_it_does_not_know_is_left_out():
    made = Tree("oak", (Leaf(1.0, "red"),), ("hill", 3), {7: True}, [1, {}])
    assert as_record(Tree, {**WHOLE, "anything": [1, {}], "new": 1}, "x") == made
    assert as_record(Tree, {"name": "oak", "leaves": []}, "x") == Tree("oak", ())


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"name": None}, "name: expected a text, found null"),
        ({"leaves": {}}, "leaves: expected a list, found {}"),
        ({"leaves": [{}]}, "leaves[0].share is missing"),
        ({"leaves": [{"share": 1}, 5]}, "leaves[1]: expected an object, found 5"),
        ({"leaves": [{"share": "x"}]}, 'leaves[0].share: expected a number, found "x"'),
        ({"leaves": [{"share": math.nan}]}, "leaves[0].share: expected a number, found NaN"),
        ({"leaves": [{"share": True}]}, "leaves[0].share: expected a number, found true"),
        ({"leaves": [{"share": 1, "colour": "x"}]}, 'leaves[0].colour: expected one of red, green, found "x"'),
        ({"leaves": [{"share": 1, "colour": []}]}, "leaves[0].colour: expected one of red, green, found []"),
        ({"place": ["hill"]}, 'place: expected a list of 2, found ["hill"]'),
        ({"place": ["hill", 1.5]}, "place[1]: expected a whole number, found 1.5"),
        ({"by_number": [1]}, "by_number: expected an object, found [1]"),
        ({"by_number": {"x": True}}, 'by_number: expected whole numbers as names, found "x"'),
        ({"by_number": {"7": 0}}, "by_number.7: expected true or false, found 0"),
        ({"name": ["long"] * 99}, 'name: expected a text, found ["long", "long"'),
    ],
)
def test_errors_say_where(change: dict[str, Any], error: str):
    with pytest.raises(HeadsError) as caught:
        as_record(Tree, {**WHOLE, **change}, "'x.json' is not a tree")
    assert str(caught.value).startswith(f"'x.json' is not a tree: {error}") and len(str(caught.value)) < 160


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (None, "cannot read the tree '{}': No such file or directory"),
        (b"{", "the tree '{}' is not valid JSON: Expecting property name"),
        (b"\xff", "the tree '{}' is not valid JSON: 'utf-8' codec"),
        (b"[" * 100_000, "the tree '{}' is not valid JSON: "),
        (b"[1]", "the tree '{}' is not a JSON object"),
    ],
)
def test_files_that_hold_something_else_are_refused(tmp_path: Path, content: bytes | None, error: str):
    path = tmp_path / "x.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(HeadsError) as caught:
        read_json(path, "tree")
    assert str(caught.value).startswith(error.format(path)) and "\n" not in str(caught.value)
    with pytest.raises(HeadsError, match=r"cannot read the tree .*: it is not a regular file"):
        read_json(tmp_path, "tree")


def test_numbers_that_are_not_finite_become_none():
    assert without_nan({"a": (1.5, math.inf, {"b": math.nan}), "c": "NaN"}) == {
        "a": [1.5, None, {"b": None}],
        "c": "NaN",
    }
