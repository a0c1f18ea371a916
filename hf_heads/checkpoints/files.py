"""Folders and files that appear when they are complete; torch is not needed."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from hf_heads.errors import HeadsError

WEIGHTS = ("*.safetensors", "*.bin", "*.h5", "*.msgpack", "*.onnx", "*.ot", "*.pt", "*.pth", "*.index.json")


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
