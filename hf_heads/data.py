"""Calibration data: whatever `datasets` loads, or made from nothing, as batches of a model's forward arguments."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .adapters import AttentionAdapter, adapter_of
from .errors import HeadsError

Batch = dict[str, Tensor]
_FORMATS = {
    ".jsonl": ("json", {}),
    ".json": ("json", {}),
    ".csv": ("csv", {}),
    ".tsv": ("csv", {"sep": "\t"}),
    ".parquet": ("parquet", {}),
    ".txt": ("text", {}),
}
_IMAGE_ENDINGS = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff"}
_TOKENS_PER_BATCH = 2048
_MAX_LENGTH = 128
HELD_OUT = 64


@dataclass(frozen=True)
class Data:
    """Batches to calibrate on and batches to measure on.

    Attributes:
        batches: for the statistics.
        held_out: for measuring drift; no example of `batches` is among them. Empty where there are too few.
        description: what the data is, for reports.
    """

    batches: list[Batch]
    held_out: list[Batch]
    description: str


def load_data(
    source: str | None,
    config: Any,
    folder: Path,
    *,
    columns: Sequence[str] | None = None,
    samples: int = 512,
    seed: int = 0,
    generate: Callable[[Batch], Tensor] | None = None,
) -> Data:
    """Calibration data for a model.

    Args:
        source: what `datasets` loads (a hub id, a data file, a folder of images), or None for data made from nothing.
        config: the model's config.
        folder: where its tokenizer or image processor is.
        columns: the columns to read; found when None.
        samples: how many examples to calibrate on; a few more are read to measure on.
        seed: of the choice of examples, or of the made data.
        generate: for text-to-text models, target ids for a batch of sources, where the data has no targets.

    Raises:
        HeadsError: the data cannot be found or read, has no such column, or is empty.
    """
    adapter = adapter_of(config)
    if samples < 1:
        raise HeadsError(f"--calibration-samples {samples} is not positive")
    if source is None:
        examples = _made(adapter, config, folder, samples + HELD_OUT, seed)
        description = f"{samples} {_MADE[adapter.modality]}, seed {seed}"
    else:
        raw, used = read_examples(source, columns, adapter.modality, samples + HELD_OUT, seed)
        examples = _ENCODE[adapter.modality](raw, folder)
        kept = len(examples) - min(HELD_OUT, len(examples) // 4)
        description = f"{min(samples, kept)} examples of {Path(source).name} ({', '.join(used)}), seed {seed}"
    held = min(HELD_OUT, len(examples) // 4)
    held_out, examples = examples[len(examples) - held :], examples[: len(examples) - held]

    def finish(chosen: list[dict[str, Any]]) -> list[Batch]:
        batches = _batches(chosen, config)
        if adapter.modality == "text-to-text":
            batches = [_with_targets(batch, config, generate) for batch in batches]
        return batches

    return Data(finish(examples), finish(held_out) if held_out else [], description)


# Reading.


def read_examples(
    source: str, columns: Sequence[str] | None, modality: str, count: int, seed: int
) -> tuple[list[Any], list[str]]:
    """Up to `count` raw examples of a data set, shuffled, and the columns that they come from.

    Texts are strings, text pairs tuples of two strings, images PIL images.

    Raises:
        HeadsError: see `load_data`.
    """
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(logging.CRITICAL)  # what it logs, it also raises
    dataset = _open(source, datasets)
    features = _reading(source, lambda: dataset.column_names or list(next(iter(dataset), {})))
    if not features:
        raise HeadsError(f"the data '{source}' is empty")
    if columns and (unknown := [name for name in columns if name not in features]):
        raise HeadsError(f"'{source}' has no column '{unknown[0]}'. Columns: {', '.join(features)}")
    rows = _reading(source, lambda: list(dataset.shuffle(seed=seed, buffer_size=10_000).take(count)))
    if not rows:
        raise HeadsError(f"the data '{source}' is empty")
    kind = "image" if modality == "image" else "text"
    used = list(columns or [name for name in features if _kind(rows[0][name]) == kind])
    if not used:
        raise HeadsError(f"'{source}' has no {kind} column. Columns: {', '.join(features)}; name one with --columns")
    if wrong := [name for name in used if _kind(rows[0][name]) != kind]:
        raise HeadsError(f"column '{wrong[0]}' of '{source}' holds no {kind}")
    if modality == "text-to-text" and len(used) > 1:
        if len(used) != 2:
            raise HeadsError(f"'{source}' has {len(used)} text columns; name source and target with --columns a,b")
        return [(row[used[0]], row[used[1]]) for row in rows if row[used[0]] and row[used[1]]], used
    found = [row[name] for row in rows for name in used if row[name]]
    if not found:
        raise HeadsError(f"column '{used[0]}' of '{source}' is empty")
    if len(used) > 1:  # several text columns are so many texts; take as many as were asked for, evenly
        found = found[:count]
    return [_image(value) for value in found] if kind == "image" else found, used


def _open(source: str, datasets: Any) -> Any:
    path = Path(source).expanduser()
    try:
        if path.is_file():
            if path.suffix not in _FORMATS:
                raise HeadsError(f"'{source}' is no {', '.join(_FORMATS)} file")
            if not path.stat().st_size:
                raise HeadsError(f"the data '{source}' is empty")
            builder, options = _FORMATS[path.suffix]
            return datasets.load_dataset(builder, data_files=str(path), split="train", streaming=True, **options)
        if path.is_dir():
            images = any(file.suffix.lower() in _IMAGE_ENDINGS for file in path.rglob("*"))
            if images:
                return datasets.load_dataset("imagefolder", data_dir=str(path), split="train", streaming=True)
            return datasets.load_dataset(str(path), split="train", streaming=True)
        if path.suffix in _FORMATS or path.is_absolute() or source.startswith("."):
            raise HeadsError(f"calibration data '{source}' does not exist")
        name, _, split = source.partition(":")
        return datasets.load_dataset(name, split=split or "train", streaming=True)
    except HeadsError:
        raise
    except Exception as error:
        raise HeadsError(f"cannot load '{source}' as data: {_first_line(error)}") from None


def _reading(source: str, read: Callable[[], list[Any]]) -> list[Any]:
    try:
        return read()
    except Exception as error:
        raise HeadsError(f"cannot read '{source}': {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}"[:240]


def _kind(value: Any) -> str:
    if isinstance(value, str):
        return "text"
    return "image" if hasattr(value, "convert") or _encoded(value) else "other"


def _encoded(value: Any) -> bool:
    return isinstance(value, bytes) or (isinstance(value, dict) and isinstance(value.get("bytes"), bytes))


def _image(value: Any) -> Any:
    if _encoded(value):
        from PIL import Image

        value = Image.open(io.BytesIO(value["bytes"] if isinstance(value, dict) else value))
    return value.convert("RGB")


# Encoding: raw examples to dicts of lists (token ids) or tensors (pixels), one for each example.


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder)
    except Exception as error:
        raise HeadsError(f"no tokenizer can be loaded from '{folder}': {_first_line(error)}") from None


def _encode_text(texts: list[str], folder: Path) -> list[dict[str, Any]]:
    encoded = _tokenizer(folder)(texts, truncation=True, max_length=_MAX_LENGTH)
    return [{"input_ids": ids} for ids in encoded["input_ids"]]


def _encode_pairs(pairs: list[Any], folder: Path) -> list[dict[str, Any]]:
    tokenizer = _tokenizer(folder)
    if isinstance(pairs[0], str):
        return [{"input_ids": ids} for ids in tokenizer(pairs, truncation=True, max_length=_MAX_LENGTH)["input_ids"]]
    sources, targets = zip(*pairs, strict=True)
    encoded = tokenizer(list(sources), text_target=list(targets), truncation=True, max_length=_MAX_LENGTH)
    return [
        {"input_ids": ids, "labels": labels}
        for ids, labels in zip(encoded["input_ids"], encoded["labels"], strict=True)
    ]


def _encode_images(images: list[Any], folder: Path) -> list[dict[str, Any]]:
    from transformers import AutoImageProcessor

    try:
        processor = AutoImageProcessor.from_pretrained(folder)
    except Exception as error:
        raise HeadsError(f"no image processor can be loaded from '{folder}': {_first_line(error)}") from None
    return [{"pixel_values": processor(image, return_tensors="pt")["pixel_values"][0]} for image in images]


_ENCODE: dict[str, Callable[[list[Any], Path], list[dict[str, Any]]]] = {
    "text": _encode_text,
    "text-to-text": _encode_pairs,
    "image": _encode_images,
}


# Data made from nothing.

_MADE = {
    "text": "sequences of random token ids",
    "text-to-text": "sequences of random token ids with the model's own continuations",
    "image": "random images with the spectrum of natural ones",
}


def _made(adapter: AttentionAdapter, config: Any, folder: Path, count: int, seed: int) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(seed)
    if adapter.modality == "image":
        return [{"pixel_values": pixels} for pixels in _random_images(config, count, generator)]
    return [{"input_ids": ids} for ids in _random_tokens(config, folder, count, generator)]


def _random_tokens(config: Any, folder: Path, count: int, generator: torch.Generator) -> list[list[int]]:
    """Uniformly random ordinary tokens of 4 to 32, inside the special tokens that the tokenizer puts around a text."""
    try:
        tokenizer = _tokenizer(folder)
        special = set(tokenizer.all_special_ids)
        empty = tokenizer("")["input_ids"]
    except HeadsError:  # a checkpoint without a tokenizer still has ids
        special = {
            value for value in (config.pad_token_id, config.bos_token_id, config.eos_token_id) if value is not None
        }
        empty = []
    ordinary = torch.tensor([token for token in range(config.vocab_size) if token not in special])
    limit = getattr(config, "max_position_embeddings", _MAX_LENGTH) - len(empty)
    longest = min(32, limit)
    before = empty[:-1] if len(empty) > 1 else []
    after = empty[-1:]
    sequences = []
    for _ in range(count):
        length = int(torch.randint(min(4, longest), longest + 1, (), generator=generator))
        ids = ordinary[torch.randint(len(ordinary), (length,), generator=generator)].tolist()
        sequences.append([*before, *ids, *after])
    return sequences


def _random_images(config: Any, count: int, generator: torch.Generator) -> Tensor:
    """Noise whose amplitude falls with frequency as in photographs (1/f), as normalised pixels.

    (count, channels, height, width); colours are mostly shared by the channels, contrast varies between images.
    """
    size = config.image_size
    height, width = (size, size) if isinstance(size, int) else size
    channels = config.num_channels
    frequency = (torch.fft.fftfreq(height)[:, None] ** 2 + torch.fft.fftfreq(width) ** 2).sqrt()
    frequency[0, 0] = 1 / max(height, width)
    noise = torch.randn(count, channels + 1, height, width, generator=generator)
    spectrum = torch.fft.fft2(noise) / frequency
    field = torch.fft.ifft2(spectrum).real
    field = field / field.std(dim=(2, 3), keepdim=True)
    shared = field[:, :1] + 0.4 * field[:, 1:]
    contrast = 0.5 + torch.rand(count, 1, 1, 1, generator=generator)
    return shared * contrast


# Batching.


def _batches(examples: list[dict[str, Any]], config: Any) -> list[Batch]:
    """Batches of examples of similar length, padded, with masks."""
    if "pixel_values" in examples[0]:
        stacked = torch.stack([example["pixel_values"] for example in examples])
        return [{"pixel_values": part} for part in stacked.split(32)]
    order = sorted(examples, key=lambda example: len(example["input_ids"]))
    groups: list[list[dict[str, Any]]] = [[]]
    for example in order:
        if groups[-1] and (len(groups[-1]) + 1) * len(example["input_ids"]) > _TOKENS_PER_BATCH:
            groups.append([])
        groups[-1].append(example)
    pad = config.pad_token_id or 0
    batches = []
    for group in groups:
        ids, mask = _pad([example["input_ids"] for example in group], pad)
        batch = {"input_ids": ids, "attention_mask": mask}
        if "labels" in group[0]:
            batch["target_ids"], batch["target_mask"] = _pad([example["labels"] for example in group], pad)
        batches.append(batch)
    return batches


def _pad(sequences: list[list[int]], pad: int) -> tuple[Tensor, Tensor]:
    longest = max(len(sequence) for sequence in sequences)
    ids = torch.tensor([[*sequence, *[pad] * (longest - len(sequence))] for sequence in sequences])
    mask = torch.tensor([[1] * len(sequence) + [0] * (longest - len(sequence)) for sequence in sequences])
    return ids, mask


def _with_targets(batch: Batch, config: Any, generate: Callable[[Batch], Tensor] | None) -> Batch:
    """A text-to-text batch with decoder inputs: the targets shifted right, or what the model itself would say."""
    ids, mask = batch.pop("target_ids", None), batch.pop("target_mask", None)
    pad, start = config.pad_token_id, config.decoder_start_token_id
    if ids is None:
        if generate is None:
            raise HeadsError("a text-to-text model needs source and target texts; name both with --columns a,b")
        decoder_ids = generate(batch)
        # The start token may double as padding: only what follows the first padding after it is padding.
        ends = (decoder_ids[:, 1:] == pad).cumsum(1) > 0
        mask = torch.cat([torch.ones_like(decoder_ids[:, :1]), (~ends).long()], 1)
    else:
        assert mask is not None
        decoder_ids = torch.cat([torch.full_like(ids[:, :1], start), ids[:, :-1]], 1)
        mask = torch.cat([torch.ones_like(mask[:, :1]), mask[:, :-1]], 1)
    return {**batch, "decoder_input_ids": decoder_ids, "decoder_attention_mask": mask}
