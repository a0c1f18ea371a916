"""Where activations are while their batches wait: in memory up to a bound, beyond it in mapped files.

A tensor that moves to a file stays the same tensor: who holds it, the frame of a forward pass that waits among them,
reads the file's pages from then on. A file's name is gone as soon as it is mapped, and the file with its tensor.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from hf_heads.core.errors import HeadsError
from hf_heads.core.vocabulary import ACTIVATIONS
from hf_heads.io.checkpoints.pages import hand_back, move_to_file, trim_heap
from hf_heads.jobs.conversion.stepping import Stop

ROOM = 2**30  # bytes, of the original's activations and the converted model's together
_SMALL = 2**14  # bytes; what is smaller stays in memory
_FREED = 2**26  # bytes that moved, after which glibc is asked to hand back what it keeps of them


class Activations:
    """Keeps the tensors of batches that wait at a block, of several models.

    To be used in a `with` block. Results are the same wherever activations are.

    Args:
        where: one of `ACTIVATIONS`.
        folder: gives a folder for the files when it is needed first; one of the system's temporary ones when None.
        room: bytes that stay in memory with `auto`; `ROOM` when None.

    Raises:
        HeadsError: there is no such place.
    """

    def __init__(self, where: str = "auto", folder: Callable[[], Path] | None = None, room: int | None = None) -> None:
        if where not in ACTIVATIONS:
            raise HeadsError(f"activations_on is {where!r}, expected one of {', '.join(ACTIVATIONS)}")
        self.where, self.room, self.moved = where, ROOM if room is None else room, 0
        self._make, self._folder, self._held, self._freed = folder, Path(), 0, 0

    def __enter__(self) -> Activations:
        self._stack = ExitStack()
        return self

    def __exit__(self, *_: Any) -> None:
        self._stack.close()

    def rest(self, stop: Stop) -> None:
        """Say that nobody computes with what a batch holds for now."""
        if self.where == "memory":
            return
        for one in _tensors([stop.arguments, stop.residual, stop.result]):
            if id(one) in stop.resting:
                continue
            stop.resting[id(one)] = one
            size = one.numel() * one.element_size()
            if one.untyped_storage().filename is not None or not _may_move(one, stop):
                continue
            if self.where == "auto" and self._held + size <= self.room:
                self._held, stop.held = self._held + size, stop.held + size
            else:
                self._move(one)
        for one in stop.resting.values():
            if one.untyped_storage().filename is not None:
                hand_back(one)

    def leave(self, stop: Stop | None) -> None:
        """Say that a batch goes on from where it has waited."""
        if stop is not None:
            self._held -= stop.held

    def _move(self, tensor: Tensor) -> None:
        """Give a tensor the same numbers in a file.

        Raises:
            HeadsError: the disk is full or not writable.
        """
        size = tensor.untyped_storage().nbytes()
        self.moved += 1
        try:
            if self.moved == 1:
                self._folder = self._find_folder()
            move_to_file(tensor, self._folder / f"activations-{self.moved}")
        except OSError as error:
            raise HeadsError(
                f"cannot keep activations in '{self._folder}': {error.strerror}; take fewer or shorter examples, or "
                "--activations-on memory"
            ) from None
        self._freed += size
        if self._freed > _FREED:
            trim_heap()
            self._freed = 0

    def _find_folder(self) -> Path:
        if self._make is not None:
            return self._make()
        found = tempfile.TemporaryDirectory(prefix="hf-heads-", ignore_cleanup_errors=True)
        return Path(self._stack.enter_context(found))


def _may_move(tensor: Tensor, stop: Stop) -> bool:
    """Whether a tensor is on the CPU, large and all of its memory; the batch itself is its owner's."""
    size = tensor.numel() * tensor.element_size()
    return (
        tensor.device.type == "cpu"
        and size >= _SMALL
        and size == tensor.untyped_storage().nbytes()
        and not tensor.requires_grad
        and all(tensor.untyped_storage().data_ptr() != one.untyped_storage().data_ptr() for one in stop.batch.values())
    )


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in nested containers and in the arguments of calls that are still to be made."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _tensors(one)
    elif isinstance(value, partial):
        yield from _tensors([value.args, value.keywords])
