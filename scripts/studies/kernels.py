"""Collaborative attention at R = D/4 on this machine: blocks beside their multiply-adds, and ways tried for the core.

Twelve heads at widths 384 and 768, float32, no padding, no gradients, everything interleaved in one process. A block is
one self-attention layer of a BERT of that width with made weights, with its output projection; its limit is what
multiply-adds alone would give. The core is what follows the projections. Of it are timed: what hf-heads does; all
scores at once; the content bias as one more column of queries and keys; torch's fused kernel with values padded to the
keys' width; FlexAttention with the bias as score modification; and pieces whose addition and softmax torch.compile
joins. A way that cannot run here has no time but a reason. Products and softmax of the pieces alone say what the core
could reach. The allocator's settings matter: set those of ALLOCATOR in
scripts/reproduce.py.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import cache, partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import BertConfig, BertModel

import hf_heads
from hf_heads import CollabSpec
from hf_heads.attention import kernels
from hf_heads.attention.hosts.blocks import find_blocks
from studies.latency import multiply_adds
from studies.shared.running import save, shown
from studies.shared.timing import add_seconds, attended, medians

HEADS, SCALING = 12, 0.1
WIDTHS = (384, 768)
SHAPES = ((8, 128), (8, 512), (32, 512))
HERE, STANDARD = "hf-heads", "standard heads"
Way = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def _here(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    return kernels.attend(query, key, value, SCALING, bias, kernels.Conditions(implementation="sdpa"))[0]


def _at_once(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    return kernels.attend(query, key, value, SCALING, bias, kernels.Conditions(implementation="eager"))[0]


def _column(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    """In pieces, the bias in the product: every head has its own column, so that its keys are its own as well."""
    keys = torch.cat([key.expand(-1, HEADS, -1, -1), bias.mT / SCALING], -1)
    queries = torch.cat([query, query.new_ones(*query.shape[:-1], 1)], -1)
    return kernels.attend(queries, keys, value, SCALING, None, kernels.Conditions(implementation="sdpa"))[0]


def _fused(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    mask, width = bias.expand(-1, -1, query.shape[2], -1), value.shape[-1]
    keys, values = key.expand(-1, HEADS, -1, -1), pad(value, (0, key.shape[-1] - width))
    return scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=SCALING)[..., :width]


@cache
def _compiled_flex() -> Any:
    return torch.compile(flex_attention, dynamic=False)


def _flex(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    rows = bias[:, :, 0]
    keys = key.expand(-1, HEADS, -1, -1)

    def biased(score: Tensor, example: Tensor, head: Tensor, target: Tensor, source: Tensor) -> Tensor:
        return score + rows[example, head, source]

    found: Tensor = _compiled_flex()(query, keys, value, score_mod=biased, scale=SCALING)
    return found


@cache
def _compiled_weights() -> Any:
    return torch.compile(_added, dynamic=False)


def _added(scores: Tensor, bias: Tensor) -> Tensor:
    return (scores + bias).softmax(-1)


def _compiled(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    """Pieces as hf-heads makes them, addition and softmax in one compiled loop."""

    def weights(queries: Tensor, keys: Tensor, scaling: float, term: Tensor, additive: None) -> Tensor:
        found: Tensor = _compiled_weights()(kernels._fold(queries * scaling, keys.mT), term)
        return found

    with patch.object(kernels, "_weights", weights):
        return _here(query, key, value, bias)


WAYS: dict[str, Way] = {
    HERE: _here,
    "at once": _at_once,
    "bias in the product": _column,
    "fused, values padded": _fused,
    "FlexAttention, compiled": _flex,
    "softmax compiled": _compiled,
}


def add_options(parser: argparse.ArgumentParser) -> None:
    add_seconds(parser, 10)


def run(options: argparse.Namespace) -> None:
    blocks, cores = [], []
    for width in WIDTHS:
        timed = _Blocks(width, options)
        for batch, length in SHAPES:
            blocks.append(shown(timed.row(batch, length)))
            cores.append(shown(_core(width, batch, length, options)))
            save("kernels", {"blocks": blocks, "cores": cores}, options)


class _Blocks:
    """A block of a width: as it is, and as collab of a quarter."""

    def __init__(self, width: int, options: argparse.Namespace) -> None:
        torch.manual_seed(options.seed)
        self.config = BertConfig(
            vocab_size=100,
            hidden_size=width,
            num_attention_heads=HEADS,
            num_hidden_layers=1,
            intermediate_size=width,
            attn_implementation="sdpa",
        )
        model = BertModel(self.config).eval().to(options.device)
        self.spec, self.options = CollabSpec(rank=width // 4), options
        # Converted weights have a content bias where the original's queries have one.
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(parameter, std=0.02)
        converted = hf_heads.convert(model, self.spec, calibration="none")[0]
        self.blocks = {STANDARD: find_blocks(model)[0], HERE: find_blocks(converted)[0]}

    def row(self, batch: int, length: int) -> dict[str, Any]:
        """Milliseconds, how many times as fast as the original, and what multiply-adds would give."""
        states = torch.randn(batch, length, self.config.hidden_size, device=self.options.device)
        runs = {name: partial(attended, block, states) for name, block in self.blocks.items()}
        with torch.inference_mode():
            times = medians(runs, self.options.seconds, self.options.device)
        work = [multiply_adds(spec, self.config, length) for spec in (None, self.spec)]
        return {
            "width": self.config.hidden_size,
            "batch": batch,
            "length": length,
            "milliseconds": {name: 1000 * seconds for name, seconds in times.items()},
            "ratio": times[STANDARD] / times[HERE],
            "limit": work[0] / work[1],
        }


def _core(width: int, batch: int, length: int, options: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds of every way on the same inputs, and reasons why some have none."""
    generator = torch.Generator().manual_seed(options.seed)
    rank, head_dim = width // 4, width // HEADS
    sizes = ((HEADS, length, rank), (1, length, rank), (HEADS, length, head_dim), (HEADS, 1, length))
    own = ((HEADS, length, head_dim),) * 2
    made = [torch.randn(batch, *size, generator=generator).to(options.device) for size in (*sizes, *own)]
    inputs, standard = made[:4], (*made[4:], made[2])
    runs: dict[str, Callable[[], Any]] = {}
    reasons = {}
    with torch.inference_mode():
        whole = _at_once(*inputs)
        for name, way in WAYS.items():
            try:
                error = float((way(*inputs) - whole).abs().max())
            except Exception as raised:  # the compiler's own, of many kinds
                reasons[name] = str(raised).strip().splitlines()[0][:200]
                continue
            assert error < 1e-3, f"{name} is wrong by {error}"
            runs[name] = partial(way, *inputs)
        runs["products alone"] = partial(_products, *inputs)
        runs[STANDARD] = partial(scaled_dot_product_attention, *standard)
        times = medians(runs, options.seconds, options.device)
    return {
        "width": width,
        "batch": batch,
        "length": length,
        "milliseconds": {name: 1000 * seconds for name, seconds in times.items()},
        "reasons": reasons,
        # Multiply-adds of standard heads' core over those of collab's, and the same of the measured times.
        "limit": 2 * head_dim / (rank + head_dim),
        "ratio": times[STANDARD] / times[HERE],
    }


def _products(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    """The two products of the pieces, without bias and softmax: no way by products of matrices is faster."""
    with patch.object(kernels, "_weights", lambda queries, keys, *_: kernels._fold(queries, keys.mT)):
        return _here(query, key, value, bias)
