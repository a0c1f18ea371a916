"""Examples to padded batches of similar length, with masks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hf_heads.attention.hosts.parts import hook
from hf_heads.attention.hosts.table import adapter_of
from hf_heads.core.batches import Batch
from hf_heads.core.errors import HeadsError

_TOKENS_PER_BATCH = 2048
_IMAGES_PER_BATCH = 32  # or sounds
_OF_ONE_SIZE = ("pixel_values", "input_values", "input_features")
IGNORED = -100  # what the losses of transformers leave out

# Batching.


def make_batches(examples: list[dict[str, Any]], config: Any) -> list[Batch]:
    """Batches of examples of similar length, padded, with masks.

    Examples may have `labels`: a number, or one for every token, which are padded with `IGNORED`.
    """
    if set(_OF_ONE_SIZE) & set(examples[0]):
        batches = []
        for group in _of_one_shape(examples):
            starts = range(0, len(group), _IMAGES_PER_BATCH)
            batches += [collate(group[start : start + _IMAGES_PER_BATCH], pad_id(config)) for start in starts]
        also = adapter_of(config).also
        return batches if also is None else [{**batch, **hook(also)(config, batch)} for batch in batches]
    order = sorted(examples, key=lambda example: len(example["input_ids"]))
    groups: list[list[dict[str, Any]]] = [[]]
    for example in order:
        if groups[-1] and (len(groups[-1]) + 1) * len(example["input_ids"]) > _TOKENS_PER_BATCH:
            groups.append([])
        groups[-1].append(example)
    return [collate(group, pad_id(config)) for group in groups]


def _of_one_shape(examples: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Examples whose sounds or pixels are of one shape together: nothing of them is padded."""
    groups: dict[Any, list[dict[str, Any]]] = {}
    for example in examples:
        shape = next(example[name].shape for name in _OF_ONE_SIZE if name in example)
        groups.setdefault(shape, []).append(example)
    return list(groups.values())


def pad_id(config: Any) -> int:
    """The id that pads texts; of a model with a tower for texts, that tower's."""
    config = getattr(config, "text_config", None) or config
    return getattr(config, "pad_token_id", None) or 0


def collate(group: list[dict[str, Any]], pad: int) -> Batch:
    """One padded batch of examples, with masks; `pad` is the id that pads texts."""
    batch = {}
    if any("token_type_ids" in example for example in group):  # single texts among pairs are one segment
        group = [{"token_type_ids": [0] * len(example["input_ids"]), **example} for example in group]
    for name in group[0]:
        values = [example[name] for example in group]
        if name in _OF_ONE_SIZE:
            batch[name] = torch.stack(values)
        elif name == "input_ids":
            batch[name], batch["attention_mask"] = _pad(values, pad)
        elif name == "target_ids":
            batch[name], batch["target_mask"] = _pad(values, pad)
        elif name == "token_type_ids":
            batch[name], _ = _pad(values, 0)
        elif isinstance(values[0], list):
            batch[name], _ = _pad(values, IGNORED)
        else:
            batch[name] = torch.tensor(values)
    return batch


def _pad(sequences: list[list[int]], pad: int) -> tuple[Tensor, Tensor]:
    longest = max(len(sequence) for sequence in sequences)
    ids = torch.tensor([[*sequence, *[pad] * (longest - len(sequence))] for sequence in sequences])
    mask = torch.tensor([[1] * len(sequence) + [0] * (longest - len(sequence)) for sequence in sequences])
    return ids, mask


def with_targets(batch: Batch, config: Any, generate: Callable[[Batch], Tensor] | None) -> Batch:
    """A text-to-text batch with decoder inputs: the targets shifted right, or what the model itself would say.

    Raises:
        HeadsError: there are no targets and no `generate`.
    """
    batch = dict(batch)
    ids, mask = batch.pop("target_ids", None), batch.pop("target_mask", None)
    pad, start = getattr(config, "pad_token_id", None), config.decoder_start_token_id
    if ids is None:
        if generate is None:
            raise HeadsError("a text-to-text model needs source and target texts; name both with --columns a,b")
        decoder_ids = generate(batch)
        # The start token may double as padding: only what follows the first padding after it is padding.
        padding = torch.full_like(decoder_ids[:, 1:], -1 if pad is None else pad)
        ends = (decoder_ids[:, 1:] == padding).cumsum(1) > 0
        mask = torch.cat([torch.ones_like(decoder_ids[:, :1]), (~ends).long()], 1)
    else:
        assert mask is not None  # of what each position is to say, so that none behind the end token counts
        decoder_ids = torch.cat([torch.full_like(ids[:, :1], start), ids[:, :-1]], 1)
    return {**batch, "decoder_input_ids": decoder_ids, "decoder_attention_mask": mask}
