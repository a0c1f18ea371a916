"""Raw examples to dicts of lists (token ids) or tensors (pixels), one for each example."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import AutoImageProcessor, AutoTokenizer

from hf_heads.core.errors import HeadsError, reason
from hf_heads.io.checkpoints.json_files import read_json
from hf_heads.io.checkpoints.sources import check_own_code

MAX_LENGTH = 128

# Encoding: raw examples to dicts of lists (token ids) or tensors (pixels), one for each example.


def load_tokenizer(folder: Path | str | None) -> Any:
    """The tokenizer of a checkpoint.

    Raises:
        HeadsError: there is none that can be loaded.
    """
    if folder is None:
        raise HeadsError("the model does not say where its tokenizer is: give batches instead")
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:
        check_own_code(error, folder)
        raise HeadsError(f"no tokenizer can be loaded from '{folder}': {reason(error)}") from None


def longest(tokenizer: Any, folder: Path | str | None) -> int:
    """The most tokens of a text: `MAX_LENGTH`, or what the tokenizer or the model beside it takes if that is less."""
    file = Path(folder or "") / "config.json"
    positions = read_json(file, "config").get("max_position_embeddings") if file.is_file() else None
    limits = (MAX_LENGTH, tokenizer.model_max_length, positions)
    return min(limit for limit in limits if isinstance(limit, int) and limit > 0)


def encode_text(texts: list[str], folder: Path | str | None) -> list[dict[str, Any]]:
    """Examples with `input_ids`."""
    tokenizer = load_tokenizer(folder)
    encoded = tokenizer(texts, truncation=True, max_length=longest(tokenizer, folder))
    return [{"input_ids": ids} for ids in encoded["input_ids"]]


def encode_pairs(pairs: list[Any], folder: Path | str | None) -> list[dict[str, Any]]:
    """Examples with `input_ids` of sources and `target_ids` of targets; without the latter where no pairs are."""
    tokenizer = load_tokenizer(folder)
    limit = longest(tokenizer, folder)
    if isinstance(pairs[0], str):
        return [{"input_ids": ids} for ids in tokenizer(pairs, truncation=True, max_length=limit)["input_ids"]]
    sources, targets = zip(*pairs, strict=True)
    encoded = tokenizer(list(sources), text_target=list(targets), truncation=True, max_length=limit)
    return [
        {"input_ids": ids, "target_ids": target}
        for ids, target in zip(encoded["input_ids"], encoded["labels"], strict=True)
    ]


def encode_images(images: list[Any], folder: Path | str | None) -> list[dict[str, Any]]:
    """Examples with `pixel_values` (channels, height, width).

    Raises:
        HeadsError: the folder has no image processor that can be loaded.
    """
    if folder is None:
        raise HeadsError("the model does not say where its image processor is: give batches instead")
    try:
        processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:
        check_own_code(error, folder)
        raise HeadsError(f"no image processor can be loaded from '{folder}': {reason(error)}") from None
    return [{"pixel_values": processor(image, return_tensors="pt")["pixel_values"][0]} for image in images]


ENCODE: dict[str, Callable[[list[Any], Path | str | None], list[dict[str, Any]]]] = {
    "text": encode_text,
    "text-to-text": encode_pairs,
    "image": encode_images,
}
