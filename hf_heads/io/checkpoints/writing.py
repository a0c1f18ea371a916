"""Finished checkpoint folders: companions, weights, report, model card and, last, the config."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from hf_heads.io.checkpoints.card import write_card
from hf_heads.io.checkpoints.contents import INDEX, checkpoint_files, is_companion
from hf_heads.io.checkpoints.files import Place, finished_folder, write_file
from hf_heads.io.checkpoints.record import published, write_record
from hf_heads.io.checkpoints.shelf import Shelf
from hf_heads.io.checkpoints.sources import Source
from hf_heads.io.checkpoints.tensors import TensorNames, block_tensors, whole_tensors
from hf_heads.io.checkpoints.weights import Weights, digest

SHARD_BYTES = 5 * 10**9


def write_checkpoint(
    output: Place,
    source: Source,
    model: PreTrainedModel,
    names: TensorNames,
    record: dict[str, Any],
    *,
    original: Source | None = None,
    whole: bool = False,
    dtype: torch.dtype | None = None,
    shard_bytes: int = SHARD_BYTES,
    shelf: Shelf | None = None,
) -> None:
    """Write a checkpoint folder; what is no attention goes from file to file, by name and bit by bit.

    Args:
        output: the folder to make, from `check_output`; it appears when it is complete.
        source: the checkpoint that `model` was loaded from.
        model: converted; its config learns the dtype of what is written.
        names: of the tensors, as `model` was when it was loaded.
        record: the content of `heads_report.json`.
        original: what the model card names as the model this was made from; `source` when None.
        whole: take all tensors from the model, not its blocks alone.
        dtype: cast floating-point tensors to this; they stay as they are in the source when None.
        shard_bytes: of a file of weights, at most, but for a tensor that is larger by itself.
        shelf: where the model's weights are, if on one.

    Raises:
        HeadsError: see `finished_folder`.
    """
    record = published(record)
    with finished_folder(output) as folder:
        copy_companions(source.folder, folder)
        weights = Weights(source.folder)
        if shelf is not None:
            shelf.add_files(weights.file_of.values())
        made = whole_tensors(model, names, weights) if whole else block_tensors(model, names)
        new = {name: (tensor, kind) for name, tensor, kind in made}

        def get(name: str) -> Tensor:
            return new[name][0].to(new[name][1]) if name in new else weights[name]

        written = write_weights(folder, sorted({*names.outside, *new}), get, dtype, shard_bytes, shelf)
        record = {**record, "sha256": written}
        model.config.dtype = dtype or next(iter(names.dtypes.values()), torch.float32)
        write_card(folder, original or source, record, record.get("recipe"))
        write_record(folder, record)
        model.config.save_pretrained(folder)  # last: a folder without a config is no checkpoint


def write_weights(
    folder: Path,
    names: Iterable[str],
    get: Callable[[str], Tensor],
    dtype: torch.dtype | None = None,
    shard_bytes: int = SHARD_BYTES,
    shelf: Shelf | None = None,
) -> dict[str, str]:
    """Write tensors as safetensors, in shards of which only one is in memory at a time.

    Args:
        folder: where to.
        names: the tensors' names, in the order in which they are written.
        get: reads or makes a tensor by name.
        dtype: cast floating-point tensors to this.
        shard_bytes: see `write_checkpoint`.
        shelf: where the tensors are, if on one.

    Returns:
        The digest of every tensor as it was written.
    """
    digests: dict[str, str] = {}
    shards: list[list[str]] = []
    shard: dict[str, Tensor] = {}
    size = 0

    def flush() -> None:
        nonlocal shard, size
        if shard:
            shards.append(list(shard))
            save_file(shard, folder / f"shard-{len(shards)}.safetensors", metadata={"format": "pt"})
        shard, size = {}, 0
        if shelf is not None:
            shelf.release()

    total = 0
    for name in names:
        tensor = get(name).detach().cpu()
        if dtype is not None and tensor.is_floating_point():
            tensor = tensor.to(dtype)
        amount = tensor.numel() * tensor.element_size()
        if size and size + amount > shard_bytes:
            flush()
        shard[name] = tensor.contiguous()
        digests[name] = digest(tensor)
        if shelf is not None:
            shelf.touched([tensor])
        size += amount
        total += amount
    flush()
    if len(shards) == 1:
        (folder / "shard-1.safetensors").rename(folder / "model.safetensors")
        return digests
    weight_map = {}
    for number, held in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        (folder / f"shard-{number}.safetensors").rename(folder / file)
        weight_map.update(dict.fromkeys(held, file))
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    write_file(folder / INDEX, json.dumps(index, indent=2) + "\n")
    return digests


def copy_companions(source: Path, target: Path) -> None:
    """Copy what goes along with a checkpoint's weights: tokenizer, processor, generation, pooling, licence."""
    for path in filter(is_companion, checkpoint_files(source)):
        (target / path).parent.mkdir(exist_ok=True)
        shutil.copyfile(source / path, target / path)
