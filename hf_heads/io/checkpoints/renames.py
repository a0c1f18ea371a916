"""Renames that the system offers and Python does not: never onto something, and two names exchanged in one step."""

from __future__ import annotations

import ctypes
import errno
import os
from functools import cache
from pathlib import Path
from typing import Any

_HERE = -100  # AT_FDCWD: paths are as the process sees them
_NO_REPLACE, _EXCHANGE = 1, 2
_UNKNOWN = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)  # what systems and file systems without such a rename answer


def rename_new(source: Path, target: Path) -> None:
    """Rename, but not onto an existing file or folder; plain `os.rename` replaces files and empty folders.

    Raises:
        FileExistsError: there is something at `target`.
    """
    if not _rename(source, target, _NO_REPLACE):
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
        os.rename(source, target)


def exchange(one: Path, other: Path) -> bool:
    """Let two paths change places, so that at no time either is missing; False where that cannot be done."""
    return _rename(one, other, _EXCHANGE)


def _rename(source: Path, target: Path, flag: int) -> bool:
    """Linux's renameat2; False where it is unknown."""
    function = _renameat2()
    if function is None:
        return False
    if function(_HERE, os.fsencode(source), _HERE, os.fsencode(target), flag) == 0:
        return True
    code = ctypes.get_errno()
    if code in _UNKNOWN:
        return False
    raise OSError(code, os.strerror(code), str(target))


@cache
def _renameat2() -> Any:
    try:
        function = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError, TypeError):
        return None
    function.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
    return function
