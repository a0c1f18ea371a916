"""Times of several runs in one process, in turn.

glibc hands large tensors back to the system by default, and fetching them again is what would be timed:
`run.py reproduce NAME` sets the allocator for the studies that time (ALLOCATOR in scripts/reproduce.py).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

import hf_heads
from hf_heads.attention.hosts.blocks import Block, find_blocks
from hf_heads.jobs.evaluation.costs import interleaved
from studies.shared.inputs import load
from studies.shared.running import shown

SHAPES = [(batch, length) for batch in (1, 8, 32) for length in (32, 128, 512)]


def add_seconds(parser: argparse.ArgumentParser, default: float) -> None:
    """How long to time."""
    parser.add_argument("--seconds", type=float, default=default, help=f"per row of runs (default {default:g})")


def medians(runs: Mapping[str, Callable[[], object]], seconds: float, device: str) -> dict[str, float]:
    """Median seconds of every run; they take turns for about so many seconds in all."""

    def waited(run: Callable[[], object]) -> None:
        run()
        torch.accelerator.synchronize(device)

    timed = list(runs.values()) if device == "cpu" else [partial(waited, run) for run in runs.values()]
    return dict(zip(runs, interleaved(timed, seconds), strict=True))


def attended(block: Block, states: Tensor) -> Tensor:
    """What an attention block makes of hidden states, output projection included."""
    return block.output(block.module(states)[0])


def time_blocks(specs: Mapping[str, hf_heads.HeadsSpec], options: argparse.Namespace) -> list[dict[str, Any]]:
    """MiniLM's first block with each of the settings: milliseconds, and how many times as fast as the original."""
    _, model = load("minilm", options)
    blocks = {"original": find_blocks(model)[0]}
    for name, spec in specs.items():
        blocks[name] = find_blocks(hf_heads.convert(model, spec, blocks="*layer.0*", calibration="none")[0])[0]
    rows = []
    for batch, length in SHAPES:
        states = torch.randn(batch, length, model.config.hidden_size, device=options.device)
        runs = {name: partial(attended, block, states) for name, block in blocks.items()}
        times = medians(runs, options.seconds, options.device)
        for name in specs:
            row = {"method": name, "batch": batch, "length": length, "milliseconds": 1000 * times[name]}
            rows.append(shown({**row, "ratio": times["original"] / times[name]}))
    return rows
