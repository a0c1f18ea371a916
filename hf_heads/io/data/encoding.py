"""Raw examples to dicts of lists (token ids) or tensors (pixels), one for each example."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import AutoFeatureExtractor, AutoImageProcessor, AutoTokenizer

from hf_heads.core.errors import HeadsError, reason
from hf_heads.io.checkpoints.json_files import read_json
from hf_heads.io.checkpoints.sources import check_own_code
from hf_heads.io.data.choice import MAX_LENGTH

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


def longest(tokenizer: Any, folder: Path | str | None, wanted: int | None = None, positions: int | None = None) -> int:
    """The most tokens of a text: `wanted`, or what the model and its tokenizer take, up to `MAX_LENGTH`.

    Args:
        tokenizer: of the model.
        folder: the model's, whose config says how many positions it has.
        wanted: what somebody asked for; None takes all that fits.
        positions: of a model in memory.

    Raises:
        HeadsError: more is wanted than fits.
    """
    file = Path(folder or "") / "config.json"
    if positions is None and file.is_file():
        positions = read_json(file, "config").get("max_position_embeddings")
    limits = [limit for limit in (tokenizer.model_max_length, positions) if isinstance(limit, int) and limit > 0]
    if wanted is not None and (most := min(limits, default=wanted)) < wanted:
        raise HeadsError(f"texts of {wanted} tokens do not fit: the model takes {most}; lower --max-length")
    return min([*limits, wanted or MAX_LENGTH])


def encode_text(texts: list[Any], folder: Path | str | None, limit: int | None = None) -> list[dict[str, Any]]:
    """Examples with `input_ids` of texts; of pairs of texts, also with `token_type_ids` if the tokenizer has them.

    Args:
        texts: strings, or tuples of two, which become two segments of one sequence.
        folder: where the tokenizer is.
        limit: the most tokens, see `longest`; longer texts are cut, of pairs the longer one first.
    """
    if not texts:
        return []
    tokenizer = load_tokenizer(folder)
    limit = longest(tokenizer, folder, limit)
    if isinstance(texts[0], str):
        return [{"input_ids": ids} for ids in tokenizer(texts, truncation=True, max_length=limit)["input_ids"]]
    first, second = zip(*texts, strict=True)
    encoded = tokenizer(list(first), list(second), truncation=True, max_length=limit)
    names = [name for name in ("input_ids", "token_type_ids") if name in encoded]
    return [{name: encoded[name][index] for name in names} for index in range(len(texts))]


def encode_pairs(pairs: list[Any], folder: Path | str | None, limit: int | None = None) -> list[dict[str, Any]]:
    """Examples with `input_ids` of sources and `target_ids` of targets; without the latter where no pairs are."""
    if not pairs or isinstance(pairs[0], str):
        return encode_text(pairs, folder, limit)
    tokenizer = load_tokenizer(folder)
    limit = longest(tokenizer, folder, limit)
    sources, targets = zip(*pairs, strict=True)
    encoded = tokenizer(list(sources), text_target=list(targets), truncation=True, max_length=limit)
    return [
        {"input_ids": ids, "target_ids": target}
        for ids, target in zip(encoded["input_ids"], encoded["labels"], strict=True)
    ]


def encode_images(images: list[Any], folder: Path | str | None, limit: int | None = None) -> list[dict[str, Any]]:
    """Examples with `pixel_values` (channels, height, width); `limit` is a matter of texts.

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


def encode_captioned(pairs: list[Any], folder: Path | str | None, limit: int | None = None) -> list[dict[str, Any]]:
    """Examples with `input_ids` and `pixel_values` of tuples (text, image)."""
    if not pairs:
        return []
    texts, images = zip(*pairs, strict=True)
    encoded = zip(encode_text(list(texts), folder, limit), encode_images(list(images), folder), strict=True)
    return [{**text, **image} for text, image in encoded]


def encode_sounds(sounds: list[Any], folder: Path | str | None, limit: int | None = None) -> list[dict[str, Any]]:
    """Examples with what a model's feature extractor makes of sounds, and `target_ids` of the texts that they may have.

    Args:
        sounds: tuples (sound,) or (sound, text).
        folder: where the feature extractor is, and the tokenizer where there are texts.
        limit: the most tokens of a text.

    Raises:
        HeadsError: there is no feature extractor, or a sound has another rate than the model takes.
    """
    if folder is None:
        raise HeadsError("the model does not say where its feature extractor is: give batches instead")
    try:
        extractor = AutoFeatureExtractor.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:
        check_own_code(error, folder)
        raise HeadsError(f"no feature extractor can be loaded from '{folder}': {reason(error)}") from None
    examples = []
    for sound, *_ in sounds:
        if sound.rate != extractor.sampling_rate:
            raise HeadsError(
                f"a sound has {sound.rate} samples in a second, the model takes {extractor.sampling_rate}: resample it"
            )
        found = extractor(sound.samples.numpy(), sampling_rate=sound.rate, return_tensors="pt")
        examples.append({name: found[name][0] for name in ("input_values", "input_features") if name in found})
    if sounds and len(sounds[0]) > 1:
        texts = encode_text([text for _, text in sounds], folder, limit)
        examples = [{**one, "target_ids": text["input_ids"]} for one, text in zip(examples, texts, strict=True)]
    return examples


ENCODE: dict[str, Callable[[list[Any], Path | str | None, int | None], list[dict[str, Any]]]] = {
    "text": encode_text,
    "text-to-text": encode_pairs,
    "image": encode_images,
    "audio": encode_sounds,
    "audio-to-text": encode_sounds,
    "text-image": encode_captioned,
}


def digest(example: dict[str, Any]) -> bytes:
    """What tells an encoded example from others in few bytes: images and sounds are large."""
    found = hashlib.sha256()
    for name, value in sorted(example.items()):
        found.update(f"{name} {getattr(value, 'shape', '')}".encode())
        found.update(value.contiguous().numpy().tobytes() if isinstance(value, Tensor) else repr(value).encode())
    return found.digest()
