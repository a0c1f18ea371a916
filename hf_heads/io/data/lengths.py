"""Texts of many lengths: as they are, packed, or cut, since a conversion keeps what it has seen."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from hf_heads.io.data.encoding import ENCODE, load_tokenizer, longest

REPORTED = (16, 128, 512)  # tokens of the inputs that figures by length are measured on
_REPORTED_TOKENS = 2048  # of each of these lengths, as far as the data goes

# The share of the examples that get a length in tokens; the others stay as they are.
_SHARES = {16: 1 / 8, 32: 1 / 8, 64: 1 / 16, 128: 1 / 32, 256: 1 / 64, 512: 1 / 64}
# The longest of an encoder-decoder's, whose targets often have to be written by the model itself.
LONGEST_TRANSLATED = 128

Raw = str | tuple[str, str]


def spread(samples: int, limit: int, size: float | None = None) -> list[int]:
    """The lengths in tokens of those of `samples` examples that get one; none is above `limit`.

    Args:
        samples: how many examples there are.
        limit: the most tokens.
        size: mean tokens of the others. Short ones keep half of all tokens, so that fewer get a length.
    """
    most = sum(min(length, limit) * share for length, share in _SHARES.items())
    share = 1.0 if size is None else min(1.0, size / (most + sum(_SHARES.values()) * size))
    counts = {length: int(samples * part) for length, part in _SHARES.items()}
    return [min(length, limit) for length, count in counts.items() for _ in range(math.ceil(count * share))]


def mixed_examples(
    raw: Sequence[Raw], samples: int, modality: str, folder: Path | str | None, limit: int, seed: int
) -> list[dict[str, Any]]:
    """Up to `samples` encoded examples of mixed lengths: some of `raw` as they are, the others packed or cut.

    Args:
        raw: texts; two segments, or source and target, where they are tuples.
        samples: how many at most; no more than there are texts.
        modality: of the model.
        folder: where the tokenizer is.
        limit: the most tokens of an example.
        seed: of where long texts are cut.
    """
    samples = min(samples, len(raw))
    longest = min(limit, LONGEST_TRANSLATED) if modality == "text-to-text" else limit
    sizes = _sizes(raw[:samples], folder)
    lengths = spread(samples, longest, sum(sizes) / max(len(sizes), 1))
    as_they_are = samples - len(lengths)
    examples = ENCODE[modality](list(raw[:as_they_are]), folder, limit)
    # Texts that are not among the examples yet come first.
    rest = [*raw[as_they_are:], *raw[:as_they_are]]
    return [*examples, *packed_examples(rest, lengths, modality, folder, seed)]


def examples_by_length(
    raw: Sequence[Raw], modality: str, folder: Path | str | None, limit: int, seed: int
) -> dict[int, list[dict[str, Any]]]:
    """Encoded examples of each of the lengths `REPORTED` that model and texts reach, no text in two of a length."""
    sizes = _sizes(raw, folder)
    found = {}
    for length in REPORTED:
        if length <= limit and (count := min(_REPORTED_TOKENS, sum(sizes)) // length):
            found[length] = packed_examples(raw, [length] * min(count, len(raw)), modality, folder, seed)
    return found


def packed_examples(
    raw: Sequence[Raw], lengths: Sequence[int], modality: str, folder: Path | str | None, seed: int
) -> list[dict[str, Any]]:
    """Encoded examples of given lengths in tokens: texts joined in turn until they fill one, and cut there.

    Segments and translations are joined with their own kind. A text that is longer alone is cut out of somewhere.
    """
    if not lengths:
        return []
    sizes, generator = _sizes(raw, folder), random.Random(seed)
    turn = _turns(len(raw))
    joined: dict[int, list[Raw]] = {}  # by length
    for length in lengths:
        parts: list[Raw] = []
        tokens = 0
        while tokens < length and len(parts) < len(raw):
            place = next(turn)
            part, size = raw[place], sizes[place]
            if isinstance(part, str) and size > length and not parts:
                part = _tail(part, generator.uniform(0, 1 - length / size))
            parts.append(part)
            tokens += max(size, 1)
        joined.setdefault(length, []).append(_joined(parts))
    found = {length: iter(ENCODE[modality](texts, folder, length)) for length, texts in joined.items()}
    return [next(found[length]) for length in lengths]


def _turns(count: int) -> Iterator[int]:
    """0 to `count` - 1, again and again."""
    while True:
        yield from range(count)


def _tail(text: str, share: float) -> str:
    """What follows a share of a text's words; the whole text where it has no words to cut between."""
    words = text.split(" ")
    return " ".join(words[int(share * len(words)) :])


def _joined(parts: Sequence[Raw]) -> Raw:
    """Texts one after the other, the first and the second of pairs each."""
    if isinstance(parts[0], str):
        return " ".join(str(part) for part in parts)
    first, second = zip(*parts, strict=True)
    return " ".join(first), " ".join(second)


def _sizes(raw: Iterable[Raw], folder: Path | str | None) -> list[int]:
    """The tokens of every text, of both segments together."""
    tokenizer = load_tokenizer(folder)
    texts = [[text] if isinstance(text, str) else list(text) for text in raw]
    flat = tokenizer([one for text in texts for one in text], add_special_tokens=False, verbose=False)["input_ids"]
    sizes = iter(len(ids) for ids in flat)
    return [sum(next(sizes) for _ in text) for text in texts]


def text_limit(folder: Path | str | None, wanted: int | None, positions: int | None = None) -> int:
    """The most tokens of a text for a model; see `longest`."""
    return longest(load_tokenizer(folder), folder, wanted, positions)


def count_cut(raw: Sequence[Raw], folder: Path | str | None, limit: int) -> int:
    """How many texts, or pairs of segments, have more tokens than `limit`, special ones included."""
    if not raw:
        return 0
    around = load_tokenizer(folder).num_special_tokens_to_add(pair=not isinstance(raw[0], str))
    return sum(size + around > limit for size in _sizes(raw, folder))
