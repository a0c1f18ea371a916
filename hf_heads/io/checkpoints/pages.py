"""Pages of mapped files: which of them are in memory, and how a process hands them back before the system takes them.

A tensor of a safetensors file is mapped: its pages are read from the file when they are used first, and stay until
memory runs short. Only Linux says which pages are there; elsewhere they stay that long.
"""

from __future__ import annotations

import ctypes
import mmap
import re
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_MAPS = Path("/proc/self/smaps")
_START = re.compile(r"([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ \S+ +(\S.*)")


@dataclass
class Mapped:
    """A part of a file that is mapped into this process.

    Attributes:
        file: its name.
        start, end: addresses.
        resident: bytes of it that are in memory.
        written: bytes of it that differ from the file, since something wrote to them.
    """

    file: str
    start: int
    end: int
    resident: int = 0
    written: int = 0


def mapped_parts(files: Collection[str]) -> Iterator[Mapped]:
    """What is mapped of some files, given by absolute names without links; nothing where the system does not say."""
    try:
        text = _MAPS.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return
    part: Mapped | None = None
    for line in text.splitlines():
        if line[:1].islower() or line[:1].isdigit():
            if part is not None:
                yield part
            found = _START.fullmatch(line)
            part = Mapped(found[3], int(found[1], 16), int(found[2], 16)) if found and found[3] in files else None
        elif part is not None and line.startswith("Rss:"):
            part.resident = 1024 * int(line.split()[1])
        elif part is not None and line.startswith("Anonymous:"):
            part.written = 1024 * int(line.split()[1])
    if part is not None:
        yield part


def give_back(files: Collection[str]) -> None:
    """Hand back the pages of mapped files; who uses them again reads them again, mostly from the system's cache.

    What something has written to stays: its pages are nowhere else.
    """
    advise = _function("madvise", ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    for part in mapped_parts(files) if advise else ():
        if part.resident and not part.written:
            advise(part.start, part.end - part.start, mmap.MADV_DONTNEED)


def hand_back(tensor: Tensor) -> None:
    """Hand back the pages of a tensor that is alone in a file, mapped so that what is written goes to the file."""
    advise = _function("madvise", ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    start = tensor.untyped_storage().data_ptr()
    if advise and start % mmap.PAGESIZE == 0:
        advise(start, tensor.untyped_storage().nbytes(), getattr(mmap, "MADV_DONTNEED", 4))


def move_to_file(tensor: Tensor, path: Path) -> None:
    """Give a tensor, which is all of its memory, the same numbers in a new file.

    The file's name is gone at once, and the file with the tensor. Not written by the mapping: there a full disk would
    end the process.

    Raises:
        OSError: the disk is full or not writable.
    """
    storage = tensor.untyped_storage()
    with path.open("wb") as file:
        file.write(torch.empty(0, dtype=torch.uint8).set_(storage).numpy().data)
    mapped: Any = torch.UntypedStorage.from_file(str(path), True, storage.nbytes())
    with suppress(OSError):  # Windows: what is mapped keeps its name, and goes with the folder
        path.unlink()
    tensor.data = torch.empty(0, dtype=tensor.dtype).set_(mapped, 0, tensor.shape, tensor.stride())


def trim_heap() -> None:
    """Hand back memory that was freed, which glibc keeps for later otherwise."""
    trim = _function("malloc_trim", ctypes.c_size_t)
    if trim is not None:
        trim(0)


@cache
def _function(name: str, *types: Any) -> Any:
    """A function of the C library, None where there is none of this name."""
    try:
        function = getattr(ctypes.CDLL(None), name)
    except (OSError, AttributeError, TypeError):
        return None
    function.argtypes = types
    return function
