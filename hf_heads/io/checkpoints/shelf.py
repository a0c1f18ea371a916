"""A shelf for weights: those of a large model stay in files, and so do those that a conversion makes of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from hf_heads.io.checkpoints.files import write_failure
from hf_heads.io.checkpoints.hidden import beside
from hf_heads.io.checkpoints.pages import give_back, trim_heap

ROOM = 2**28  # bytes


class Shelf:
    """Keeps a model's weights in mapped files, and no more than some of their pages in memory.

    To be used in a `with` block, after which nothing of it may be used. The numbers of a model are the same with and
    without a shelf, and a model that is no larger than its room never leaves the memory.

    Args:
        output: what is being made; a hidden folder beside it, made when it is needed first, is the shelf.
        room: bytes of new tensors that stay in memory, and of mapped pages; `ROOM` when None.
    """

    def __init__(self, output: Path, room: int | None = None) -> None:
        self.output, self.room = output, ROOM if room is None else room
        self._kept = self._touched = self._count = 0
        self._files: set[str] = set()
        self._known: dict[int, nn.Parameter] = {}
        self._seen: set[int] = set()
        self._folder: Path | None = None
        self._large = False

    def __enter__(self) -> Shelf:
        self._stack = ExitStack()
        return self

    def __exit__(self, *_: Any) -> None:
        self._stack.close()

    @property
    def large(self) -> bool:
        """Whether the watched model is larger than the room, so that no copy of it can be in memory."""
        return self._large

    @property
    def folder(self) -> Path:
        """The hidden folder."""
        if self._folder is None:
            self.output.parent.mkdir(parents=True, exist_ok=True)
            self._folder = self._stack.enter_context(beside(self.output, lambda hidden: hidden.mkdir(mode=0o700)))
        return self._folder

    def add_files(self, files: Iterable[Path]) -> None:
        """Hand back pages of these files as well."""
        self._files |= {str(file.resolve()) for file in files}

    def watch(self, model: nn.Module) -> None:
        """Hand back pages while a model runs; its tensors stay where they are.

        Copies of the model are watched with it.
        """
        self._known |= {id(one): one for one in model.parameters()}
        self._large = _bytes(self._known.values()) > self.room
        for part in model.modules() if self._large else ():
            if part._parameters:
                self._watch(part)

    def _watch(self, module: nn.Module) -> None:
        # A function and no method: it stays the same where a model is copied.
        def done(module: nn.Module, *_: Any) -> None:
            self.touched(one for one in module._parameters.values() if one is not None)

        module.register_forward_hook(done)

    def touched(self, tensors: Iterable[Tensor]) -> None:
        """Say what was read; pages are handed back where that is more than there is room for."""
        for one in tensors:
            if id(one) not in self._seen:
                self._seen.add(id(one))
                self._touched += _bytes([one])
        if self._touched > self.room:
            self.release()

    def read(self, tensor: Tensor) -> None:
        """Say what will be read, once: pages are handed back before, where there is no room for it beside them."""
        if self._touched + _bytes([tensor]) > self.room:
            self.release()
        self._touched += _bytes([tensor])

    def release(self) -> None:
        """Hand back all pages."""
        self._seen.clear()
        self._touched = 0
        give_back(self._files)

    def put(self, *modules: nn.Module) -> None:
        """Move what is new in some modules to the shelf: parameters that no watched model has."""
        parts = {id(part): part for module in modules for part in module.modules()}.values()
        new = {id(one): one for part in parts for one in part._parameters.values() if one is not None}
        new = {key: one for key, one in new.items() if key not in self._known}
        kept = self.keep({str(key): one.detach() for key, one in new.items()})
        moved = {key: nn.Parameter(kept[str(key)], one.requires_grad) for key, one in new.items()}
        self._known |= {id(one): one for one in moved.values()}
        for part in parts:
            places = {name: moved[id(one)] for name, one in part._parameters.items() if id(one) in moved}
            part._parameters.update(places)
            if places and self._large and not part._forward_hooks:
                self._watch(part)
        if self._large:
            self.release()
            trim_heap()

    def keep(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The same numbers, in a file where memory is used up; what is on another device stays there.

        Raises:
            HeadsError: the disk is full or not writable.
        """
        size = _bytes(tensors.values())
        if any(one.device.type != "cpu" for one in tensors.values()):
            return dict(tensors)
        if self._kept + size <= self.room:
            self._kept += size
            return dict(tensors)
        self._count += 1
        file = self.folder / f"{self._count}.safetensors"
        try:
            save_file({name: one.contiguous() for name, one in tensors.items()}, file)
        except (OSError, SafetensorError) as error:
            raise write_failure(self.output, error) from None
        self.add_files([file])
        with safe_open(file, framework="pt") as handle:
            return {name: handle.get_tensor(name) for name in tensors}


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(one.numel() * one.element_size() for one in tensors)
