"""Precisions of checkpoints: what is measured is what is written, what overflows or is quantized is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_heads.io.checkpoints.loading import load_source
from hf_heads.io.checkpoints.record import read_record
from hf_heads.io.checkpoints.sources import resolve_source
from hf_heads.io.data.calibration import probes
from hf_heads.jobs.evaluation.drift import measure_drift
from tests.support.cli import Run, check_refused

QUERY = "bert.encoder.layer.1.attention.self.query.weight"
OPTIONS = ("--to", "mhe", "--groups", 2, "--calibrate", "none")


def change(folder: Path, name: str, tensor: torch.Tensor) -> None:
    tensors = load_file(folder / "model.safetensors")
    assert name in tensors
    save_file({**tensors, name: tensor}, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("name", [QUERY, "bert.embeddings.LayerNorm.bias"])
def test_a_tensor_that_overflows_is_named_and_nothing_is_written(
    run: Run, bert_folder: Path, tmp_path: Path, name: str
):
    change(bert_folder, name, load_file(bert_folder / "model.safetensors")[name] + 1e6)
    options = ("--to", "mgk", "--calibrate", "none")  # which leaves the numbers of queries as they are
    found = run("convert", bert_folder, *options, "--dtype", "float16", "--output", tmp_path / "out")
    part = "encoder.layer.1.attention.self" if name == QUERY else name
    check_refused(found, part, "overflows in float16, which ends at 6.55e+04", "bfloat16 or float32")
    assert not (tmp_path / "out").exists()
    assert run("convert", bert_folder, *options, "--dtype", "bfloat16", "--output", tmp_path / "out").code == 0


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_the_drift_that_is_recorded_is_that_of_the_files(run: Run, bert_folder: Path, tmp_path: Path, dtype: str):
    output = tmp_path / "out"
    assert run("convert", bert_folder, *OPTIONS, "--dtype", dtype, "--output", output).code == 0
    original = resolve_source(str(bert_folder))
    models = load_source(resolve_source(str(output))), load_source(original)
    measured = measure_drift(*models, probes(original, models[1])).to_dict()
    assert read_record(output)["drift"]["random"] == measured


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int64, torch.bool, torch.float8_e4m3fn])
def test_quantized_sources_are_refused_by_name(run: Run, bert_folder: Path, tmp_path: Path, dtype: torch.dtype):
    change(bert_folder, QUERY, torch.ones(32, 32).to(dtype))
    check_refused(run("convert", bert_folder, *OPTIONS, "--output", tmp_path / "out"), QUERY, "quantized")


def test_positions_in_the_files_are_no_weights(run: Run, bert_folder: Path, tmp_path: Path):
    tensors = load_file(bert_folder / "model.safetensors")
    tensors["bert.embeddings.position_ids"] = torch.arange(40)[None]
    save_file(tensors, bert_folder / "model.safetensors", metadata={"format": "pt"})
    found = run("convert", bert_folder, *OPTIONS, "--output", tmp_path / "out")
    assert found.code == 0, found.err
