"""Heads with a job: where each head looks, on made inputs with repeated tokens or on given batches.

What fine-tuning, copying and in-context learning live by is known to sit in few heads: those that look at the same
token elsewhere, at the token before, or at what followed the last time (Olsson et al. 2022, arXiv 2209.11895).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_heads.attention.hosts.blocks import Block, find_blocks
from hf_heads.attention.hosts.table import adapter_of, positions_of
from hf_heads.attention.spec import HeadsSpec
from hf_heads.core.batches import Batch
from hf_heads.core.errors import HeadsError
from hf_heads.core.vocabulary import JOBS, SINKS
from hf_heads.io.data.encoding import load_tokenizer
from hf_heads.io.data.made import made_examples
from hf_heads.modeling.blocks import block_specs

HAS_JOB = 0.2  # a head with at least this mean attention has the job
_SEQUENCES, _SEGMENT, _IMAGES = 16, 24, 8


@dataclass(frozen=True)
class HeadJobs:
    """Mean attention of every head to the keys of every job, over the queries that have such a key.

    Attributes:
        found: job -> block -> a number for each head, as they stand in the model; see `JOBS` for what jobs are.
        inputs: what was looked at, for reports.
    """

    found: Mapping[str, Mapping[str, tuple[float, ...]]]
    inputs: str

    def employed(self, least: float = HAS_JOB) -> list[tuple[str, str, int, float]]:
        """(job, block, head, attention) of heads with a job; looking at separators or at the first token is none."""
        return [
            (job, block, head, value)
            for job, blocks in self.found.items()
            if job not in SINKS
            for block, values in blocks.items()
            for head, value in enumerate(values)
            if value >= least
        ]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        jobs = {job: {block: list(values) for block, values in blocks.items()} for job, blocks in self.found.items()}
        employed = [dict(zip(("job", "block", "head", "attention"), row, strict=True)) for row in self.employed()]
        return {"inputs": self.inputs, "least": HAS_JOB, "jobs": jobs, "employed": employed}


def probe_heads(
    model: PreTrainedModel, batches: Sequence[Batch] | None = None, *, blocks: str | None = None, seed: int = 0
) -> HeadJobs:
    """Where each head of a model looks.

    Args:
        model: a model of an architecture with an adapter, native or converted; it is left as it is.
        batches: keyword arguments of the model's forward; pairs of texts have both `token_type_ids`. None makes inputs:
            random tokens in two segments of which half of the second repeat tokens of the first, in another order in
            every second sequence; for image models noise with the spectrum of photographs.
        blocks: a pattern as in `hf_heads.convert`; None takes all. Blocks that the inputs never reach are left out.
        seed: of made inputs.

    Raises:
        HeadsError: no adapter, no such block, or batches without anything that a job is about.
    """
    chosen = find_blocks(model, blocks)
    special = special_ids(model)
    inputs = "given batches"
    segments: list[Tensor | None]
    if batches is None:
        batches, segments = made_probes(model, special, seed)
        inputs = f"made inputs with repeated tokens, seed {seed}" if segments[0] is not None else "made images"
    else:
        segments = [_given_segments(batch) for batch in batches]
    sums: dict[tuple[str, str], Tensor] = {}
    counts: dict[tuple[str, str], float] = {}
    for batch, parts in zip(batches, segments, strict=True):
        batch = {name: value.to(model.device) for name, value in batch.items() if name != "labels"}
        for block, weights in _maps(model, chosen, batch):
            for job, keys in _jobs(model, block, batch, parts, special, weights.shape[-1]).items():
                has = keys.any(-1)
                looked = (weights * keys[:, None]).sum(-1).transpose(1, 2)[has].sum(0).double().cpu()
                key = (job, block.name)
                sums[key] = sums.get(key, 0.0) + looked
                counts[key] = counts.get(key, 0.0) + float(has.sum())
    found: dict[str, dict[str, tuple[float, ...]]] = {}
    for (job, name), total in sums.items():
        if count := counts[job, name]:
            found.setdefault(job, {})[name] = tuple((total / count).tolist())
    if not found:
        raise HeadsError("the inputs hold nothing that a job is about: give token ids or pixels, with words among them")
    return HeadJobs({job: found[job] for job in JOBS if job in found}, inputs)


def host_places(spec: HeadsSpec | None, heads: int) -> dict[int, int]:
    """Where the heads of the host stand in a block, by their number in the host; heads that are gone are left out."""
    numbers = getattr(spec, "kept", None)
    numbers = getattr(spec, "order", None) if numbers is None else numbers
    together = getattr(spec, "merge", 1)
    numbers = range(heads * together) if numbers is None else numbers
    return {head: place // together for place, head in enumerate(numbers)}


def jobs_left(model: PreTrainedModel, before: HeadJobs, after: HeadJobs) -> list[dict[str, Any]]:
    """What each head with a job has left: rows of job, block, head (its place before), before and after.

    Args:
        model: the converted model.
        before, after: of the original and of the converted model, on the same inputs.
    """
    specs, rows = block_specs(model), []
    for job, block, head, value in before.employed():
        places = host_places(specs.get(block), len(after.found.get(job, {}).get(block, ())))
        place = places.get(head)
        left = 0.0 if place is None else after.found[job][block][place]
        rows.append({"job": job, "block": block, "head": head, "before": value, "after": left})
    return rows


@contextmanager
def _eager(model: PreTrainedModel) -> Iterator[None]:
    """Attention that returns its weights, as long as a `with` block lasts."""
    before, training = model.config._attn_implementation, model.training
    model.set_attn_implementation("eager")
    model.eval()
    try:
        yield
    finally:
        model.set_attn_implementation(before)
        model.train(training)


def _maps(model: PreTrainedModel, blocks: Sequence[Block], batch: Batch) -> list[tuple[Block, Tensor]]:
    """The attention of each block that the batch reaches, (batch, heads, target, source)."""
    seen: list[tuple[Block, Tensor]] = []

    def hook(block: Block) -> Any:
        def see(_: nn.Module, __: Any, output: Any) -> None:
            seen.append((block, output[block.site.weights].float()))

        return see

    handles = [block.module.register_forward_hook(hook(block)) for block in blocks]
    try:
        with torch.no_grad(), _eager(model):
            model(**batch)
    finally:
        for handle in handles:
            handle.remove()
    return [(block, weights) for block, weights in seen if weights.shape[1]]


def _jobs(
    model: PreTrainedModel, block: Block, batch: Batch, segments: Tensor | None, special: frozenset[int], source: int
) -> dict[str, Tensor]:
    """The keys of each job, (batch, target, source), True where a query has the key."""
    if adapter_of(model.config).modality == "image":
        return _neighbours(model.config, batch["pixel_values"].shape, source)
    if "input_ids" not in batch or (block.kind == "cross" and "decoder_input_ids" not in batch):
        return {}  # what the keys are is not known
    decoder = "decoder_input_ids" in batch and block.kind != "self"
    ids = batch["decoder_input_ids" if decoder else "input_ids"]
    keys = batch["input_ids"] if block.kind == "cross" else ids
    masks = (batch.get(block.site.query_mask), batch.get(memory_mask(block, batch)))
    query_real, key_real = (
        torch.ones_like(one, dtype=torch.bool) if mask is None else mask.bool()
        for one, mask in zip((ids, keys), masks, strict=True)
    )
    listed = torch.tensor(sorted(special), device=ids.device)
    ordinary, ordinary_key = ~torch.isin(ids, listed) & query_real, ~torch.isin(keys, listed) & key_real
    real = ordinary[:, :, None] & key_real[:, None]
    places = torch.arange(keys.shape[1], device=ids.device)
    jobs = {"special": real & ~ordinary_key[:, None], "first": real & (places == 0)}
    if block.kind == "cross":
        return jobs
    offset = places - places[:, None]  # key's place minus query's
    real = real & ordinary_key[:, None]
    same = real & (ids[:, :, None] == keys[:, None]) & (offset != 0)
    jobs |= {"previous": real & (offset == -1), "same": same}
    if block.kind == "causal":
        seen = same & (offset < 0)
        after = torch.zeros_like(seen)
        after[..., 1:] = seen[..., :-1]  # the key after an earlier occurrence of the query's token
        return jobs | {"same": seen, "induction": after & real & (offset < 0)}
    jobs["next"] = real & (offset == 1)
    if segments is not None and segments.shape == ids.shape:
        segments = segments.to(ids.device)
        other = segments[:, :, None] != segments[:, None]
        jobs |= {"matching": same & other, "same": same & ~other}
    return jobs


def memory_mask(block: Block, batch: Batch) -> str:
    """The model input that tells padding from tokens among what a block's keys are made of."""
    if block.kind != "cross":
        return block.site.query_mask
    return "encoder_attention_mask" if "encoder_attention_mask" in batch else "attention_mask"


def _neighbours(config: Any, shape: torch.Size, size: int) -> dict[str, Tensor]:
    """The neighbours of each patch in an image, (batch, size, size); the tokens before the patches come first."""
    patch = config.patch_size if isinstance(config.patch_size, int) else config.patch_size[0]
    rows, columns = shape[-2] // patch, shape[-1] // patch
    place = torch.arange(rows * columns)
    if size < len(place):  # patches are left out, and which ones is not known
        return {}
    row, column = place // columns, place % columns
    down, right = row - row[:, None], column - column[:, None]
    before = size - len(place)
    offsets = {"self": (0, 0), "left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}
    found = {}
    for job, (dy, dx) in offsets.items():
        whole = torch.zeros(size, size, dtype=torch.bool)
        whole[before:, before:] = (down == dy) & (right == dx)
        found[job] = whole.expand(shape[0], -1, -1)
    first = torch.zeros(size, size, dtype=torch.bool)
    first[before:, :before] = True
    return {**found, "first": first.expand(shape[0], -1, -1)}


# Inputs.


def special_ids(model: PreTrainedModel) -> frozenset[int]:
    """Ids of tokens that are no words, by the tokenizer where the model was loaded from one, or by the config."""
    names = ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id")
    by_config = (getattr(model.config, name, None) for name in names)
    found = {one for one in by_config if isinstance(one, int)}
    with suppress(HeadsError):  # a model without a tokenizer has its config
        found |= set(load_tokenizer(model.name_or_path or None).all_special_ids)
    return frozenset(found)


def _given_segments(batch: Batch) -> Tensor | None:
    """The segments of given inputs, where there are two."""
    types = batch.get("token_type_ids")
    return types if types is not None and bool(types.any()) else None


def share_of_pairs(model: PreTrainedModel, batches: Iterable[Batch]) -> float:
    """The share of sequences that are two texts: by their segments, or where there are none by the separators."""
    pairs = total = 0
    separators: list[int] | None = None
    for batch in batches:
        if "input_ids" not in batch:
            continue
        ids = batch["input_ids"]
        if "token_type_ids" in batch:
            second = batch["token_type_ids"] == 1  # XLNet counts the token at the end as a third
        else:
            separators = _around(model)[1] if separators is None else separators
            separator = torch.isin(ids, torch.tensor(separators, dtype=ids.dtype, device=ids.device)).int()
            second = separator.diff(dim=1).eq(1).cumsum(1) > 1
        pairs, total = pairs + int(second.any(1).sum()), total + len(ids)
    return pairs / total if total else 0.0


def has_probes(model: PreTrainedModel) -> bool:
    """Whether inputs can be made in which it is known what heads could look for."""
    adapter = adapter_of(model.config)
    return adapter.modality in ("text", "image", "text-to-text") and adapter.also is None


def made_probes(model: PreTrainedModel, special: frozenset[int], seed: int) -> tuple[list[Batch], list[Tensor | None]]:
    """Inputs with something to find for every job, and which token is in which segment."""
    config, modality = model.config, adapter_of(model.config).modality
    if not has_probes(model):
        raise HeadsError(f"no inputs are made to find the jobs of heads in {type(model).__name__}: give batches")
    if modality == "image":
        pixels = [one["pixel_values"] for one in made_examples(config, None, _IMAGES, seed)]
        return [{"pixel_values": torch.stack(pixels)}], [None]
    before, between, after = _around(model)
    limit = (positions_of(config) or 512) - len(before) - len(between) - len(after)
    size = max(2, min(_SEGMENT, limit // 2))
    generator = torch.Generator().manual_seed(seed)
    ordinary = torch.tensor([token for token in range(config.vocab_size) if token not in special])
    ids, parts = [], []
    for index in range(_SEQUENCES):
        first = ordinary[torch.randint(len(ordinary), (size,), generator=generator)]
        first[size // 2] = first[0]  # the same token elsewhere in its own segment
        second = ordinary[torch.randint(len(ordinary), (size,), generator=generator)]
        half = size // 2
        second[:half] = first[torch.randperm(size, generator=generator)[:half]] if index % 2 else first[:half]
        if index % 2:
            second = second[torch.randperm(size, generator=generator)]
        ids.append([*before, *first.tolist(), *between, *second.tolist(), *after])
        parts.append([0] * (len(before) + size + len(between)) + [1] * (size + len(after)))
    tokens, segments = torch.tensor(ids), torch.tensor(parts)
    batch = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    if getattr(config, "type_vocab_size", 0) > 1:
        batch["token_type_ids"] = segments
    if modality == "text-to-text":
        start = torch.full_like(tokens[:, :1], config.decoder_start_token_id)
        batch |= {"decoder_input_ids": torch.cat([start, tokens[:, :-1]], 1)}
        batch |= {"decoder_attention_mask": torch.ones_like(tokens)}
    return [batch], [segments]


def _around(model: PreTrainedModel) -> tuple[list[int], list[int], list[int]]:
    """The special tokens before, between and after two texts, by the tokenizer; nothing without one."""
    try:
        tokenizer = load_tokenizer(model.name_or_path or None)
    except HeadsError:
        return [], [], []
    empty = tokenizer("")["input_ids"]
    before, after = (empty[:-1], empty[-1:]) if len(empty) > 1 else ([], empty)
    return before, after, after
