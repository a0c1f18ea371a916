"""The tensors of a checkpoint are those that transformers reads, and no others."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertForMaskedLM

from hf_heads import HeadsError
from hf_heads.io.checkpoints.sources import resolve_source
from hf_heads.io.checkpoints.weights import Weights
from tests.support.cli import Run, check_refused


def zeros_like(file: Path) -> dict[str, torch.Tensor]:
    return {name: torch.zeros_like(tensor) for name, tensor in load_file(file).items()}


def write_index(folder: Path, files: dict[str, str]) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))


def add_other_file(folder: Path) -> None:
    save_file(zeros_like(folder / "model.safetensors"), folder / "other.safetensors")


def add_index(folder: Path) -> None:
    tensors = zeros_like(folder / "model.safetensors")
    save_file(tensors, folder / "a.safetensors")
    write_index(folder, dict.fromkeys(tensors, "a.safetensors"))


def add_variant(folder: Path) -> None:
    save_file(zeros_like(folder / "model.safetensors"), folder / "model.fp16.safetensors")


def shards_with_a_tensor_twice(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    save_file(tensors, folder / "a.safetensors")
    save_file({name: tensor + 1 for name, tensor in list(tensors.items())[:3]}, folder / "b.safetensors")
    first, *others = tensors
    write_index(folder, {**dict.fromkeys(others, "a.safetensors"), first: "b.safetensors"})


@pytest.mark.parametrize("change", [add_other_file, add_index, add_variant, shards_with_a_tensor_twice])
def test_what_is_read_is_what_transformers_reads(bert_folder: Path, change: Callable[[Path], None]):
    change(bert_folder)
    found = Weights(bert_folder)
    model = BertForMaskedLM.from_pretrained(bert_folder)
    assert found.keys() == model.state_dict().keys() - {
        "cls.predictions.decoder.weight",
        "cls.predictions.decoder.bias",
    }
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in found.items())


def test_a_file_beside_the_checkpoint_supplies_nothing_to_a_conversion(bert_folder: Path, run: Run, tmp_path: Path):
    wanted = load_file(bert_folder / "model.safetensors")
    add_other_file(bert_folder)
    options = ("--to", "collab", "--rank", 10, "--calibrate", "none")
    assert run("convert", bert_folder, *options, "--output", tmp_path / "out").code == 0
    found = load_file(tmp_path / "out" / "model.safetensors")
    name = "bert.embeddings.word_embeddings.weight"
    assert torch.equal(found[name], wanted[name])


def rename_weights(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "weights.safetensors")


def name_weights_in_config(folder: Path) -> None:
    entries = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**entries, "transformers_weights": "other.safetensors"}))


def add_adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")


def add_shard_of_a_process(folder: Path) -> None:
    (folder / "shard-00000-model-00001-of-00001.safetensors").write_bytes(b"")


def index_that_leaves_the_folder(folder: Path) -> None:
    rename_weights(folder)
    write_index(folder, {"x": "../weights.safetensors"})


def index_without_files(folder: Path) -> None:
    rename_weights(folder)
    write_index(folder, {})


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (rename_weights, "neither model.safetensors nor"),
        (name_weights_in_config, "other.safetensors"),
        (add_adapter, "adapter"),
        (add_shard_of_a_process, "several processes"),
        (index_that_leaves_the_folder, "which is not a file of the folder"),
        (index_without_files, "weight_map"),
    ],
)
def test_what_would_be_read_otherwise_is_refused(
    bert_folder: Path, run: Run, change: Callable[[Path], None], word: str
):
    change(bert_folder)
    with pytest.raises(HeadsError, match=word):
        Weights(resolve_source(str(bert_folder)).folder)
    check_refused(run("inspect", bert_folder), word)
