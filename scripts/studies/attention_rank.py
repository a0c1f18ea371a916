"""How many dimensions queries and keys of a MiniLM need, head by head and joined, and the rank of its attention maps.

Figure 1 of arXiv 2006.16362: the share of the energy of W_Q W_K^T that its first directions hold, of each head alone
and of all heads of a layer together. Heads look in common directions where together they need far fewer than alone.
Draws the shares, and how the heads of a model that is converted by its weights mix the dimensions that they share.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

import hf_heads
from hf_heads.attention.hosts.blocks import find_blocks
from hf_heads.core.batches import Batch
from hf_heads.jobs.reporting.figures.curves import draw_curves
from hf_heads.modeling.blocks import read_block
from studies.shared.drawing import draw_mixing
from studies.shared.inputs import calibration, files, load
from studies.shared.running import add_folders, figure, save, shown

SHARE = 0.9
MIXED = 64  # shared dimensions of the picture of how heads mix them
SMALL = 64  # sentences


def needed(values: Tensor, share: float = SHARE) -> Tensor:
    """How many of the largest singular values (..., n) hold so much of the sum of their squares."""
    energy = values.double().square().sort(-1, descending=True).values
    held = energy.cumsum(-1) / energy.sum(-1, keepdim=True).clamp_min(1e-300)
    return (held < share - 1e-12).sum(-1) + 1


def held(values: Tensor) -> Tensor:
    """Percent of the sum of squares that the first 1, 2, ... of singular values (..., n) hold, (n,); means."""
    energy = values.double().square().sort(-1, descending=True).values
    return (100 * energy.cumsum(-1) / energy.sum(-1, keepdim=True)).reshape(-1, values.shape[-1]).mean(0)


def map_ranks(maps: Tensor, lengths: Tensor) -> Tensor:
    """Of attention maps (batch, heads, length, length) the singular values that hold so much, by length: (batch,)."""
    found = []
    for one, length in zip(maps, lengths.tolist(), strict=True):
        values = torch.linalg.svdvals(one[:, :length, :length].double())
        found.append(needed(values).double().mean() / length)
    return torch.stack(found)


def add_options(parser: argparse.ArgumentParser) -> None:
    add_folders(parser, "data")
    parser.add_argument("--sentences", type=int, default=512, help="whose attention maps are looked at (default 512)")
    parser.add_argument("--small", action="store_true", help=f"{SMALL} sentences")


def run(options: argparse.Namespace) -> None:
    source, model = load("minilm", options)
    count = SMALL if options.small else options.sentences
    batches = calibration(source, model, options, files("stsb", options).train, count)
    model.set_attn_implementation("eager")
    ranks = maps_of(model, batches)
    rows, curves, alone = [], {}, []
    for block, maps in zip(find_blocks(model), ranks, strict=True):
        dense = read_block(block).double()
        each = torch.linalg.svdvals(dense.query @ dense.key.mT)
        together = torch.linalg.svdvals((dense.query @ dense.key.mT).sum(0))
        heads = needed(each).double()
        row = {"block": block.name, "head": float(heads.mean()), "heads": float(heads.sum())}
        name = f"layer {len(rows)}, all heads"
        curves[name] = [(place + 1, share) for place, share in enumerate(held(together).tolist())][::16]
        alone.append(held(each)[: dense.shape.head_dim])
        rows.append(shown({**row, "layer": int(needed(together)), "maps": 100 * float(maps.mean())}))
    sizes = {"head_dim": dense.shape.head_dim, "width": dense.shape.query_width, "number": dense.shape.heads}
    save("attention_rank", {"share": SHARE, "sentences": count, **sizes, "rows": rows}, options)
    mean = torch.stack(alone).mean(0).tolist()
    curves["a head alone, mean"] = [(place + 1, share) for place, share in enumerate(mean)][::4]
    title = "Directions of queries and keys, and what share of their products they hold"
    draw_curves(figure(options, "attention_rank.png"), curves, "directions", "share of the energy (%)", title)
    made, _ = hf_heads.convert(model, hf_heads.CollabSpec(rank=MIXED), calibration="none")
    mixings = [block.module.mixing for block in find_blocks(made)]
    title = f"How heads mix {MIXED} shared dimensions, by layer"
    draw_mixing(figure(options, "attention_mixing.png"), mixings, title)


@torch.no_grad()
def maps_of(model: torch.nn.Module, batches: list[Batch]) -> list[Tensor]:
    """By block, the rank of the maps of every sentence as a share of its length."""
    found: list[list[Tensor]] = []
    for batch in batches:
        inputs = {name: value.to(model.device) for name, value in batch.items()}
        for place, maps in enumerate(model(**inputs, output_attentions=True).attentions):
            if place == len(found):
                found.append([])
            found[place].append(map_ranks(maps.cpu(), batch["attention_mask"].sum(1)))
    return [torch.cat(one) for one in found]
