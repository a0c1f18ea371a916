"""Attention maps of models whose blocks have different numbers of heads, for what expects as many in each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from hf_heads.attention.hosts.blocks import Block, find_blocks
from hf_heads.attention.hosts.reading import host_heads
from hf_heads.core.errors import HeadsError
from hf_heads.modeling.blocks import block_specs

_KINDS = {
    "attentions": ("self", "causal"),
    "encoder_attentions": ("self",),
    "decoder_attentions": ("causal",),
    "cross_attentions": ("cross",),
}


def pad_attentions(model: PreTrainedModel, outputs: ModelOutput) -> ModelOutput:
    """Outputs whose attention maps have the host's number of heads in every block, as viewers expect.

    A converted block gives a map for each head that it has: fewer where heads were pruned or merged, none where all
    are gone. Here pruned heads are maps of zeros at their old places; those that were merged are the first ones.

    Args:
        model: converted or not, with `attn_implementation="eager"`, which alone gives maps.
        outputs: of its forward, with `output_attentions=True`.

    Returns:
        The same outputs, with every map (batch, heads of the host, target, source).

    Raises:
        HeadsError: there are no maps in them, or not as many as the model has blocks.
    """
    found = {name: outputs[name] for name in _KINDS if outputs.get(name) is not None}
    if not found or any(one is None for maps in found.values() for one in maps):
        raise HeadsError(
            "the outputs hold no attention maps: load the model with attn_implementation='eager', and call it with "
            "output_attentions=True"
        )
    specs = block_specs(model)
    padded = {}
    for name, maps in found.items():
        blocks = [block for block in find_blocks(model) if block.kind in _KINDS[name]]
        if len(blocks) == 1:  # which all layers share, in ALBERT
            blocks *= len(maps)
        if len(blocks) != len(maps):
            raise HeadsError(f"the outputs hold {len(maps)} {name}, and the model has {len(blocks)} such blocks")
        pairs = zip(maps, blocks, strict=True)
        padded[name] = tuple(_padded(one, block, specs.get(block.name)) for one, block in pairs)
    return type(outputs)(**{**outputs, **padded})


def _padded(maps: Tensor, block: Block, spec: Any) -> Tensor:
    """(batch, heads, target, source) with the host's number of heads."""
    heads = host_heads(block.module, block.site)
    places: Sequence[int] = getattr(spec, "kept", None) or range(maps.shape[1])
    made = maps.new_zeros(len(maps), heads, *maps.shape[2:])
    made[:, list(places)] = maps
    return made
