"""Several processes at one job: who does what, and who waits."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from accelerate import PartialState
from torch import Tensor
from transformers import PreTrainedModel

from hf_heads.core.errors import HeadsError
from hf_heads.core.vocabulary import RANDOM
from hf_heads.io.checkpoints.sources import Source
from hf_heads.io.data.calibration import Data, calibration_data
from hf_heads.io.data.choice import CalibrationChoice
from hf_heads.io.data.written import is_language_model

_Made = TypeVar("_Made")


@dataclass(frozen=True)
class Team:
    """The processes of one launch, all of which see the same files.

    Attributes:
        rank: which of them this one is.
        size: how many there are.
    """

    rank: int = 0
    size: int = 1

    @property
    def main(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    def share(self, count: int) -> range:
        """The indices of this process's part of so many things."""
        return range(self.rank, count, self.size)

    def share_by(self, costs: Sequence[float]) -> list[int]:
        """The indices of this process's part of things that cost so much: the dearest first, each to who has least."""
        loads, own = [0.0] * self.size, []
        for index in sorted(range(len(costs)), key=lambda one: -costs[one]):
            least = loads.index(min(loads))
            loads[least] += costs[index]
            own += [index] if least == self.rank else []
        return own

    def wait(self) -> None:
        """Go on when all have come here."""
        if self.size > 1:
            PartialState().wait_for_everyone()

    def agree(self, word: Any) -> Any:
        """What the main process says; plain values and tensors on the CPU."""
        words = [word]
        if self.size > 1:
            torch.distributed.broadcast_object_list(words, 0, device=PartialState().device)
        return words[0]

    def gather(self, own: Any) -> list[Any]:
        """What each process gives, in their order; plain values."""
        if self.size == 1:
            return [own]
        found: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(found, own)
        return found

    def sum(self, *own: Tensor) -> list[Tensor]:
        """The sums of the tensors that all processes give, the same to the bit in each of them; on the CPU."""
        if self.size == 1:
            return list(own)
        found = [one.detach().to(PartialState().device, copy=True).contiguous() for one in own]
        for one in found:
            torch.distributed.all_reduce(one)
        return [one.cpu() for one in found]

    def once(self, make: Callable[[], _Made]) -> _Made:
        """What the main process makes, for all; meanwhile it has the threads of those on its machine, which wait.

        Args:
            make: gives plain values and tensors on the CPU.

        Raises:
            HeadsError: `make` does, in every process.
        """
        if self.size == 1:
            return make()
        found: Any = None
        if self.main:
            with _times_threads(int(os.environ.get("LOCAL_WORLD_SIZE", "1"))):
                try:
                    found = make()
                except HeadsError as error:
                    found = error
        found = self.agree(found)
        if isinstance(found, HeadsError):
            raise found
        return cast(_Made, found)

    def lead(self, make: Callable[[], _Made], parts: Mapping[str, Callable[..., Any]]) -> _Made:
        """What the main process makes, for all, while the others join in the parts that it asks for.

        Args:
            make: gives plain values and tensors on the CPU; it calls `all_do` where all have to do something.
            parts: what it may ask for, by name.
        """
        if self.size == 1:
            return make()
        if self.main:
            found = make()
            self.agree(None)
            return cast(_Made, self.agree(found))
        while (asked := self.agree(None)) is not None:
            name, values = asked
            parts[name](*values)
        return cast(_Made, self.agree(None))

    def all_do(self, parts: Mapping[str, Callable[..., Any]], name: str, *values: Any) -> Any:
        """A part done by all, which the main process asks for; what it gives there."""
        if self.size > 1:
            self.agree((name, [one.cpu() if isinstance(one, Tensor) else one for one in values]))
        return parts[name](*values)

    def device(self, wanted: str) -> str:
        """The device of this process where all of them are to be on one kind."""
        return str(PartialState().device) if self.size > 1 and wanted == "cuda" else wanted


@contextmanager
def _times_threads(times: int) -> Iterator[None]:
    """So many times the threads of this process, as far as there are processors."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(before, min(before * times, os.cpu_count() or 1)))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def launched(cpu: bool) -> Team:
    """The team that `accelerate launch` or `torchrun` made; one process where there was no launch.

    Args:
        cpu: all of them compute there.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return Team()
    state = PartialState(cpu=cpu)
    return Team(state.process_index, state.num_processes)


def shared_data(
    source: Source, model: PreTrainedModel, choice: CalibrationChoice, team: Team, enough: bool = False
) -> Data:
    """What all processes calibrate on; where the model draws it, one does, since others may round otherwise.

    Raises:
        HeadsError: see `calibration_data`.
    """
    if not (RANDOM in choice.sources and is_language_model(model)):
        return calibration_data(source, model, choice, enough=enough)
    found = calibration_data(source, model, choice, enough=enough) if team.main else None
    return cast(Data, team.agree(found))
