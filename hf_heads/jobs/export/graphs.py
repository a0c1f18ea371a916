"""What of a model becomes an ONNX file: inputs by position, outputs by name, sizes that stay open."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, PreTrainedModel

from hf_heads.attention.hosts.blocks import find_blocks
from hf_heads.attention.hosts.table import adapter_of
from hf_heads.core.batches import main_output
from hf_heads.core.errors import HeadsError
from hf_heads.io.data.encoding import load_tokenizer


@dataclass(frozen=True)
class Graph:
    """A part of a model that becomes a file.

    Attributes:
        module: takes the inputs by position, and gives a tuple of the outputs.
        inputs, outputs: their names.
        sizes: of every input, the dimensions that stay open, by name.
        example: a batch, a length and a number of tokens before it to inputs of that size, with padding.
        exported, tried: what `example` is to be called with to write the file, with sizes that are neither 0 nor 1,
            and to see whether it computes what the module does.
        layers: whose keys and values go in and come out.
    """

    module: nn.Module
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    sizes: tuple[dict[int, str], ...]
    example: Callable[[int, int, int], tuple[Tensor, ...]]
    exported: tuple[int, int, int]
    tried: tuple[tuple[int, int, int], ...]
    layers: int = 0

    def counted(self, inputs: Sequence[Tensor]) -> Tensor | None:
        """Which positions of the output are no padding, (batch, length); None where there is no padding."""
        given = dict(zip(self.inputs, inputs, strict=True))
        mask = given.get("attention_mask")
        return None if mask is None else mask[:, -given["input_ids"].shape[1] :].bool()


class MainOutput(nn.Module):
    """A model of transformers whose inputs come by position and whose main output is all that it gives."""

    def __init__(self, model: PreTrainedModel, names: Sequence[str]) -> None:
        super().__init__()
        self.model, self.names = model, tuple(names)

    def forward(self, *inputs: Tensor) -> tuple[Tensor]:
        """Logits, or the last hidden state of a model without a head."""
        return (main_output(self.model, dict(zip(self.names, inputs, strict=True)))[0],)


class Step(nn.Module):
    """A decoder that reads some tokens after those in its cache, which comes and goes as tensors."""

    def __init__(self, model: PreTrainedModel, names: Sequence[str]) -> None:
        super().__init__()
        self.model, self.names = model, tuple(names)
        # Another name since transformers 5.24.
        self.cache = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Logits, and the keys and values of every layer, those that came in first."""
        cache, past = DynamicCache(), inputs[len(self.names) :]
        for layer in range(len(past) // 2):
            cache.update(past[2 * layer], past[2 * layer + 1], layer)
        given = dict(zip(self.names, inputs, strict=False))
        found = self.model(**given, **{self.cache: cache}, use_cache=True)
        (made,) = (value for value in found.values() if isinstance(value, Cache))
        layers: list[Any] = made.layers
        return (found[0], *(part for layer in layers for part in (layer.keys, layer.values)))


def graph_of(model: PreTrainedModel, folder: Path, given: str) -> Graph:
    """An encoder of texts or images, or a decoder of texts with its cache.

    Args:
        model: in evaluation mode.
        folder: where its tokenizer is.
        given: the checkpoint's name, for messages.

    Raises:
        HeadsError: it is neither; the message names the block that is in the way.
    """
    modality, kinds = adapter_of(model.config).modality, {block.kind for block in find_blocks(model)}
    if modality in ("text", "image") and kinds == {"self"}:
        return _encoder(model, folder)
    if modality == "text" and kinds == {"causal"} and hasattr(model, "generate"):
        return _decoder(model)
    other = next((block for block in find_blocks(model) if block.kind != "self"), None)
    what = f"{other.name} of '{given}' is {other.kind} attention" if other else f"'{given}' reads {modality}"
    raise HeadsError(
        f"{what}, and --onnx takes encoders of texts or images, language models, and encoder-decoders with their head: "
        "--portable takes every model"
    )


def _encoder(model: PreTrainedModel, folder: Path) -> Graph:
    names = input_names(model, folder)
    named = "logits" if main_output(model, dict(zip(names, example(model, names, 1, 9), strict=True)))[1] else ""
    sizes = {0: "batch"} if "pixel_values" in names else {0: "batch", 1: "length"}
    longest = int(getattr(model.config, "max_position_embeddings", 128))
    return Graph(
        MainOutput(model, names).eval(),
        names,
        (named or "last_hidden_state",),
        tuple(sizes for _ in names),
        lambda batch, length, past: example(model, names, batch, length),
        (3, 9, 0),
        ((1, min(33, longest), 0), (5, min(128, longest), 0)),
    )


def _decoder(model: PreTrainedModel) -> Graph:
    taken = inspect.signature(model.forward).parameters
    names = tuple(name for name in ("input_ids", "attention_mask", "position_ids") if name in taken)
    step = Step(model, names).eval()
    with torch.no_grad():
        shapes = [one.shape for one in step(*_texts(model, names, 1, 2))[1:]]
    kinds = [f"{layer}.{kind}" for layer in range(len(shapes) // 2) for kind in ("key", "value")]
    sizes = {"input_ids": "length", "attention_mask": "total", "position_ids": "length"}

    def make(batch: int, length: int, past: int) -> tuple[Tensor, ...]:
        before = [torch.zeros(batch, shape[1], 0, shape[3]) for shape in shapes]
        texts = _texts(model, names, batch, past + length)
        if past:
            with torch.no_grad():
                before = [one[:, :, :past].contiguous() for one in step(*texts, *before)[1:]]
        # No views: an exported program would ask for such.
        late = [
            one if name == "attention_mask" else one[:, past:].clone() for name, one in zip(names, texts, strict=True)
        ]
        return (*late, *before)

    return Graph(
        step,
        (*names, *(f"past_key_values.{kind}" for kind in kinds)),
        ("logits", *(f"present.{kind}" for kind in kinds)),
        (*({0: "batch", 1: sizes[name]} for name in names), *({0: "batch", 2: "past"} for _ in kinds)),
        make,
        (3, 2, 3),
        ((1, 7, 0), (5, 1, 11)),
        len(shapes) // 2,
    )


def _texts(model: PreTrainedModel, names: Sequence[str], batch: int, length: int) -> tuple[Tensor, ...]:
    """Texts of random tokens, all but the last with padding before them."""
    config: Any = model.config
    ids = torch.randint(0, config.vocab_size, (batch, length), generator=torch.Generator().manual_seed(length))
    mask = torch.ones_like(ids)
    mask[: batch - 1, : length // 4] = 0
    found = {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp_min(0)}
    return tuple(found[name] for name in names)


def input_names(model: PreTrainedModel, folder: Path) -> tuple[str, ...]:
    """What the tokenizer gives and the model takes, in the model's order; the image of an image model."""
    if adapter_of(model.config).modality == "image":
        return ("pixel_values",)
    try:
        given = load_tokenizer(folder).model_input_names
    except HeadsError:  # a checkpoint without a tokenizer
        given = ["input_ids", "attention_mask"]
    return tuple(name for name in inspect.signature(model.forward).parameters if name in given)


def example(model: PreTrainedModel, names: Sequence[str], batch: int, length: int) -> tuple[Tensor, ...]:
    """Inputs of an encoder; the last text of several is shorter than the others. Images have the model's size."""
    config: Any = model.config
    generator = torch.Generator().manual_seed(length)
    if "pixel_values" in names:
        size = config.image_size if isinstance(config.image_size, (list, tuple)) else (config.image_size,) * 2
        return (torch.randn(batch, config.num_channels, *size, generator=generator),)
    mask = torch.ones(batch, length, dtype=torch.long)
    mask[batch - 1, max(length - 2, 1) :] = 0
    ids = torch.randint(0, config.vocab_size, (batch, length), generator=generator)
    found = {"input_ids": ids, "attention_mask": mask}
    return tuple(found.get(name, torch.zeros_like(ids)) for name in names)
