"""Calibration data: whatever `datasets` loads, or made from nothing, as batches of a model's forward arguments."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from .adapters import adapter_of
from .errors import HeadsError

Batch = dict[str, Tensor]
Content = Literal["text", "image"]
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
_IMAGES_PER_BATCH = 32
MAX_LENGTH = 128
HELD_OUT = 64
IGNORED = -100  # what the losses of transformers leave out


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
        examples = made_examples(config, folder, samples + HELD_OUT, seed)
        description = f"{samples} {_MADE[adapter.modality]}, seed {seed}"
    else:
        raw, used = read_examples(source, columns, adapter.modality, samples + HELD_OUT, seed)
        examples = ENCODE[adapter.modality](raw, folder)
        kept = len(examples) - min(HELD_OUT, len(examples) // 4)
        description = f"{min(samples, kept)} examples of {Path(source).name} ({', '.join(used)}), seed {seed}"
    held = min(HELD_OUT, len(examples) // 4)
    held_out, examples = examples[len(examples) - held :], examples[: len(examples) - held]

    def finish(chosen: list[dict[str, Any]]) -> list[Batch]:
        batches = make_batches(chosen, config)
        if adapter.modality == "text-to-text":
            batches = [with_targets(batch, config, generate) for batch in batches]
        return batches

    return Data(finish(examples), finish(held_out) if held_out else [], description)


# Reading.


@dataclass(frozen=True)
class Table:
    """Rows of a data set.

    Attributes:
        source: what they were read from.
        rows: a value for every column, each; not empty.
        columns: names of the columns.
        classes: of the columns whose integers stand for names, as in a folder of images: the names.
    """

    source: str
    rows: list[dict[str, Any]]
    columns: list[str]
    classes: dict[str, list[str]]

    def of_kind(self, kind: Content, columns: Sequence[str] | None, besides: str | None = None) -> list[str]:
        """The columns that hold texts or images: `columns`, or all that do but `besides` when None.

        Raises:
            HeadsError: one of `columns` holds something else, or no column holds any.
        """
        first = self.rows[0]
        used = list(columns or [name for name in self.columns if name != besides and _kind(first[name]) == kind])
        if not used:
            have = ", ".join(self.columns)
            raise HeadsError(f"'{self.source}' has no {kind} column. Columns: {have}; name one with --columns")
        if wrong := [name for name in used if _kind(first[name]) != kind]:
            raise HeadsError(f"column '{wrong[0]}' of '{self.source}' holds no {kind}")
        return used


def read_table(source: str, columns: Sequence[str], count: int, seed: int) -> Table:
    """Up to `count` rows of a data set, shuffled, that has all of `columns`.

    Raises:
        HeadsError: see `load_data`.
    """
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(logging.CRITICAL)  # what it logs, it also raises
    dataset = _open(source, datasets)
    names = _reading(source, lambda: dataset.column_names or list(next(iter(dataset), {})))
    if not names:
        raise HeadsError(f"the data '{source}' is empty")
    if unknown := [name for name in columns if name not in names]:
        raise HeadsError(f"'{source}' has no column '{unknown[0]}'. Columns: {', '.join(names)}")
    rows = _reading(source, lambda: list(dataset.shuffle(seed=seed, buffer_size=10_000).take(count)))
    if not rows:
        raise HeadsError(f"the data '{source}' is empty")
    features = (dataset.features or {}).items()
    classes = {name: feature.names for name, feature in features if isinstance(feature, datasets.ClassLabel)}
    return Table(source, rows, names, classes)


def read_examples(
    source: str, columns: Sequence[str] | None, modality: str, count: int, seed: int
) -> tuple[list[Any], list[str]]:
    """Up to `count` raw examples of a data set, shuffled, and the columns that they come from.

    Texts are strings, text pairs tuples of two strings, images PIL images.

    Raises:
        HeadsError: see `load_data`.
    """
    table = read_table(source, columns or (), count, seed)
    kind: Content = "image" if modality == "image" else "text"
    used = table.of_kind(kind, columns)
    if modality == "text-to-text" and len(used) > 1:
        if len(used) != 2:
            raise HeadsError(f"'{source}' has {len(used)} text columns; name source and target with --columns a,b")
        return [(row[used[0]], row[used[1]]) for row in table.rows if row[used[0]] and row[used[1]]], used
    found = [row[name] for row in table.rows for name in used if row[name]]
    if not found:
        raise HeadsError(f"column '{used[0]}' of '{source}' is empty")
    if len(used) > 1:  # several text columns are so many texts; take as many as were asked for, evenly
        found = found[:count]
    return [to_image(value) for value in found] if kind == "image" else found, used


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


def _kind(value: Any) -> Content | Literal["other"]:
    if isinstance(value, str):
        return "text"
    return "image" if hasattr(value, "convert") or _encoded(value) else "other"


def _encoded(value: Any) -> bool:
    return isinstance(value, bytes) or (isinstance(value, dict) and isinstance(value.get("bytes"), bytes))


def to_image(value: Any) -> Any:
    """A PIL image in RGB from an image, its encoded bytes or a dict that holds them."""
    if _encoded(value):
        from PIL import Image

        value = Image.open(io.BytesIO(value["bytes"] if isinstance(value, dict) else value))
    return value.convert("RGB")


# Encoding: raw examples to dicts of lists (token ids) or tensors (pixels), one for each example.


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a checkpoint.

    Raises:
        HeadsError: there is none that can be loaded.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder)
    except Exception as error:
        raise HeadsError(f"no tokenizer can be loaded from '{folder}': {_first_line(error)}") from None


def encode_text(texts: list[str], folder: Path) -> list[dict[str, Any]]:
    """Examples with `input_ids`."""
    encoded = load_tokenizer(folder)(texts, truncation=True, max_length=MAX_LENGTH)
    return [{"input_ids": ids} for ids in encoded["input_ids"]]


def encode_pairs(pairs: list[Any], folder: Path) -> list[dict[str, Any]]:
    """Examples with `input_ids` of sources and `target_ids` of targets; without the latter where no pairs are."""
    tokenizer = load_tokenizer(folder)
    if isinstance(pairs[0], str):
        return [{"input_ids": ids} for ids in tokenizer(pairs, truncation=True, max_length=MAX_LENGTH)["input_ids"]]
    sources, targets = zip(*pairs, strict=True)
    encoded = tokenizer(list(sources), text_target=list(targets), truncation=True, max_length=MAX_LENGTH)
    return [
        {"input_ids": ids, "target_ids": target}
        for ids, target in zip(encoded["input_ids"], encoded["labels"], strict=True)
    ]


def encode_images(images: list[Any], folder: Path) -> list[dict[str, Any]]:
    """Examples with `pixel_values` (channels, height, width).

    Raises:
        HeadsError: the folder has no image processor that can be loaded.
    """
    from transformers import AutoImageProcessor

    try:
        processor = AutoImageProcessor.from_pretrained(folder)
    except Exception as error:
        raise HeadsError(f"no image processor can be loaded from '{folder}': {_first_line(error)}") from None
    return [{"pixel_values": processor(image, return_tensors="pt")["pixel_values"][0]} for image in images]


ENCODE: dict[str, Callable[[list[Any], Path], list[dict[str, Any]]]] = {
    "text": encode_text,
    "text-to-text": encode_pairs,
    "image": encode_images,
}


# Data made from nothing.

_MADE = {
    "text": "sequences of random token ids",
    "text-to-text": "sequences of random token ids with the model's own continuations",
    "image": "random images with the spectrum of natural ones",
}


def made_examples(config: Any, folder: Path, count: int, seed: int) -> list[dict[str, Any]]:
    """Examples made from nothing, by the model's modality; see `_MADE`."""
    adapter = adapter_of(config)
    generator = torch.Generator().manual_seed(seed)
    if adapter.modality == "image":
        return [{"pixel_values": pixels} for pixels in _random_images(config, count, generator)]
    return [{"input_ids": ids} for ids in _random_tokens(config, folder, count, generator)]


def _random_tokens(config: Any, folder: Path, count: int, generator: torch.Generator) -> list[list[int]]:
    """Uniformly random ordinary tokens of 4 to 32, inside the special tokens that the tokenizer puts around a text."""
    try:
        tokenizer = load_tokenizer(folder)
        special = set(tokenizer.all_special_ids)
        empty = tokenizer("")["input_ids"]
    except HeadsError:  # a checkpoint without a tokenizer still has ids
        special = {
            value for value in (config.pad_token_id, config.bos_token_id, config.eos_token_id) if value is not None
        }
        empty = []
    ordinary = torch.tensor([token for token in range(config.vocab_size) if token not in special])
    limit = getattr(config, "max_position_embeddings", MAX_LENGTH) - len(empty)
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


def make_batches(examples: list[dict[str, Any]], config: Any) -> list[Batch]:
    """Batches of examples of similar length, padded, with masks.

    Examples may have `labels`: a number, or one for every token, which are padded with `IGNORED`.
    """
    if "pixel_values" in examples[0]:
        starts = range(0, len(examples), _IMAGES_PER_BATCH)
        return [collate(examples[start : start + _IMAGES_PER_BATCH], 0) for start in starts]
    order = sorted(examples, key=lambda example: len(example["input_ids"]))
    groups: list[list[dict[str, Any]]] = [[]]
    for example in order:
        if groups[-1] and (len(groups[-1]) + 1) * len(example["input_ids"]) > _TOKENS_PER_BATCH:
            groups.append([])
        groups[-1].append(example)
    return [collate(group, config.pad_token_id or 0) for group in groups]


def collate(group: list[dict[str, Any]], pad: int) -> Batch:
    """One padded batch of examples, with masks; `pad` is the id that pads texts."""
    batch = {}
    for name in group[0]:
        values = [example[name] for example in group]
        if name == "pixel_values":
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
