"""Data made from nothing: random words, frequent ones more often, and images with the spectrum of natural ones."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hf_heads.attention.hosts.table import adapter_of, positions_of
from hf_heads.core.errors import HeadsError
from hf_heads.io.data.choice import MAX_LENGTH
from hf_heads.io.data.encoding import load_tokenizer, longest
from hf_heads.io.data.lengths import spread

MADE = {
    "text": "sequences of random tokens",
    "text-to-text": "sequences of random tokens with the model's own continuations",
    "image": "random images with the spectrum of natural ones",
    "audio": "random sounds with the spectrum of natural ones",
    "audio-to-text": "random sounds, as spectra, with the model's own words",
    "text-image": "sequences of random tokens, each with a random image with the spectrum of natural ones",
}


def made_examples(
    config: Any,
    folder: Path | str | None,
    count: int,
    seed: int,
    *,
    pairs: bool | None = None,
    max_length: int | None = None,
    mixed: bool = True,
) -> list[dict[str, Any]]:
    """Examples made from nothing, by the model's modality; see `MADE`.

    Texts have 4 to 32 tokens, as frequent as `frequencies` says, and some of them 64 to `max_length`. Where the model
    tells segments apart, every second one has two, and half of the second segment's tokens are of the first.

    Args:
        config: the model's.
        folder: where its tokenizer is.
        count: how many.
        seed: of all that is random.
        pairs: all texts have two segments, or none has.
        max_length: the most tokens of a text.
        mixed: else all texts are short.

    Raises:
        HeadsError: more tokens are asked for than the model takes.
    """
    adapter = adapter_of(config)
    generator = torch.Generator().manual_seed(seed)
    if (made := _one_length(config, folder, count, generator, frequent=True)) is not None:
        return made
    maker = TokenMaker(config, folder, generator, max_length, frequent=True)
    longest = maker.limit if adapter.modality == "text" else min(maker.limit, _LONGEST_TRANSLATED)
    two = maker.segments and adapter.modality == "text" and pairs is not False
    examples = []
    for index, length in enumerate(made_lengths(count, longest) if mixed else [None] * count):
        examples.append(maker.make(length, two and (pairs is True or index % 2 == 1)))
    order = torch.randperm(count, generator=generator).tolist()  # so that those held out are of all lengths
    return [examples[index] for index in order]


def made_lengths(count: int, longest: int) -> list[int | None]:
    """The lengths in tokens of so many texts, special ones included; None of those of a random few."""
    lengths = [length for length in spread(count, longest) if length > _SHORT[1]]
    return [*[None] * (count - len(lengths)), *lengths]


def made_of_length(
    config: Any, folder: Path | str | None, length: int, count: int, seed: int, pairs: bool | None = None
) -> list[dict[str, Any]]:
    """Examples of one length in tokens, as `made_examples` makes them; none where the model takes fewer tokens."""
    maker = TokenMaker(config, folder, torch.Generator().manual_seed(seed), None)
    if length > maker.limit:
        return []
    two = maker.segments and adapter_of(config).modality == "text" and pairs is not False
    return [maker.make(length, two and (pairs is True or index % 2 == 1)) for index in range(count)]


def probe_examples(config: Any, folder: Path | str | None, count: int, seed: int) -> list[dict[str, Any]]:
    """Short single texts, images or sounds: what figures called `random` are measured on, the same for ever.

    All tokens alike, so that no calibration on made data has seen quite the same.
    """
    generator = torch.Generator().manual_seed(seed)
    if (made := _one_length(config, folder, count, generator)) is not None:
        return made
    maker = TokenMaker(config, folder, generator, None)
    return [maker.make(None, False) for _ in range(count)]


def _one_length(
    config: Any, folder: Path | str | None, count: int, generator: torch.Generator, *, frequent: bool = False
) -> list[dict[str, Any]] | None:
    """Examples of a modality whose inputs are of one size; None where they are texts."""
    modality = adapter_of(config).modality
    if modality == "image":
        return [{"pixel_values": pixels} for pixels in _random_images(config, count, generator)]
    if modality == "audio":
        return [{"input_values": sound} for sound in _random_sounds(config, count, generator)]
    if modality == "audio-to-text":
        return [{"input_features": spectrum} for spectrum in _random_spectra(config, count, generator)]
    if modality == "text-image":
        pixels = _random_images(config.vision_config, count, generator)
        maker = TokenMaker(config.text_config, folder, generator, None, frequent=frequent)
        return [{**maker.make(None, False), "pixel_values": one} for one in pixels]
    return None


_SHORT = (4, 32)  # tokens of a text of no length in particular, without the special ones
_LONGEST_TRANSLATED = 64  # of sources to which the model writes the targets, token by token
_RARE = 100  # how many of the most frequent words are about equally so
_STOPS = 0.1  # the share of full stops and commas
_MARKS = re.compile(r"^(##|▁|Ġ)+|(</w>|@@)$")  # of tokenizers, where a word begins, goes on or ends


def frequencies(tokens: Sequence[str | None]) -> Tensor | None:
    """How often to draw each of a vocabulary's tokens, given in its order, (count,); None where all alike.

    What is None is no token, and never drawn.

    Vocabularies are in the order of frequency, as the trainers of WordPiece, BPE and unigram tokenizers write them, and
    the word of rank r makes a share of about 1 / r of a language's texts (Zipf 1949; Mandelbrot 1953 for the first).
    Words are tokens of two characters or more. Full stops and commas are a tenth of all; other characters are as
    frequent as the rarest word, since vocabularies begin with whole alphabets, and what is in brackets is never drawn.
    Where less than half are words, as of Chinese, the order says nothing.
    """
    plain = [_MARKS.sub("", token or "") for token in tokens]
    bracketed = torch.tensor([not one or (len(one) > 2 and one[0] + one[-1] in ("[]", "<>")) for one in plain])
    words = torch.tensor([len(one) > 1 for one in plain]) & ~bracketed
    if 2 * int(words.sum()) <= sum(token is not None for token in tokens):
        return None
    rank = torch.where(words, words.cumsum(0), words.sum())
    found = torch.where(bracketed, 0.0, 1 / (rank + _RARE))
    stops = torch.tensor([one in (".", ",") for one in plain])
    if stops.any():
        found[stops] = float(found[~stops].sum()) * _STOPS / (1 - _STOPS) / int(stops.sum())
    return found


class TokenMaker:
    """Random ordinary tokens inside the special tokens that the tokenizer puts around a text, or a pair.

    Args:
        config: the model's.
        folder: where its tokenizer is.
        generator: of all that is random.
        max_length: the most tokens of an example, where that is less than the model takes.
        frequent: draw tokens as often as `frequencies` says, else all alike.

    Attributes:
        around: the special tokens before a text, and those after it.
        ordinary: (count,), all others.
        weights: (count,), how often each of them is drawn; None where all alike.
        limit: the most tokens of an example, the special ones included.
        segments: whether model and tokenizer tell two segments apart.
    """

    def __init__(
        self,
        config: Any,
        folder: Path | str | None,
        generator: torch.Generator,
        max_length: int | None,
        *,
        frequent: bool = False,
    ) -> None:
        self.generator, self.segments, tokenizer = generator, False, None
        self.around: list[list[int]] = [[], []]
        positions = positions_of(config) or MAX_LENGTH
        try:
            tokenizer = load_tokenizer(folder)
        except HeadsError:  # a checkpoint without a tokenizer still has ids
            values = (getattr(config, f"{name}_token_id", None) for name in ("pad", "bos", "eos"))
            special = {value for value in values if isinstance(value, int)}
            self.limit = min(positions, max_length or MAX_LENGTH)
            self.most = positions
        else:
            special = set(tokenizer.all_special_ids)
            empty = tokenizer("")["input_ids"]
            self.around = [empty[:-1] if len(empty) > 1 else [], empty[-1:]]
            self.limit = longest(tokenizer, folder, max_length, positions)
            self.most = positions - len(empty)
            if (getattr(config, "type_vocab_size", None) or 0) > 1:
                self._read_template(tokenizer)
        self.ordinary = torch.tensor([token for token in range(config.vocab_size) if token not in special])
        self.weights: Tensor | None = None
        if frequent and tokenizer is not None:
            known = self.ordinary[self.ordinary < len(tokenizer)]  # embeddings may have more rows
            tokens = tokenizer.convert_ids_to_tokens(known.tolist())
            self.weights = frequencies([*tokens, *[None] * (len(self.ordinary) - len(known))])

    def _read_template(self, tokenizer: Any) -> None:
        """What stands before, between and after two segments, and the types of it all, from a pair of one word each."""
        word = next((one for one in tokenizer.get_vocab() if one.isalpha() and one.isascii()), "a")
        encoded = tokenizer(word, word)
        if not getattr(encoded, "is_fast", False) or "token_type_ids" not in encoded:
            return
        of_segment = encoded.sequence_ids(0)
        if 0 not in of_segment or 1 not in of_segment:
            return
        first, second = of_segment.index(0), of_segment.index(1)
        first_end = first + of_segment.count(0)
        second_end = second + of_segment.count(1)
        ids, types = encoded["input_ids"], encoded["token_type_ids"]
        self.before, self.between, self.after = ids[:first], ids[first_end:second], ids[second_end:]
        self.types = types[:first], types[first], types[first_end:second], types[second], types[second_end:]
        self.segments = True

    def free(self, length: int | None, two: bool) -> int:
        """How many ordinary tokens an example of so many tokens, or of a random few, has."""
        around = len(self.before) + len(self.between) + len(self.after) if two else sum(map(len, self.around))
        if length is None:
            longest_short = min(_SHORT[1], self.most)
            shortest = min(_SHORT[0], longest_short)
            free = int(torch.randint(shortest, longest_short + 1, (), generator=self.generator))
        else:
            free = length - around
        return max(min(free, self.limit - around), 1)

    def _drawn(self, count: int) -> Tensor:
        """Indices of so many ordinary tokens."""
        if self.weights is None:
            return torch.randint(len(self.ordinary), (count,), generator=self.generator)
        return torch.multinomial(self.weights, count, replacement=True, generator=self.generator)

    def make(self, length: int | None, two: bool) -> dict[str, Any]:
        """An example of so many tokens, or of a random few, with one segment or two."""
        free = self.free(length, two)
        ids = self.ordinary[self._drawn(free)]
        if not two or free < 2:
            return {"input_ids": [*self.around[0], *ids.tolist(), *self.around[1]]}
        # Half of the second segment's tokens are of the first, anywhere in it: attention may look for them.
        first, second = ids[: (free + 1) // 2], ids[(free + 1) // 2 :]
        taken = first[torch.randint(len(first), second.shape, generator=self.generator)]
        second = torch.where(torch.rand(second.shape, generator=self.generator) < 0.5, taken, second)
        before, first_type, between, second_type, after = self.types
        return {
            "input_ids": [*self.before, *first.tolist(), *self.between, *second.tolist(), *self.after],
            "token_type_ids": [
                *before,
                *[first_type] * len(first),
                *between,
                *[second_type] * len(second),
                *after,
            ],
        }


def _random_images(config: Any, count: int, generator: torch.Generator) -> Tensor:
    """Noise whose amplitude falls with frequency as in photographs (1/f), as normalised pixels.

    (count, channels, height, width); colours are mostly shared by the channels, contrast varies between images.
    """
    size = config.image_size
    height, width = (size, size) if isinstance(size, int) else size
    field = _falling_noise(count, config.num_channels + 1, height, width, generator)
    shared = field[:, :1] + 0.4 * field[:, 1:]
    contrast = 0.5 + torch.rand(count, 1, 1, 1, generator=generator)
    return shared * contrast


def _falling_noise(count: int, channels: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    """Noise whose amplitude falls with frequency (1/f), of variance one, (count, channels, height, width)."""
    frequency = (torch.fft.fftfreq(height)[:, None] ** 2 + torch.fft.fftfreq(width) ** 2).sqrt()
    frequency[0, 0] = 1 / max(height, width)
    noise = torch.randn(count, channels, height, width, generator=generator)
    field = torch.fft.ifft2(torch.fft.fft2(noise) / frequency).real
    return field / field.std(dim=(2, 3), keepdim=True)


_FRAMES = 100  # of a made sound, as the encoder sees it: two seconds for most


def _random_sounds(config: Any, count: int, generator: torch.Generator) -> Tensor:
    """Noise whose amplitude falls with frequency as in natural sounds, loud and soft in turn, (count, samples).

    Normalised to mean zero and variance one, as feature extractors do.
    """
    samples = _FRAMES * math.prod(config.conv_stride) + sum(config.conv_kernel)
    sound = _falling_noise(count, 1, 1, samples, generator)[:, 0, 0]
    slow = torch.nn.functional.interpolate(
        torch.rand(count, 1, _FRAMES // 10, generator=generator), samples, mode="linear"
    )
    sound = sound * slow[:, 0]
    return (sound - sound.mean(1, keepdim=True)) / sound.std(1, keepdim=True)


def _random_spectra(config: Any, count: int, generator: torch.Generator) -> Tensor:
    """The same as logarithms of energies by frequency and time, in the range of Whisper's feature extractor.

    (count, mel bins, frames)
    """
    frames = 2 * config.max_source_positions  # the encoder halves them
    return 0.4 * _falling_noise(count, 1, config.num_mel_bins, frames, generator)[:, 0]
