"""Models that write of what they read, as three ONNX graphs: encoder, decoder at its first step, and after it.

The names of files, inputs and outputs are those of optimum and transformers.js. What comes of the cross-attention's
memory is made by the first step, and only goes into the others.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, EncoderDecoderCache, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from hf_heads.attention.hosts.sites import WRITES
from hf_heads.attention.hosts.table import adapter_of
from hf_heads.io.checkpoints.sources import Source
from hf_heads.jobs.export.graphs import Graph, example, graph_of, input_names

ENCODER, FIRST, NEXT = "encoder_model", "decoder_model", "decoder_with_past_model"


class Reads(nn.Module):
    """The encoder of a model, whose inputs come by position."""

    def __init__(self, model: PreTrainedModel, names: tuple[str, ...]) -> None:
        super().__init__()
        self.encoder, self.names = model.get_encoder(), names

    def forward(self, *inputs: Tensor) -> tuple[Tensor]:
        """The last hidden state, (batch, source, width)."""
        return (self.encoder(**dict(zip(self.names, inputs, strict=True)))[0],)


class Writes(nn.Module):
    """A decoder at its first step, where the encoder's output comes in, or at a later one, where a cache does.

    Args:
        model: with its encoder, which does not run.
        names: of the inputs that are no cache.
    """

    def __init__(self, model: PreTrainedModel, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self.names = model, names
        # Another name since transformers 5.24.
        self.cache = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Logits, and the keys and values of every layer: of the decoder, at the first step of the encoder as well."""
        given, past = dict(zip(self.names, inputs, strict=False)), inputs[len(self.names) :]
        own, cross = DynamicCache(), DynamicCache()
        for layer in range(len(past) // 4):
            own.update(past[4 * layer], past[4 * layer + 1], layer)
            cross.update(past[4 * layer + 2], past[4 * layer + 3], layer)
        cache: Any = EncoderDecoderCache(own, cross)
        cache.is_updated = dict.fromkeys(range(len(past) // 4), True)
        memory = given.pop("encoder_hidden_states", None)
        if memory is None:  # in the cache already: only its size counts
            config: Any = self.model.config
            memory = past[2].new_zeros(past[2].shape[0], past[2].shape[2], config.d_model)
        mask = given.get("encoder_attention_mask")
        found = self.model(
            decoder_input_ids=given["input_ids"],
            encoder_outputs=BaseModelOutput(last_hidden_state=memory),
            use_cache=True,
            **({} if mask is None else {"attention_mask": mask}),
            **{self.cache: cache},
        )
        sides = (own,) if past else (own, cross)
        layers: list[tuple[Any, ...]] = list(zip(*(side.layers for side in sides), strict=True))
        return (found["logits"], *(part for pair in layers for one in pair for part in (one.keys, one.values)))


def graphs_of(model: PreTrainedModel, source: Source) -> dict[str, Graph]:
    """What becomes a file each, by the names of these.

    Args:
        model: in evaluation mode.
        source: that it was loaded from.

    Raises:
        HeadsError: see `graph_of`.
    """
    modality = adapter_of(model.config).modality
    if modality in WRITES and model.can_generate():
        of_texts = modality == "text-to-text"
        return writer_graphs(model, input_names(model, source.folder) if of_texts else ("input_features",))
    return {"model": graph_of(model, source.folder, source.given)}


def writer_graphs(model: PreTrainedModel, names: tuple[str, ...]) -> dict[str, Graph]:
    """The graphs of an encoder-decoder with a head, by the names of their files.

    Args:
        model: in evaluation mode.
        names: what the encoder takes, in its order.
    """
    config: Any = model.config
    of_texts = adapter_of(config).modality == "text-to-text"
    encoder = Reads(model, names).eval()
    masked = ("encoder_attention_mask",) if of_texts else ()
    first_names, next_names = (*masked, "input_ids", "encoder_hidden_states"), (*masked, "input_ids")
    first, later = Writes(model, first_names).eval(), Writes(model, next_names).eval()

    def read(batch: int, length: int, past: int = 0) -> tuple[Tensor, ...]:
        if of_texts:
            return example(model, names, batch, length)
        size = batch, config.num_mel_bins, 2 * config.max_source_positions
        return (torch.randn(*size, generator=torch.Generator().manual_seed(length)),)

    def start(batch: int, length: int, past: int = 0) -> tuple[Tensor, ...]:
        source = read(batch, length + past + 3)
        ids = torch.randint(0, config.vocab_size, (batch, length), generator=torch.Generator().manual_seed(batch))
        with torch.no_grad():
            return (*source[1:][: len(masked)], ids, encoder(*source)[0])

    def proceed(batch: int, length: int, past: int) -> tuple[Tensor, ...]:
        given = start(batch, length + past)
        before = [one[:, :past] if name == "input_ids" else one for name, one in zip(first_names, given, strict=True)]
        with torch.no_grad():
            cache = first(*before)[1:]
        return (*given[: len(masked)], given[len(masked)][:, past:].clone(), *cache)

    with torch.no_grad():
        layers = len(first(*start(1, 2))[1:]) // 4
    kinds = [f"{layer}.{side}.{part}" for layer in range(layers) for side in _SIDES for part in ("key", "value")]
    mask_sizes = tuple({0: "batch", 1: "source"} for _ in masked)
    past_sizes = tuple({0: "batch", 2: "past" if ".decoder." in kind else "source"} for kind in kinds)
    steps = (*mask_sizes, {0: "batch", 1: "length"})
    present = tuple(f"present.{kind}" for kind in kinds)
    return {
        ENCODER: Graph(
            encoder,
            names,
            ("last_hidden_state",),
            tuple({0: "batch", 1: "source"} if of_texts else {0: "batch"} for _ in names),
            read,
            (3, 9, 0),
            ((1, 5, 0), (5, 12, 0)),
        ),
        FIRST: Graph(
            first,
            first_names,
            ("logits", *present),
            (*steps, {0: "batch", 1: "source"} if of_texts else {0: "batch"}),
            start,
            (3, 4, 0),
            ((1, 1, 0), (5, 6, 0)),
        ),
        NEXT: Graph(
            later,
            (*next_names, *(f"past_key_values.{kind}" for kind in kinds)),
            ("logits", *(name for name in present if ".decoder." in name)),
            (*steps, *past_sizes) if of_texts else (*steps, *_without_source(past_sizes)),
            proceed,
            (3, 2, 3),
            ((1, 1, 4), (5, 1, 11)),
            layers,
        ),
    }


_SIDES = ("decoder", "encoder")


def _without_source(sizes: tuple[dict[int, str], ...]) -> tuple[dict[int, str], ...]:
    """Sizes in which the memory's length does not stay open: that of sounds is the same for all."""
    return tuple({place: name for place, name in one.items() if name != "source"} for one in sizes)
