"""Several processes at one job: who does what, and who waits."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, cast

import torch
from accelerate import PartialState
from torch import Tensor
from transformers import PreTrainedModel

from hf_heads.core.vocabulary import RANDOM
from hf_heads.io.checkpoints.sources import Source
from hf_heads.io.data.calibration import Data, calibration_data
from hf_heads.io.data.choice import CalibrationChoice
from hf_heads.io.data.written import is_language_model


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

    def sum(self, *own: Tensor) -> list[Tensor]:
        """The sums of the tensors that all processes give, added in their order; on the CPU."""
        if self.size == 1:
            return list(own)
        every = self.gather([one.cpu() for one in own])
        return [torch.stack(parts).sum(0) for parts in zip(*every, strict=True)]

    def device(self, wanted: str) -> str:
        """The device of this process where all of them are to be on one kind."""
        return str(PartialState().device) if self.size > 1 and wanted == "cuda" else wanted


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
