"""Heads that a conversion leaves exact, by name or by the job that they have."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from contextlib import suppress

from transformers import PreTrainedModel

from hf_heads.attention.hosts.blocks import Block
from hf_heads.attention.spec import HeadsSpec
from hf_heads.core.batches import Batch
from hf_heads.core.errors import HeadsError
from hf_heads.core.vocabulary import JOBS, MATCHING, NONE, SINKS
from hf_heads.jobs.scoring.probe import has_probes, probe_heads, share_of_pairs
from hf_heads.modeling.blocks import block_shape

KeptHeads = str | Sequence[str] | Mapping[str, Sequence[int]]
Chosen = Mapping[str, tuple[Block, HeadsSpec]]
_WORK = tuple(job for job in JOBS if job not in SINKS)


def kept_heads(wanted: KeptHeads | None, chosen: Chosen, model: PreTrainedModel) -> dict[str, tuple[int, ...]]:
    """Heads by block.

    Args:
        wanted: `BLOCK:HEAD`, several separated by commas or in a list, where BLOCK is a block's name, the beginning of
            one up to a dot, or a shell pattern; or a job, as in `JOBS`, for all heads that have it; or a mapping from
            such blocks to heads. Heads count from 0. `none` and None are none.
        chosen: the blocks to be converted, by name, with their settings.
        model: in which jobs are looked for.

    Raises:
        HeadsError: a name without a head, of no block, or of no head of the block; a job that no head there has.
    """
    found: dict[str, set[int]] = {}
    for pattern, head in _pairs(wanted, chosen, model):
        names = [name for name in chosen if fnmatch.fnmatchcase(name, pattern) or name.startswith(f"{pattern}.")]
        if not names:
            raise HeadsError(f"keep-heads: no block to be converted is called '{pattern}'. Blocks: {', '.join(chosen)}")
        for name in names:
            heads = block_shape(chosen[name][0]).heads
            if not 0 <= head < heads:
                raise HeadsError(f"keep-heads: {name} has no head {head}; its heads are 0 to {heads - 1}")
            found.setdefault(name, set()).add(head)
    return _sorted(found)


def matching_heads(
    chosen: Chosen, model: PreTrainedModel, batches: Sequence[Batch] | None
) -> dict[str, tuple[int, ...]]:
    """Heads that match, by block, where most of the data are pairs of texts, which are read by them; else none.

    Only blocks count whose settings leave heads exact without being asked.
    """
    able = [name for name, (block, spec) in chosen.items() if spec.keeps_matching(block_shape(block))]
    if not able or not batches or not has_probes(model) or share_of_pairs(model, batches) <= 0.5:
        return {}
    found: dict[str, set[int]] = {}
    for job, name, head, _ in probe_heads(model).employed():
        if job == MATCHING and name in able:
            found.setdefault(name, set()).add(head)
    return _sorted(found)


def left_exact(
    kept: Mapping[str, tuple[int, ...]], specs: Mapping[str, HeadsSpec], chosen: Chosen
) -> dict[str, tuple[int, ...]]:
    """Those of the heads to keep that planned settings do leave exact."""
    found = {}
    for name, heads in kept.items():
        with suppress(HeadsError):
            specs[name].keep_exact(heads, block_shape(chosen[name][0]), name)
            found[name] = heads
    return found


def _sorted(found: Mapping[str, set[int]]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(sorted(heads)) for name, heads in found.items()}


def _pairs(wanted: KeptHeads | None, chosen: Chosen, model: PreTrainedModel) -> list[tuple[str, int]]:
    """Blocks as given, and one head each."""
    if wanted is None or wanted == NONE:
        return []
    if isinstance(wanted, Mapping):
        return [(str(name), int(head)) for name, heads in wanted.items() for head in heads]
    texts = wanted.split(",") if isinstance(wanted, str) else list(wanted)
    pairs = []
    for text in (str(text).strip() for text in texts):
        if text in _WORK:
            pairs += _employed(text, chosen, model)
            continue
        name, _, head = text.rpartition(":")
        if not name or not head.isdecimal():
            raise HeadsError(
                f"keep-heads: '{text}' is no BLOCK:HEAD, as encoder.layer.1:7, and no job. Jobs: {', '.join(_WORK)}"
            )
        pairs.append((name, int(head)))
    return pairs


def _employed(job: str, chosen: Chosen, model: PreTrainedModel) -> list[tuple[str, int]]:
    """Block and head of those that have a job."""
    rows = probe_heads(model).employed() if has_probes(model) else []
    found = [(block, head) for name, block, head, _ in rows if name == job and block in chosen]
    if not found:
        raise HeadsError(
            f"keep-heads: no head of the blocks to be converted has the job '{job}'; `hf-heads inspect --heads` shows "
            "those that have one"
        )
    return found


def last(order: Sequence[tuple[str, int]], kept: Mapping[str, Sequence[int]]) -> list[tuple[str, int]]:
    """An order of removal in which kept heads go last."""
    return sorted(order, key=lambda head: head[1] in kept.get(head[0], ()))
