"""Heads that a conversion leaves exact, by name."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence

from hf_heads.attention.hosts.blocks import Block
from hf_heads.core.errors import HeadsError
from hf_heads.modeling.blocks import block_shape

KeptHeads = str | Sequence[str] | Mapping[str, Sequence[int]]


def kept_heads(wanted: KeptHeads | None, blocks: Mapping[str, Block]) -> dict[str, tuple[int, ...]]:
    """Heads by block.

    Args:
        wanted: `BLOCK:HEAD`, several separated by commas or in a list, where BLOCK is a block's name, the beginning of
            one up to a dot, or a shell pattern; or a mapping from such blocks to heads. Heads count from 0.
        blocks: the blocks to be converted, by name.

    Raises:
        HeadsError: a name without a head, of no block, or of no head of the block.
    """
    found: dict[str, set[int]] = {}
    for pattern, head in _pairs(wanted):
        names = [name for name in blocks if fnmatch.fnmatchcase(name, pattern) or name.startswith(f"{pattern}.")]
        if not names:
            raise HeadsError(f"keep-heads: no block to be converted is called '{pattern}'. Blocks: {', '.join(blocks)}")
        for name in names:
            heads = block_shape(blocks[name]).heads
            if not 0 <= head < heads:
                raise HeadsError(f"keep-heads: {name} has no head {head}; its heads are 0 to {heads - 1}")
            found.setdefault(name, set()).add(head)
    return {name: tuple(sorted(heads)) for name, heads in found.items()}


def _pairs(wanted: KeptHeads | None) -> list[tuple[str, int]]:
    """Blocks as given, and one head each."""
    if wanted is None:
        return []
    if isinstance(wanted, Mapping):
        return [(str(name), int(head)) for name, heads in wanted.items() for head in heads]
    texts = wanted.split(",") if isinstance(wanted, str) else list(wanted)
    pairs = []
    for text in texts:
        name, _, head = str(text).strip().rpartition(":")
        if not name or not head.isdecimal():
            raise HeadsError(f"keep-heads: '{text}' is no BLOCK:HEAD, such as encoder.layer.1:7")
        pairs.append((name, int(head)))
    return pairs


def last(order: Sequence[tuple[str, int]], kept: Mapping[str, Sequence[int]]) -> list[tuple[str, int]]:
    """An order of removal in which kept heads go last."""
    return sorted(order, key=lambda head: head[1] in kept.get(head[0], ()))
