"""Folders and files that appear when they are complete; torch is not needed."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path, PurePath

from safetensors import SafetensorError

from hf_heads.core.errors import HeadsError
from hf_heads.io.checkpoints.contents import checkpoint_files, not_of_a_checkpoint
from hf_heads.io.checkpoints.hidden import beside, clear_leftovers, hidden_name, hold, release, remove
from hf_heads.io.checkpoints.renames import exchange, rename_new

_LONGEST = 200  # bytes of a name, so that hidden names beside it stay within the 255 of common file systems
Strange = Callable[[Path], str | None]  # what a folder holds that is not ours to delete


@dataclass(frozen=True)
class Place:
    """Where a folder is to appear, and what was there when that was settled.

    Attributes:
        path: absolute.
        found: device and number of the folder that may be replaced; None where there was nothing.
        strange: see `check_output`.
    """

    path: Path
    found: tuple[int, int] | None
    strange: Strange


def check_output(output: Path, overwrite: bool, strange: Strange = not_of_a_checkpoint) -> Place:
    """Refuse, before any work, an output folder that cannot or must not be written; clears what killed runs left.

    Args:
        output: the folder to make.
        overwrite: replace one that is there.
        strange: names something in a folder that is not ours to delete.

    Raises:
        HeadsError: it exists and `overwrite` is not set, it holds other files, it is the working directory or holds
            it, or its parent is not a folder.
    """
    path = output.absolute()
    if len(os.fsencode(path.name)) > _LONGEST:
        raise HeadsError(f"'{path.name}' is too long for a name; choose another --output")
    clear_leftovers(path)
    if path.exists() and not overwrite:
        raise HeadsError(f"'{output}' exists; choose another --output or pass --overwrite")
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise HeadsError(f"'{output}' is not a folder; choose another --output")
    if path.exists():
        if Path.cwd().is_relative_to(path.resolve()):
            raise HeadsError(f"'{output}' is or holds the working directory; choose another --output")
        _check_strange(path, strange)
    existing = next(one for one in path.parents if one.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise HeadsError(f"cannot write into '{existing}'; choose another --output")
    return Place(path, _identity(path), strange)


def check_apart(output: Path, source: Path, what: str) -> None:
    """Refuse an output that is a folder to be read, holds it, or lies in it.

    Args:
        output: the folder to make.
        source: the folder to be read.
        what: it is, for the error.

    Raises:
        HeadsError: says which of the three it is.
    """
    here, there = output.resolve(), source.resolve()
    if here == there:
        raise HeadsError(f"'{output}' is the {what}; choose another --output")
    if there.is_relative_to(here):
        raise HeadsError(f"'{output}' holds the {what} '{source}'; choose another --output")
    if here.is_relative_to(there):
        raise HeadsError(f"'{output}' lies in the {what} '{source}'; choose another --output")


def check_file(path: str | None, overwrite: bool) -> None:
    """Refuse, before any work, a file that cannot or must not be written; None is no file.

    Raises:
        HeadsError: it exists and `overwrite` is not set, it is something else than a file, or its folder cannot be
            written into.
    """
    if path is None:
        return
    file = Path(path).absolute()
    if file.is_dir() or (file.exists() and not overwrite):
        raise HeadsError(f"'{path}' exists; choose another name or pass --overwrite")
    if file.exists() and not file.is_file():
        raise HeadsError(f"'{path}' is not a regular file; choose another name")
    if (file.parent / "config.json").is_file() and PurePath(file.name) in checkpoint_files(file.parent):
        raise HeadsError(f"'{path}' is part of a checkpoint; choose another name")
    if len(os.fsencode(file.name)) > _LONGEST:
        raise HeadsError(f"'{file.name}' is too long for a name; choose another")
    if not file.parent.is_dir() or not os.access(file.parent, os.W_OK):
        raise HeadsError(f"cannot write into '{file.parent}'; choose another name")


def write_file(path: Path, content: str | bytes) -> None:
    """Write a file beside its place, and put it there when it is complete; what was there is replaced in one step.

    Raises:
        HeadsError: the disk is full or not writable; what was there is as it was.
    """
    path = path.absolute()
    try:
        clear_leftovers(path)
        with beside(path, lambda hidden: hidden.touch(exist_ok=False)) as partial:
            partial.write_bytes(content.encode() if isinstance(content, str) else content)
            _sync(partial)
            partial.replace(path)
    except OSError as error:
        raise write_failure(path, error) from None


@contextmanager
def finished_folder(place: Place) -> Iterator[Path]:
    """A folder to write into that becomes the output when, and only when, the `with` block ends without an error.

    The folder lies beside the output under a hidden name; an error or an interrupt removes it, a kill leaves it there
    until the next run, and the output is never half-written. Where there was one, it is the old or the new at any
    time.

    Args:
        place: from `check_output`, before the work began.

    Raises:
        HeadsError: the disk is full or not writable, or something appeared at the output's place in the meantime.
    """
    output = place.path
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        clear_leftovers(output)
        with beside(output, lambda hidden: hidden.mkdir(mode=0o700)) as partial:
            yield partial
            _open_to_readers(partial)
            for path in (*partial.rglob("*"), partial):
                _sync(path)
            _put(partial, place)
            _sync(output.parent)
    except (OSError, SafetensorError) as error:
        raise write_failure(output, error) from None


def _put(partial: Path, place: Place) -> None:
    """Move a complete folder to its place; where something else has appeared there, to another one."""
    output, now = place.path, _identity(place.path)
    if now is None or now != place.found:
        try:
            rename_new(partial, output)
        except FileExistsError:
            raise HeadsError(
                f"'{output}' appeared while this ran and was left alone; the result is in '{_spare(partial, output)}'"
            ) from None
        return
    try:
        _check_strange(output, place.strange)
    except HeadsError as error:
        raise HeadsError(f"{error}; the result is in '{_spare(partial, output)}'") from None
    if exchange(partial, output):
        return  # the old one has the hidden name now, and is removed with it
    held, old = hold(output), hidden_name(output, "old")
    output.rename(old)  # a kill from here on leaves the old one to the next run, which puts it back
    partial.rename(output)
    remove(old)
    release(held)


def _spare(partial: Path, output: Path) -> Path:
    """Move a complete folder to the first free name like the output's."""
    for number in count(2):
        spare = output.with_name(f"{output.name}-{number}")
        try:
            rename_new(partial, spare)
        except FileExistsError:
            continue
        return spare
    raise AssertionError("numbers do not end")


def _check_strange(folder: Path, strange: Strange) -> None:
    if name := strange(folder):
        raise HeadsError(f"'{folder}' holds '{name}', which hf-heads did not write; choose another --output")


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def write_failure(path: Path, error: Exception) -> HeadsError:
    """What to say of a write that failed."""
    full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)
    what = "the disk is full" if full else f"cannot write '{path}': {error}"
    where = f" at '{path}'" if full else " there"
    left = "what was" + where + " is untouched" if path.exists() else "nothing was left" + where
    return HeadsError(f"{what}; {left}")


def _sync(path: Path) -> None:
    """See to it that a file or folder is on the disk."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:  # folders cannot be opened everywhere
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def _open_to_readers(folder: Path) -> None:
    """The permissions that plainly written files would have; temporary ones are private."""
    mask = os.umask(0)
    os.umask(mask)
    folder.chmod(0o777 & ~mask)
    for path in folder.rglob("*"):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)
