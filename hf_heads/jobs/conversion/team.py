"""Several processes at one conversion: who does what, and who waits."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import PartialState


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

    @property
    def device(self) -> str:
        """The device of this process."""
        return str(PartialState().device)


def launched(cpu: bool) -> Team:
    """The team that `accelerate launch` or `torchrun` made; one process where there was no launch.

    Args:
        cpu: all of them compute there.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return Team()
    state = PartialState(cpu=cpu)
    return Team(state.process_index, state.num_processes)
