"""Files of weights of at most a size that the user names: all of a checkpoint, in as many files as that takes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hf_heads.core.numbers import byte_count
from hf_heads.io.checkpoints.loading import load_source
from hf_heads.io.checkpoints.record import read_record
from hf_heads.io.checkpoints.sources import resolve_source
from hf_heads.io.checkpoints.writing import write_weights
from hf_heads.jobs.conversion.recipes import load_recipe
from tests.support.cli import Run, check_refused

OPTIONS = ("--to", "mhe", "--groups", 2, "--calibrate", "none")


@pytest.mark.parametrize(
    ("given", "found"),
    [("5GB", 5 * 10**9), ("500MB", 5 * 10**8), ("20kb", 20_000), ("2 TB", 2 * 10**12), (7, 7), ("7", 7)],
)
def test_sizes_are_read_as_transformers_reads_them(given: str | int, found: int):
    assert byte_count("size", given) == found


def test_a_conversion_in_shards_holds_what_one_file_holds(run: Run, bert_folder: Path, tmp_path: Path):
    for name, size in (("whole", "5GB"), ("shards", "20KB")):
        found = run("convert", bert_folder, *OPTIONS, "--max-shard-size", size, "--output", tmp_path / name)
        assert found.code == 0, found.err
    whole = load_file(tmp_path / "whole" / "model.safetensors")
    files = sorted((tmp_path / "shards").glob("*.safetensors"))
    assert len(files) > 2
    assert all(len(load_file(file)) == 1 or file.stat().st_size < 20_000 + 5_000 for file in files)
    parts = {name: tensor for file in files for name, tensor in load_file(file).items()}
    assert whole.keys() == parts.keys() and all(torch.equal(whole[name], parts[name]) for name in whole)
    models = [load_source(resolve_source(str(tmp_path / name))) for name in ("whole", "shards")]
    assert all(map(torch.equal, models[0].state_dict().values(), models[1].state_dict().values()))
    assert read_record(tmp_path / "whole")["sha256"] == read_record(tmp_path / "shards")["sha256"]


def test_a_shard_is_written_before_the_next_is_read(tmp_path: Path):
    written = []

    def get(name: str) -> torch.Tensor:
        written.append(len(list(tmp_path.glob("*.safetensors"))))
        return torch.zeros(100)

    write_weights(tmp_path, list("abcde"), get, shard_bytes=800)
    assert written == [0, 0, 0, 1, 1]  # the third is read to see that it does not fit
    assert len(list(tmp_path.glob("model-*-of-00003.safetensors"))) == 3


@pytest.mark.parametrize("size", ["big", "1.5GB", "0MB", "-1GB", "", "9" * 5000])
def test_what_is_no_size_is_refused_by_name(run: Run, bert_folder: Path, tmp_path: Path, size: str):
    found = run("convert", bert_folder, *OPTIONS, f"--max-shard-size={size}", "--output", tmp_path / "out")
    check_refused(found, "--max-shard-size", "is not a size: 5GB, 500MB, 200KB", code=2)
    assert not (tmp_path / "out").exists()


def test_a_recipe_says_the_size(tmp_path: Path):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('base = "a/b"\npaper = ""\nmax_shard_size = "2GB"\n[heads]\nmethod = "mhe"\ngroups = 2\n')
    assert load_recipe(recipe).shard_bytes == 2 * 10**9
