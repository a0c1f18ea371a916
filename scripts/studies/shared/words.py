"""Texts as words, read line by line, and the windows of them that a language model is trained and measured on."""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

UNKNOWN, END = "<unk>", "<eos>"
TITLE = re.compile(r"^ = [^=].*[^=] = $")


def lines_of(path: Path) -> Iterator[str]:
    """The lines of a text, one in memory at a time."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield line.rstrip("\n")


def words_of(lines: Iterable[str]) -> Iterator[str]:
    """Words between spaces, and an END behind every line."""
    for line in lines:
        yield from line.split()
        yield END


def vocabulary_of(lines: Iterable[str], least: int = 1) -> dict[str, int]:
    """Words by how often they come, the commonest 0; words that come less often than `least` are UNKNOWN."""
    counts = Counter(words_of(lines))
    kept = [word for word, count in counts.most_common() if count >= least or word == UNKNOWN]
    return {word: index for index, word in enumerate(kept if UNKNOWN in kept else [*kept, UNKNOWN])}


def ids_of(lines: Iterable[str], vocabulary: dict[str, int]) -> Tensor:
    """The numbers of a text's words, (words,); four bytes each is all that is kept of it."""
    unknown = vocabulary[UNKNOWN]
    return torch.tensor(array("i", (vocabulary.get(word, unknown) for word in words_of(lines))), dtype=torch.int32)


def articles(lines: Iterable[str]) -> list[list[str]]:
    """Lines of a WikiText by article; what stands before the first title is part of it."""
    found: list[list[str]] = [[]]
    for line in lines:
        if TITLE.match(line) and any(map(str.strip, found[-1])):
            found.append([])
        found[-1].append(line)
    return found


def split_articles(path: Path, each: int = 10) -> tuple[list[str], list[str]]:
    """Whole articles to train on, and every tenth to test on."""
    parts = articles(lines_of(path))
    return tuple(  # type: ignore[return-value]
        [line for place, part in enumerate(parts) if (place % each == each - 1) == tested for line in part]
        for tested in (False, True)
    )


@dataclass(frozen=True)
class Text:
    """The words of a text, (words,), and how many of them a model sees at once."""

    ids: Tensor
    length: int

    def batches(self, size: int, seed: int) -> Iterator[dict[str, Tensor]]:
        """Pieces side by side without end, in another order and from another word on in every epoch."""
        draw = torch.Generator().manual_seed(seed)
        while True:
            shift = int(torch.randint(self.length, (1,), generator=draw))
            count = (len(self.ids) - shift - 1) // self.length
            for some in torch.randperm(count, generator=draw).split(size):
                begins = shift + some * self.length
                yield {"input_ids": torch.stack([self.ids[begin : begin + self.length + 1] for begin in begins]).long()}

    def windows(self, stride: int, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Windows that move on by `stride` words, (batch, length + 1), and which of their words were not measured yet.

        Every word but the first is measured once; those of the first window see what is there before them, all others
        at least length - stride words.
        """
        last = len(self.ids) - self.length - 1
        begins = list(range(0, max(1, last + 1), stride))
        begins += [last] if last > 0 and begins[-1] != last else []
        done = 1
        rows, fresh = [], []
        for begin in begins:
            places = torch.arange(begin + 1, min(begin + self.length + 1, len(self.ids)))
            rows.append(self.ids[begin : begin + self.length + 1].long())
            fresh.append(places >= done)
            done = int(places[-1]) + 1
            if len(rows) == size:
                yield torch.stack(rows), torch.stack(fresh)
                rows, fresh = [], []
        if rows:
            yield torch.stack(rows), torch.stack(fresh)
