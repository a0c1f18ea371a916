"""The request of a conversion: it checks itself, and recipes and the command line build the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hf_heads import CollabSpec, HeadsError, LowRankSpec
from hf_heads.io.data.choice import CalibrationChoice
from hf_heads.jobs.conversion.checkpoint import convert_checkpoint
from hf_heads.jobs.conversion.recipes import load_recipe
from hf_heads.jobs.conversion.request import ConversionRequest, default_output

SPEC = CollabSpec(rank=8)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"source": None}, "source is None, expected a hub id"),
        ({"source": ""}, "source is ''"),
        ({"spec": "collab"}, r"spec is 'collab', expected settings such as CollabSpec\(rank=96\)"),
        ({"spec": {}}, "spec is {}"),
        ({"spec": {"*": "collab"}}, "a dict of block patterns"),
        ({"calibration": "random"}, "expected a CalibrationChoice"),
        ({"refit": "no"}, "refit is 'no', expected True or False"),
        ({"device": 0}, "device is 0, expected a name"),
        ({"dtype": "float64"}, "dtype is 'float64', expected one of float32, bfloat16, float16"),
        ({"max_shard_size": "5 apples"}, "max_shard_size is '5 apples', expected a size: 5GB, 500MB"),
        ({"max_shard_size": "1.5GB"}, "max_shard_size is '1.5GB'"),
        ({"max_shard_size": "0GB"}, "max_shard_size is '0GB'"),
        ({"max_shard_size": True}, "max_shard_size is True"),
        ({"blocks": 3}, "blocks is 3, expected text"),
        ({"revision": 1.0}, "revision is 1.0, expected text"),
    ],
)
def test_a_request_refuses_what_has_no_meaning(changes: dict[str, Any], words: str):
    with pytest.raises(HeadsError, match=words):
        ConversionRequest(**{"source": "tiny", "spec": SPEC, **changes})


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ({"source": None}, "data is None"),
        ({"source": "x", "columns": "text"}, "columns is 'text', expected names of columns"),
        ({"columns": ("text",)}, "columns says what to read of a data set, and 'random' is none"),
        ({"source": "none", "label": "label"}, "label says what to read of a data set, and 'none' is none"),
        ({"source": "x", "label": 3}, "label is 3"),
        ({"samples": 0}, "samples is 0, expected a whole number from 1"),
        ({"samples": "9"}, "samples is '9'"),
        ({"seed": -1}, "seed is -1, expected a whole number from 0"),
    ],
)
def test_a_choice_of_data_refuses_what_has_no_meaning(choice: dict[str, Any], words: str):
    with pytest.raises(HeadsError, match=words):
        CalibrationChoice(**choice)


def test_the_name_of_the_output_says_what_it_holds():
    assert default_output(ConversionRequest("some/model", SPEC)) == Path("model-collab-8")
    specs = {"a*": SPEC, "*": LowRankSpec(energy=0.9)}
    assert default_output(ConversionRequest("package:tiny", specs)) == Path("tiny-low-rank-energy-0.9")


def test_recipe_and_command_line_and_python_write_the_same(run: Callable[..., Any], bert_folder: Path, tmp_path: Path):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        f"base = 'tiny/bert'\nsource = '{bert_folder}'\npaper = 'none'\n[heads]\nmethod = 'collab'\nrank = 8\n"
        "blocks = '*layer.0*'\n[calibration]\nsamples = 20\nseed = 3\n"
    )
    convert_checkpoint(load_recipe(recipe), tmp_path / "python")
    common = ("convert", "--json", "--output")
    said = ("--blocks", "*layer.0*", "--calibration-samples", 20, "--seed", 3)
    assert run(*common, tmp_path / "recipe", "--recipe", recipe).code == 0
    assert run(*common, tmp_path / "said", bert_folder, "--to", "collab", "--rank", 8, *said).code == 0
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("python", "recipe", "said")]
    assert files[0] == files[1] == files[2]
    records = [json.loads((tmp_path / name / "heads_report.json").read_text()) for name in ("python", "recipe", "said")]
    assert records[0]["calibration_choice"] == records[1]["calibration_choice"] == records[2]["calibration_choice"]
    published = recipe.read_text().replace(str(bert_folder), "./tiny-bert")  # where the folder is, is nobody's business
    assert [record["recipe"] for record in records] == [published, published, None]


def test_options_have_the_last_word_over_a_recipe(run: Callable[..., Any], bert_folder: Path, tmp_path: Path):
    recipe, data = tmp_path / "recipe.toml", tmp_path / "data.csv"
    data.write_text("a,b\n" + "word1 word2,word3\n" * 9)
    recipe.write_text(
        f"base = 'tiny/bert'\nsource = '{bert_folder}'\npaper = 'none'\n[heads]\nmethod = 'collab'\nrank = 8\n"
        f"[calibration]\nsource = '{data}'\ncolumns = ['a']\n"
    )
    found = run("convert", "--recipe", recipe, "--calibrate", "none", "--output", tmp_path / "out", "--json")
    assert found.code == 0 and found.json["calibration"] == "none, weights only"
