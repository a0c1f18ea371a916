"""Models in lower precision against themselves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from hf_heads import HeadsError
from hf_heads.core.vocabulary import PRECISIONS, REPORT
from hf_heads.jobs.evaluation.choices import Choices
from hf_heads.jobs.evaluation.precision import lowered, precision_drift, round_rows
from tests.support.cli import Run
from tests.support.twins import TWINS


def test_rows_are_rounded_to_their_own_step():
    weight = torch.tensor([[127.0, 0.4, -63.6], [1e-3, -127e-3, 0.0], [0.0, 0.0, 0.0]])
    wanted = torch.tensor([[127.0, 0.0, -64.0], [1e-3, -127e-3, 0.0], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(round_rows(weight), wanted)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", ["bert", "vit", "marian"])
def test_a_model_in_lower_precision(name: str, precision: str):
    """It is near itself, not equal, and the model is left in float32 with the numbers that it had."""
    model, batch = TWINS[name].model(), TWINS[name].inputs()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    drift = precision_drift(model, [batch], precision)
    assert drift.max_difference > 0 and 0.99 < drift.cosine < 1
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert lowered(model, precision).dtype == (torch.float32 if precision == "int8" else getattr(torch, precision))


def test_commands_say_it(run: Run, bert_folder: Path, tmp_path: Path):
    """`convert` in its report and in a line, `verify` and `compare` when asked."""
    folder = tmp_path / "converted"
    options = ("--to", "collab", "--rank", 8, "--calibrate", "none", "--output", folder)
    found = run("convert", bert_folder, *options)
    assert "in bfloat16" in found.out and "cosine to its own float32 0.99" in found.out
    kept = json.loads((folder / REPORT).read_text())["precision"]["bfloat16"]
    assert 0.99 < kept["converted"] < 1 and 0.99 < kept["original"] < 1
    assert "In bfloat16 the cosine to its own float32 is 0.99" in (folder / "README.md").read_text()
    figures = run("verify", folder, "--dtype", "bfloat16", "--json").json["figures"]
    assert 0.99 < figures["cosine in bfloat16"] < 1 and 0.99 < figures["original's cosine in bfloat16"] < 1
    quick = ("--no-latency", "--no-control", "--drift-samples", 8)
    rows = run("compare", bert_folder, folder, "--dtype", "int8", "--json", *quick).json["models"]
    assert all(0.99 < row["cosine_by_precision"]["int8"] < 1 for row in rows)
    assert "own cosine in int8" in run("compare", bert_folder, folder, "--dtype", "int8", *quick).out


def test_precisions_without_a_meaning_are_refused():
    with pytest.raises(HeadsError, match="dtype is 'int4', expected one of bfloat16, float16, int8"):
        Choices(dtype="int4")
