"""Sequences of ids in memory, and batches of them that are of like length."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

GROUP = 50  # batches that are sorted by length together
IGNORED = -100


@dataclass(frozen=True)
class Padded:
    """Sequences of ids, (rows, longest), and how long each is, (rows,)."""

    ids: Tensor
    lengths: Tensor

    @classmethod
    def of(cls, sequences: Sequence[Sequence[int]]) -> Padded:
        """The same numbers, zeros behind them."""
        lengths = torch.tensor([len(one) for one in sequences])
        ids = torch.zeros(len(sequences), int(lengths.max()), dtype=torch.int32)
        for row, one in zip(ids, sequences, strict=True):
            row[: len(one)] = torch.tensor(one, dtype=torch.int32)
        return cls(ids, lengths)

    def rows(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Ids and mask of some rows, as long as the longest of them."""
        lengths = self.lengths[rows]
        longest = int(lengths.max())
        return self.ids[rows, :longest].long(), (torch.arange(longest) < lengths[:, None]).long()


@dataclass(frozen=True)
class Part:
    """Rows to train or to measure on: inputs, and a label for each, (rows,), or a sequence of labels.

    Others are sequences that a model takes besides, by name: segments of the inputs, or second texts.
    """

    inputs: Padded
    labels: Tensor | Padded
    others: Mapping[str, Padded] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.inputs.lengths)

    def batch(self, rows: Tensor) -> dict[str, Tensor]:
        """What a model takes."""
        ids, mask = self.inputs.rows(rows)
        if isinstance(self.labels, Padded):
            labels, there = self.labels.rows(rows)
            labels = labels.masked_fill(there == 0, IGNORED)
        else:
            labels = self.labels[rows]
        others = {name: other.rows(rows)[0] for name, other in self.others.items()}
        return {"input_ids": ids, "attention_mask": mask, **others, "labels": labels}

    def by_length(self, rows: Tensor) -> Tensor:
        """The same rows, shortest first."""
        lengths = self.inputs.lengths[rows]
        if isinstance(self.labels, Padded):
            lengths = lengths + self.labels.lengths[rows]
        return rows[lengths.argsort(stable=True)]

    def batches(self, size: int, seed: int) -> Iterator[dict[str, Tensor]]:
        """Batches of like length without end, others in every epoch."""
        draw = torch.Generator().manual_seed(seed)
        while True:
            groups = torch.randperm(len(self), generator=draw).split(GROUP * size)
            found = [rows for group in groups for rows in self.by_length(group).split(size)]
            for index in torch.randperm(len(found), generator=draw).tolist():
                yield self.batch(found[index])

    def in_order(self, size: int) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        """Every row once, shortest first, with the rows' numbers."""
        for rows in self.by_length(torch.arange(len(self))).split(size):
            yield rows, self.batch(rows)
