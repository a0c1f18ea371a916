"""Data made from nothing: random tokens, images with the spectrum of natural ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hf_heads.attention.hosts.table import adapter_of
from hf_heads.core.errors import HeadsError
from hf_heads.io.data.encoding import MAX_LENGTH, load_tokenizer

MADE = {
    "text": "sequences of random token ids",
    "text-to-text": "sequences of random token ids with the model's own continuations",
    "image": "random images with the spectrum of natural ones",
}


def made_examples(config: Any, folder: Path | str | None, count: int, seed: int) -> list[dict[str, Any]]:
    """Examples made from nothing, by the model's modality; see `MADE`."""
    adapter = adapter_of(config)
    generator = torch.Generator().manual_seed(seed)
    if adapter.modality == "image":
        return [{"pixel_values": pixels} for pixels in _random_images(config, count, generator)]
    return [{"input_ids": ids} for ids in _random_tokens(config, folder, count, generator)]


def _random_tokens(config: Any, folder: Path | str | None, count: int, generator: torch.Generator) -> list[list[int]]:
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
