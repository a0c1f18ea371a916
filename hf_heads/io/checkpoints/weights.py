"""The tensors of a checkpoint's files, read lazily."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hf_heads.core.errors import HeadsError
from hf_heads.io.checkpoints.sources import weight_files


class Weights(Mapping[str, Tensor]):
    """The tensors that transformers reads from a checkpoint folder, each read from disk when it is asked for.

    Raises:
        HeadsError: a file is missing, truncated or corrupted.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file_of: dict[str, Path] = {}
        for file in weight_files(folder):
            with self._open(file) as handle:
                self.file_of.update(dict.fromkeys(handle.keys(), file))

    @contextmanager
    def _open(self, file: Path) -> Iterator[Any]:
        try:
            with safe_open(file, framework="pt") as handle:
                yield handle
        except FileNotFoundError:
            if file.exists():  # safetensors says the same of a file that it may not read
                raise HeadsError(f"{file.name} in '{self.folder}' cannot be read: permission denied") from None
            raise HeadsError(f"{file.name} is missing from '{self.folder}'; download the checkpoint again") from None
        except (SafetensorError, OSError) as error:
            raise HeadsError(f"{file.name} in '{self.folder}' is truncated or corrupted: {error}") from None

    def __getitem__(self, name: str) -> Tensor:
        with self._open(self.file_of[name]) as handle:
            return handle.get_tensor(name)

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, without reading the tensor."""
        with self._open(self.file_of[name]) as handle:
            return tuple(handle.get_slice(name).get_shape())

    def kind(self, name: str) -> str:
        """A tensor's dtype as safetensors calls it, such as `BF16`, without reading the tensor."""
        with self._open(self.file_of[name]) as handle:
            return str(handle.get_slice(name).get_dtype())

    def __iter__(self) -> Iterator[str]:
        return iter(self.file_of)

    def __len__(self) -> int:
        return len(self.file_of)


_PIECE = 2**24  # numbers that are looked at together


def pieces(tensor: Tensor) -> tuple[Tensor, ...]:
    """A tensor's numbers in parts, for what would otherwise make copies of its size."""
    return tensor.detach().flatten().split(_PIECE)


def digest(tensor: Tensor) -> str:
    """The SHA-256 of a tensor's bits, with its type and shape."""
    found = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()
