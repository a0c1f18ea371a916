"""Exact ways of computing collaborative attention, per shape: the measurement behind the choice in kernels.py.

Twelve heads of width 32, R = 96, float32, without gradients: all scores at once; the scores in pieces that stay in the
cache (what hf-heads does with many); torch's fused kernel with the values padded to the keys' width and the content
bias as a mask. The standard heads in the fused kernel stand beside. Results are in milliseconds. The allocator's
settings matter: run it by `run.py reproduce ways`, which sets them.
"""

from __future__ import annotations

import argparse
from functools import partial
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from hf_heads.attention import kernels
from studies.shared.running import save, shown
from studies.shared.timing import SHAPES, add_seconds, medians

HEADS, WIDTH, RANK, SCALING = 12, 32, 96, 0.1


def attend(implementation: str, query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    """`eager` makes all scores at once, `sdpa` goes by pieces."""
    return kernels.attend(query, key, value, SCALING, bias, kernels.Conditions(implementation=implementation))[0]


def fused(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    mask = bias.expand(-1, -1, query.shape[2], -1)
    keys, values = key.expand(-1, HEADS, -1, -1), pad(value, (0, RANK - WIDTH))
    return scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=SCALING)[..., :WIDTH]


def add_options(parser: argparse.ArgumentParser) -> None:
    add_seconds(parser, 3)


def run(options: argparse.Namespace) -> None:
    rows = []
    for batch, length in SHAPES:
        generator = torch.Generator().manual_seed(options.seed)
        # Query, key and value of collaborative heads and their bias; query and key of standard heads.
        sizes = ((HEADS, length, RANK), (1, length, RANK), (HEADS, length, WIDTH), (HEADS, 1, length))
        narrow = ((HEADS, length, WIDTH),) * 2
        made = [torch.randn(batch, *size, generator=generator).to(options.device) for size in (*sizes, *narrow)]
        inputs, standard = made[:4], (*made[4:], made[2])
        runs = {
            "at once": partial(attend, "eager", *inputs),
            "in pieces": partial(attend, "sdpa", *inputs),
            "fused": partial(fused, *inputs),
            "standard heads": partial(scaled_dot_product_attention, *standard),
        }
        with torch.inference_mode(), patch.object(kernels, "pieces_are_faster", lambda query, key: True):
            whole = runs["at once"]()
            assert all((runs[name]() - whole).abs().max() < 1e-4 for name in ("in pieces", "fused"))
            times = medians(runs, options.seconds, options.device)
        found = {name: 1000 * seconds for name, seconds in times.items()}
        rows.append(shown({"batch": batch, "length": length, **found}))
    save("ways", {"rows": rows}, options)
