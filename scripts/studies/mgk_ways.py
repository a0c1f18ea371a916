"""Time and memory of a mixture of Gaussian keys: the fused way, in log space at once, and the naive formula.

The naive way makes every distance, exponentiates, weighs and divides, as the formula is written. Batch 1, 6 heads of
width 32, two keys for every position, float32. Memory is the most that tensors take at a time in one call. The
allocator's settings matter to the times: run it by `run.py reproduce mgk_ways`, which sets them.
"""

from __future__ import annotations

import argparse
from functools import partial

import torch
from torch import Tensor

from hf_heads.attention.kernels import Conditions
from hf_heads.attention.mixture import mixture_attention
from hf_heads.jobs.evaluation.costs import peak_memory
from studies.shared.running import save, shown
from studies.shared.timing import add_seconds, medians

HEADS, COMPONENTS, DIM = 6, 2, 32


def inputs(length: int, device: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Query, keys and values (1, 6, 1 or 2 or none, length, 32), and the logarithms of the priors (6, 2)."""
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(1, HEADS, 1, length, DIM, generator=generator)
    key = torch.randn(1, HEADS, COMPONENTS, length, DIM, generator=generator)
    prior = torch.rand(HEADS, COMPONENTS, generator=generator).log_softmax(-1)
    value = torch.randn(1, HEADS, length, DIM, generator=generator)
    return query.to(device), key.to(device), value.to(device), prior.to(device)


def naive(query: Tensor, key: Tensor, value: Tensor, prior: Tensor) -> Tensor:
    distances = (query[:, :, :, :, None] - key[:, :, :, None]).square().sum(-1)
    kernel = (prior.exp()[:, :, None, None] * (-0.5 * DIM**-0.5 * distances).exp()).sum(2)
    return kernel / kernel.sum(-1, keepdim=True) @ value


def by_logarithms(implementation: str, query: Tensor, key: Tensor, value: Tensor, prior: Tensor) -> Tensor:
    additive = prior[:, :, None] - 0.5 * DIM**-0.5 * key.square().sum(-1)
    return mixture_attention(query, key, value, DIM**-0.5, additive, Conditions(implementation=implementation))[0]


WAYS = {"fused": partial(by_logarithms, "sdpa"), "at once": partial(by_logarithms, "eager"), "naive": naive}


def add_options(parser: argparse.ArgumentParser) -> None:
    add_seconds(parser, 8)
    parser.add_argument("--lengths", type=int, nargs="*", default=[128, 512, 2048], help="default 128, 512 and 2048")


def run(options: argparse.Namespace) -> None:
    rows = []
    for length in options.lengths:
        runs = {name: partial(way, *inputs(length, options.device)) for name, way in WAYS.items()}
        with torch.inference_mode():
            first, *others = (one() for one in runs.values())
            assert all((one - first).abs().max() < 1e-4 for one in others)
            memory = {name: peak_memory(one, torch.device(options.device)) for name, one in runs.items()}
        for name, seconds in medians(runs, options.seconds, options.device).items():
            row = {"way": name, "length": length, "milliseconds": 1000 * seconds, "megabytes": memory[name] / 2**20}
            rows.append(shown(row))
    save("mgk_ways", {"rows": rows}, options)
