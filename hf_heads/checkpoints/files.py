"""Files of checkpoints: tensors read lazily, folders and files that appear when they are complete."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from hf_heads.errors import HeadsError

WEIGHTS = ("*.safetensors", "*.bin", "*.h5", "*.msgpack", "*.onnx", "*.ot", "*.pt", "*.pth", "*.index.json")


class Weights(Mapping[str, Tensor]):
    """The tensors of a checkpoint folder by name, each read from disk when it is asked for.

    Raises:
        HeadsError: a file is missing, truncated or corrupted.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file_of: dict[str, Path] = {}
        index = folder / "model.safetensors.index.json"
        if index.is_file():
            names = sorted(set(_read_json(index).get("weight_map", {}).values()))
            files = [folder / name for name in names]
        else:
            files = sorted(folder.glob("*.safetensors"))
        for file in files:
            with self._open(file) as handle:
                self.file_of.update(dict.fromkeys(handle.keys(), file))

    @contextmanager
    def _open(self, file: Path) -> Iterator[Any]:
        try:
            with safe_open(file, framework="pt") as handle:
                yield handle
        except FileNotFoundError:
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

    def __iter__(self) -> Iterator[str]:
        return iter(self.file_of)

    def __len__(self) -> int:
        return len(self.file_of)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise HeadsError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(found, dict):
        raise HeadsError(f"{path} does not hold a JSON object")
    return found


def check_output(output: Path, overwrite: bool) -> None:
    """Refuse, before any work, an output folder that cannot or must not be written.

    Raises:
        HeadsError: it exists and `overwrite` is not set, or its parent is no folder.
    """
    if output.exists() and not overwrite:
        raise HeadsError(f"'{output}' exists; choose another --output or pass --overwrite")
    if output.is_symlink() or (output.exists() and not output.is_dir()):
        raise HeadsError(f"'{output}' is not a folder; choose another --output")
    parent = output.absolute().parent
    existing = next(path for path in [parent, *parent.parents] if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise HeadsError(f"cannot write into '{existing}'; choose another --output")


def check_file(path: str | None, overwrite: bool) -> None:
    """Refuse, before any work, a file that cannot or must not be written; None is no file.

    Raises:
        HeadsError: it exists and `overwrite` is not set, or its folder cannot be written into.
    """
    if path is None:
        return
    file = Path(path)
    if file.is_dir() or (file.exists() and not overwrite):
        raise HeadsError(f"'{path}' exists; choose another name or pass --overwrite")
    folder = file.absolute().parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise HeadsError(f"cannot write into '{folder}'; choose another name")


@contextmanager
def finished_folder(output: Path, overwrite: bool) -> Iterator[Path]:
    """A folder to write into that becomes `output` when, and only when, the `with` block ends without an error.

    The folder lies beside `output` under a hidden name; an error or an interrupt removes it, a kill leaves it there
    under that name, and `output` is never half-written.

    Raises:
        HeadsError: the disk is full or not writable.
    """
    check_output(output, overwrite)
    output = output.absolute()
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{output.name}.partial-", dir=output.parent))
        try:
            yield partial
            _open_to_readers(partial)
            if output.exists():
                old = Path(tempfile.mkdtemp(prefix=f".{output.name}.old-", dir=output.parent))
                output.rename(old / output.name)
                partial.rename(output)
                shutil.rmtree(old, ignore_errors=True)
            else:
                partial.rename(output)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        if getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error):
            raise HeadsError(f"the disk is full; nothing was left at '{output}'") from None
        raise HeadsError(f"cannot write '{output}': {error}; nothing was left there") from None


def _open_to_readers(folder: Path) -> None:
    """The permissions that plainly written files would have; temporary ones are private."""
    mask = os.umask(0)
    os.umask(mask)
    folder.chmod(0o777 & ~mask)
    for path in folder.rglob("*"):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)
