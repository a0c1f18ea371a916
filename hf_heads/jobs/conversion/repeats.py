"""Inputs with tokens that repeat, made out of calibration data: what heads that match and copy live by."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Sequence
from typing import Any

from hf_heads.attention.hosts.table import positions_of
from hf_heads.core.batches import Batch
from hf_heads.io.data.batching import make_batches

_PAIRS, _RANDOM_PAIRS, _LONG = 256, 128, 12
_LENGTHS = (256, 96, 400, 160)


def made_repeats(
    batches: Sequence[Batch],
    config: Any,
    special: Collection[int],
    seed: int,
    cost: Callable[[int], int] = lambda length: 0,
    most: int = 1,
) -> list[Batch]:
    """Batches with tokens that repeat for a text model; none where the given batches hold no tokens.

    Half of the tokens of a second text are replaced by such of the first: of two texts of the data, and of two made of
    random tokens. Texts in a row give longer ones. Special tokens stand as they do around the data's own texts.

    Args:
        batches: the data.
        config: of the model.
        special: ids of tokens that stand around texts.
        seed: of all that is drawn.
        cost: of a sequence by its length.
        most: what all may cost; fewer are made where they would cost more.
    """
    texts = [text for batch in batches for text in _texts(batch, special)]
    if not texts or any({"decoder_input_ids", "pixel_values"} & set(batch) for batch in batches):
        return []
    chance = random.Random(seed)
    before, after = _around(batches[0], special)
    limit = min(positions_of(config) or 512, 512) - len(before) - 2 * len(after)
    ordinary = [token for token in range(config.vocab_size) if token not in special]
    pairs = []
    for _ in range(min(_PAIRS, 2 * len(texts))):
        pairs.append((chance.choice(texts), chance.choice(texts)))
    for _ in range(min(_RANDOM_PAIRS, len(texts) // 2)):
        first, second = ([chance.choice(ordinary) for _ in range(chance.randint(4, 40))] for _ in range(2))
        pairs.append((first, second))
    two = getattr(config, "type_vocab_size", 0) > 1
    examples = []
    for first, second in pairs:
        first, second = first[: limit // 2], second[: limit // 2]
        second = [chance.choice(first) if chance.random() < 0.5 else token for token in second]
        ids = [*before, *first, *after, *second, *after]
        example: dict[str, Any] = {"input_ids": ids}
        if two:
            whole = len(before) + len(first) + len(after)
            example["token_type_ids"] = [0] * whole + [1] * (len(ids) - whole)
        examples.append(example)
    longer = []
    for index in range(min(_LONG, len(texts) // 16)):
        ids = []
        while len(ids) < _LENGTHS[index % len(_LENGTHS)]:
            ids += chance.choice(texts)
        ids = ids[: min(limit, _LENGTHS[index % len(_LENGTHS)])]
        longer.append({"input_ids": [*before, *ids, *after]})
    every = max(1, -(-sum(cost(len(one["input_ids"])) for one in [*examples, *longer]) // most))
    examples, longer = examples[::every], longer[: -(-len(longer) // every)]
    return [*make_batches(examples, config), *(make_batches(longer, config) if longer else [])]


def _texts(batch: Batch, special: Collection[int]) -> list[list[int]]:
    """The ordinary tokens of every sequence that has some."""
    ids = batch.get("input_ids")
    if ids is None or ids.ndim != 2:
        return []
    mask = batch.get("attention_mask")
    real = [[1] * ids.shape[1]] * len(ids) if mask is None else mask.tolist()
    rows = (
        [token for token, is_real in zip(*row, strict=True) if is_real and token not in special]
        for row in zip(ids.tolist(), real, strict=True)
    )
    return [row for row in rows if row]


def _around(batch: Batch, special: Collection[int]) -> tuple[list[int], list[int]]:
    """The special tokens at the beginning and at the end of a batch's first sequence."""
    mask = batch.get("attention_mask")
    row = batch["input_ids"][0]
    ids = (row if mask is None else row[mask[0].bool()]).tolist()
    begin = next((place for place, token in enumerate(ids) if token not in special), 0)
    end = next((place for place, token in enumerate(reversed(ids)) if token not in special), 0)
    return ids[:begin], ids[len(ids) - end :] if end else []
