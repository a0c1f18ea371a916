"""What a teacher says of the examples of a run, kept from the first time that they are seen."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hf_heads.attention.hosts.table import adapter_of
from hf_heads.core.batches import Batch, output_mask
from hf_heads.core.errors import HeadsError
from hf_heads.io.checkpoints.pages import hand_back, move_to_file
from hf_heads.jobs.distillation.losses import Lesson, Matching

ROOM = 2**31  # bytes that stay in memory where nobody says where they are to be


@dataclass(frozen=True)
class _Part:
    """One tensor of a lesson, for the examples of a group.

    Attributes:
        rows: those of all examples one after the other, padding left out, (rows, width).
        ends: for every example where its rows begin, and where the last ones end.
        mask: the name of the mask that says where in a batch they belong; None where every example has all positions.
        flat: the tensor has no positions, (batch, width).
    """

    rows: Tensor
    ends: list[int]
    mask: str | None
    flat: bool


class Lessons:
    """A teacher's outputs by example.

    The teacher sees examples in groups: the batches of the first epoch. A run that was interrupted in a later one asks
    it again in the same groups, so that what it says is the same to the last bit.

    Args:
        matching: the losses, which say what is needed of the teacher, and run it.
        examples: of the run.
        collate: makes a batch of some.
        order: of the first epoch.
        size: of its batches.
        where: one of `LESSONS`.
        rounds: how often the run is to see an example.
        folder: for files.
        known: those of an earlier run of the same teacher over the same examples in the same order.

    Raises:
        HeadsError: lessons are to be kept that cannot be: of the loss `attention`, of a model that also decodes; and
            when the first is there, of outputs whose positions no mask tells.
    """

    def __init__(
        self,
        matching: Matching,
        examples: Sequence[Any],
        collate: Callable[[list[Any]], Batch],
        order: Sequence[int],
        size: int,
        *,
        where: str,
        rounds: float,
        folder: Path,
        known: Lessons | None = None,
    ) -> None:
        self.matching, self.examples, self.collate, self.folder = matching, examples, collate, folder
        modality = adapter_of(matching.teacher.config).modality
        # Maps grow with the square of the length; how many positions are decoded depends on the rest of a batch.
        never = "attention" in matching.weights or modality not in ("text", "image")
        if never and where in ("memory", "disk"):
            what = "maps of attention" if modality in ("text", "image") else f"outputs of {modality} models"
            raise HeadsError(f"the teacher's {what} are not kept: take --teacher-outputs anew")
        self.where = "anew" if where == "auto" and (never or rounds <= 1) else where
        self._decided = where != "auto"
        self._images = modality == "image"
        self._groups = [list(order[begin : begin + size]) for begin in range(0, len(order), size)]
        self._places = {
            index: (group, place) for group, part in enumerate(self._groups) for place, index in enumerate(part)
        }
        self._kept: dict[int, dict[str, _Part]] = {}
        self._logits, self._blocks = False, frozenset[str]()
        if known is not None:
            self.where, self._decided = known.where, known._decided
            self._kept, self._logits, self._blocks = known._kept, known._logits, known._blocks

    def __call__(self, indices: Sequence[int], batch: Batch) -> Lesson:
        """What the teacher says of a batch of these examples.

        Raises:
            HeadsError: there is no room on the disk.
        """
        places = [self._places[index] for index in indices]
        missing = list(dict.fromkeys(group for group, _ in places if group not in self._kept))
        if self.where == "anew":
            return self.matching.teach(batch)
        if len(missing) == 1 and self._groups[missing[0]] == list(indices):
            lesson = self.matching.teach(batch)
            self._keep(missing[0], lesson, batch)
            return lesson
        device = self.matching.teacher.device
        for group in missing:
            other = self.collate([self.examples[index] for index in self._groups[group]])
            other = {name: value.to(device) for name, value in other.items()}
            self._keep(group, self.matching.teach(other), other)
            if self.where == "anew":  # as is known now
                return self.matching.teach(batch)
        return self._put_together(places, batch)

    def _keep(self, group: int, lesson: Lesson, batch: Batch) -> None:
        """Keep a group's lesson; from the first it is known whether lessons can be kept."""
        parts = {}
        for name, tensor in self._needed(lesson):
            mask = self._mask_of(name, tensor, batch)
            if tensor.ndim > 3 or (mask is None and tensor.ndim == 3 and not self._images):
                if self._decided:
                    raise HeadsError(
                        f"the teacher's outputs '{name}' cannot be told apart by example, without a mask of their "
                        "positions: take --teacher-outputs anew"
                    )
                self.where = "anew"  # how many positions there are may depend on the batch
                return
            parts[name] = _part(tensor, mask, batch)
        rows = torch.cat([part.rows.flatten().float() for part in parts.values()]).cpu()
        if not self._decided:
            self._decided = True
            needed = rows.numel() * rows.element_size() * self._size(self.examples) / self._size_of_group(group)
            self.where = "memory" if needed <= ROOM else "anew"
        if self.where == "anew":
            return
        if self.where == "disk":
            self._to_disk(rows, group)
        self._logits, self._blocks = lesson.logits, frozenset(lesson.blocks)
        pieces = rows.split([part.rows.numel() for part in parts.values()])
        self._kept[group] = {
            name: replace(part, rows=piece.view_as(part.rows))
            for (name, part), piece in zip(parts.items(), pieces, strict=True)
        }

    def _to_disk(self, rows: Tensor, group: int) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            move_to_file(rows, self.folder / f"lessons-{group}")
        except OSError as error:
            raise HeadsError(
                f"cannot keep the teacher's outputs in '{self.folder}': {error.strerror}; take --teacher-outputs anew"
            ) from None
        hand_back(rows)

    def _size_of_group(self, group: int) -> int:
        return self._size([self.examples[index] for index in self._groups[group]])

    @staticmethod
    def _size(examples: Sequence[Any]) -> int:
        """How large examples are beside one another."""
        return sum(len(one.get("input_ids", "-")) for one in examples)

    def _needed(self, lesson: Lesson) -> Iterator[tuple[str, Tensor]]:
        """The tensors that the losses look at, by name."""
        yield "output", lesson.output
        if "hidden" in self.matching.weights:
            states = list(lesson.states.items())
            yield from states if lesson.logits else states[:-1]
        if "blocks" in self.matching.weights:
            yield from lesson.blocks.items()

    def _mask_of(self, name: str, tensor: Tensor, batch: Batch) -> str | None:
        """The name of the mask that has a tensor's positions, None where there is none."""
        if tensor.ndim != 3:
            return None
        if name == "output":
            found = output_mask(batch, tensor)
            return next((key for key, mask in batch.items() if mask is found), None)
        key = self.matching.mask_of(name)
        return key if key in batch and batch[key].shape == tensor.shape[:2] else None

    def _put_together(self, places: Sequence[tuple[int, int]], batch: Batch) -> Lesson:
        """A lesson of examples of several groups; zeros at padding."""
        found = {}
        for name, example in self._kept[places[0][0]].items():
            pieces = []
            for group, place in places:
                part = self._kept[group][name]
                pieces.append(part.rows[part.ends[place] : part.ends[place + 1]])
            rows = torch.cat(pieces).to(self.matching.teacher.device)
            if example.mask is not None:
                there = batch[example.mask].bool()
                found[name] = rows.new_zeros(*there.shape, rows.shape[1])
                found[name][there] = rows
            else:
                found[name] = rows if example.flat else rows.unflatten(0, (len(places), -1))
        output = found.pop("output")
        blocks = {name: tensor for name, tensor in found.items() if name in self._blocks}
        states = {name: tensor for name, tensor in found.items() if name not in self._blocks}
        if not self._logits:  # they end with the output
            states["output"] = output
        return Lesson(output, self._logits, states, blocks, {})


def _part(tensor: Tensor, mask: str | None, batch: Batch) -> _Part:
    """The rows of a tensor, padding left out."""
    if mask is not None:
        there = batch[mask].bool()
        rows, counts = tensor[there], there.sum(1).tolist()
    elif tensor.ndim == 3:
        rows, counts = tensor.flatten(0, 1), [tensor.shape[1]] * len(tensor)
    else:
        rows, counts = tensor, [1] * len(tensor)
    return _Part(rows, list(itertools.accumulate(counts, initial=0)), mask, tensor.ndim == 2)
