"""Hidden names beside what is being written: held by the process that writes, cleared once that process is dead."""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

try:
    import fcntl
except ImportError:  # Windows: nothing can be held there, and so nothing is cleared
    fcntl = None  # type: ignore[assignment]


def hold(path: Path, wait: bool = False) -> int | None:
    """Hold a file or folder until the descriptor is closed or the process ends, however it ends.

    Args:
        path: what to hold.
        wait: until another process lets it go.

    Returns:
        A descriptor to close; None where the system cannot hold such a path, as on some network disks.

    Raises:
        BlockingIOError: another process holds it.
    """
    descriptor = None
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        release(descriptor)
        raise
    except (OSError, AttributeError):
        release(descriptor)
        return None
    return descriptor


def release(descriptor: int | None) -> None:
    """Let go of what `hold` holds."""
    if descriptor is not None:
        os.close(descriptor)


def hidden_name(path: Path, kind: Literal["partial", "old"]) -> Path:
    """A new hidden name beside a path."""
    return path.with_name(f".{path.name}.{kind}-{secrets.token_hex(4)}")


@contextmanager
def beside(path: Path, make: Callable[[Path], object]) -> Iterator[Path]:
    """A new hidden file or folder beside a path, held by this process; what is left of it in the end is removed."""
    while True:
        hidden = hidden_name(path, "partial")
        make(hidden)
        held = hold(hidden, wait=True)
        if os.path.lexists(hidden):
            break
        release(held)  # another process cleared it before it was held
    try:
        yield hidden
    finally:
        remove(hidden)
        release(held)


def clear_leftovers(path: Path) -> None:
    """Remove what dead processes left beside a path; what they had moved away from it goes back where it is missing."""
    ours = re.compile(rf"\.{re.escape(path.name)}\.(partial|old)-[0-9a-f]{{8}}")
    try:
        names = sorted(os.listdir(path.parent))
    except OSError:
        return
    for name in names:
        found = ours.fullmatch(name)
        if found is None:
            continue
        try:
            held = hold(path.with_name(name))
        except BlockingIOError:
            continue
        if held is None:
            continue
        if found[1] == "old" and not os.path.lexists(path):
            with suppress(OSError):
                os.rename(path.with_name(name), path)
        else:
            remove(path.with_name(name))
        release(held)


def remove(path: Path) -> None:
    """Remove a file or a folder with all that it holds, as far as that goes."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)
