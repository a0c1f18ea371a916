"""Weights and their companions into a new folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from hf_heads.checkpoints.files import WEIGHTS

_NOT_COPIED = (*WEIGHTS, "config.json", "README.md", "heads_remote.py", "heads_report.json", ".*")
_SHARD_BYTES = 5 * 10**9


def write_weights(
    folder: Path, names: Iterable[str], get: Callable[[str], Tensor], dtype: torch.dtype | None = None
) -> None:
    """Write tensors as safetensors, in shards of at most 5 GB of which only one is in memory at a time.

    Args:
        folder: where to.
        names: the tensors' names, in the order in which they are written.
        get: reads or makes a tensor by name.
        dtype: cast floating-point tensors to this.
    """
    shards: list[list[str]] = []
    shard: dict[str, Tensor] = {}
    size = 0

    def flush() -> None:
        nonlocal shard, size
        if shard:
            shards.append(list(shard))
            save_file(shard, folder / f"shard-{len(shards)}.safetensors", metadata={"format": "pt"})
        shard, size = {}, 0

    total = 0
    for name in names:
        tensor = get(name).detach().cpu()
        if dtype is not None and tensor.is_floating_point():
            tensor = tensor.to(dtype)
        amount = tensor.numel() * tensor.element_size()
        if size and size + amount > _SHARD_BYTES:
            flush()
        shard[name] = tensor.contiguous()
        size += amount
        total += amount
    flush()
    if len(shards) == 1:
        (folder / "shard-1.safetensors").rename(folder / "model.safetensors")
        return
    weight_map = {}
    for number, held in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        (folder / f"shard-{number}.safetensors").rename(folder / file)
        weight_map.update(dict.fromkeys(held, file))
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def copy_companions(source: Path, target: Path) -> None:
    """Copy everything of a checkpoint that is not weights, config or model card: tokenizer, processor, pooling."""

    def left_out(folder: str, names: list[str]) -> set[str]:
        top = Path(folder) == source
        patterns = _NOT_COPIED if top else WEIGHTS
        unwanted = {name for name in names if any(Path(name).match(pattern) for pattern in patterns)}
        if top:  # folders of other formats (onnx, openvino) hold the unconverted model
            unwanted |= {name for name in names if name in {"onnx", "openvino", "coreml"}}
        return unwanted

    shutil.copytree(source, target, ignore=left_out, dirs_exist_ok=True, copy_function=shutil.copyfile)
