"""Texts that a language model writes itself: what it is calibrated on where nobody gives data.

Each begins with a random token, and every other is drawn from the model's own distribution of what comes next, so that
the texts are as probable as the model says.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from hf_heads.attention.hosts.blocks import find_blocks
from hf_heads.attention.hosts.table import adapter_of
from hf_heads.io.data.made import TokenMaker, made_lengths
from hf_heads.modeling.blocks import block_size

LONGEST = 128  # tokens that are drawn one after the other; longer texts are several, joined
WEIGHTS = 2**32  # bytes of a model on a processor that may be read for each of these tokens
_CACHE, _LOGITS, _ROWS = 2**28, 2**26, 1024  # of the texts that are drawn together: bytes, bytes, how many at most


@dataclass(frozen=True)
class Written:
    """Texts that a model wrote.

    Attributes:
        examples: encoded, with the special tokens that the tokenizer puts around a text.
        tokens: that were drawn.
        steps: forward passes that it took.
    """

    examples: list[dict[str, Any]]
    tokens: int
    steps: int


def is_language_model(model: PreTrainedModel) -> bool:
    """Whether a model reads texts from left to right, with a head or without."""
    return adapter_of(model.config).modality == "text" and {block.kind for block in find_blocks(model)} == {"causal"}


def cannot_write(model: PreTrainedModel) -> str | None:
    """Why a language model's texts would not be its own, or not in time; None where it can write them."""
    if not model.can_generate():
        return f"{type(model).__name__.removeprefix('Heads')} has no head that writes"
    size = sum(one.numel() * one.element_size() for one in model.parameters())
    if model.device.type == "cpu" and size > WEIGHTS:
        return f"{size / 2**30:.0f} GiB of weights are too many to write with on a processor"
    return None


def written_examples(
    model: PreTrainedModel,
    folder: Path | str | None,
    count: int,
    seed: int,
    *,
    max_length: int | None = None,
    mixed: bool = True,
) -> Written:
    """Texts of a language model's own, of many lengths.

    They are longer than what `made_examples` makes of random tokens, since a text's beginning says little: half have
    `LONGEST` tokens, a quarter half as many, and of the others some are short and some longer. What is drawn depends on
    the seed and the model alone; no more than `LONGEST` tokens are drawn in turn.

    Args:
        model: of which `cannot_write` says nothing.
        folder: where its tokenizer is, if it has one.
        count: how many.
        seed: of first tokens, lengths and draws.
        max_length: the most tokens of a text.
        mixed: else all are short.

    Raises:
        HeadsError: more tokens are asked for than the model takes.
    """
    generator = torch.Generator().manual_seed(seed)
    maker = TokenMaker(model.config, folder, generator, max_length)
    wanted = _lengths(count, maker.limit) if mixed else [None] * count
    lengths = [maker.free(length, False) for length in wanted]
    pieces = [min(LONGEST, length - start) for length in lengths for start in range(0, length, LONGEST)]
    drawn, steps = _drawn(model, maker, pieces)
    parts = iter(drawn)
    before, after = maker.around
    examples = []
    for length in lengths:
        ids = [token for _ in range(0, length, LONGEST) for token in next(parts)]
        examples.append({"input_ids": [*before, *ids, *after]})
    order = torch.randperm(count, generator=generator).tolist()  # so that those held out are of all lengths
    return Written([examples[index] for index in order], sum(lengths), steps)


def _lengths(count: int, limit: int) -> list[int | None]:
    """Lengths in tokens of so many texts, special ones included; None of those of a random few."""
    spread: tuple[int | None, ...] = (min(LONGEST, limit), min(LONGEST // 2, limit), min(LONGEST, limit), None)
    longer = [length for length in made_lengths(count, limit) if length is not None]
    return [*(spread[index % 4] for index in range(count - len(longer))), *longer]


def _drawn(model: PreTrainedModel, maker: TokenMaker, lengths: Sequence[int]) -> tuple[list[list[int]], int]:
    """Tokens of so many lengths, those of similar length together, and the number of forward passes."""
    cached = 4 * sum(block_size(block)[1] for block in find_blocks(model))
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    found: list[list[int]] = [[]] * len(lengths)
    steps, training = 0, model.training
    model.eval()
    try:
        while order:
            longest = lengths[order[0]]
            before = len(maker.around[0])
            room = min(_CACHE // max(cached * (before + longest), 1), _LOGITS // (4 * len(maker.ordinary)), _ROWS)
            part, order = order[: max(room, 1)], order[max(room, 1) :]
            for index, ids in zip(part, _continued(model, maker, len(part), longest).tolist(), strict=True):
                found[index] = ids[: lengths[index]]
            steps += longest - 1
    finally:
        model.train(training)
    return found, steps


@torch.no_grad()
def _continued(model: PreTrainedModel, maker: TokenMaker, rows: int, length: int) -> Tensor:
    """Random tokens and what the model says after them, (rows, length); none of it is a special token."""
    ordinary, generator = maker.ordinary, maker.generator
    ids = ordinary[torch.randint(len(ordinary), (rows, 1), generator=generator)]
    given = torch.cat([torch.tensor(maker.around[0], dtype=torch.long).expand(rows, -1), ids], 1)
    cache, seen = DynamicCache(), 0
    # Another name since transformers 5.24.
    name = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
    while ids.shape[1] < length:
        seen += given.shape[1]
        inputs = {"input_ids": given, "attention_mask": torch.ones(rows, seen, dtype=torch.long)}
        inputs = {key: value.to(model.device) for key, value in inputs.items()}
        logits = model(**inputs, **{name: cache}, use_cache=True)["logits"][:, -1].float().cpu()
        given = ordinary[_draw(logits[:, ordinary], generator)]
        ids = torch.cat([ids, given], 1)
    return ids


def _draw(logits: Tensor, generator: torch.Generator) -> Tensor:
    """One index of each row by its probabilities, (rows, 1): where a uniform number falls among their sums."""
    sums = logits.softmax(-1).cumsum(-1)
    chance = torch.rand(len(logits), 1, generator=generator) * sums[:, -1:]
    return torch.searchsorted(sums, chance, right=True).clamp_max(logits.shape[-1] - 1)
