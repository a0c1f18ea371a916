"""Latency of a converted attention block against the original's, in one process on the same inputs, interleaved.

The block is the first of all-MiniLM-L6-v2 with its output projection, float32, `sdpa`, no padding. Ratios are of
medians: original time / converted time, so above 1 the converted block is faster. Multiply-adds are counted for the
same block. The allocator's settings matter more than the method: run it by `run.py reproduce latency`, which sets them.
"""

from __future__ import annotations

import argparse
import os

from transformers import PreTrainedConfig

from hf_heads import CollabSpec, HeadsSpec, LowRankSpec
from hf_heads.io.checkpoints.loading import read_config
from studies.shared.inputs import source_of
from studies.shared.running import save
from studies.shared.timing import add_seconds, time_blocks

SPECS: dict[str, CollabSpec | LowRankSpec] = {
    "collab 192": CollabSpec(rank=192),
    "collab 96": CollabSpec(rank=96),
    "collab 48": CollabSpec(rank=48),
    "low-rank 192": LowRankSpec(rank=192),
    "low-rank 96": LowRankSpec(rank=96),
}


def multiply_adds(spec: HeadsSpec | None, config: PreTrainedConfig, length: int) -> int:
    """Multiply-adds of a self-attention block for one sequence, projections and attention."""
    width, heads = config.hidden_size, config.num_attention_heads
    projections = 2 * length * width**2
    if spec is None:
        return 2 * projections + 2 * length**2 * width
    if isinstance(spec, CollabSpec):
        projections += length * (width * (2 * spec.rank + heads) + heads * spec.rank)
        return projections + length**2 * (heads * spec.rank + width)
    return projections + 2 * length * width * spec.rank + length**2 * (spec.rank + width)


def add_options(parser: argparse.ArgumentParser) -> None:
    add_seconds(parser, 6)


def run(options: argparse.Namespace) -> None:
    config = read_config(source_of("minilm", options))
    rows = time_blocks(SPECS, options)
    for row in rows:
        work = (multiply_adds(spec, config, row["length"]) for spec in (None, SPECS[row["method"]]))
        row["work_ratio"] = next(work) / next(work)
    save("latency", {"rows": rows, "malloc": os.environ.get("MALLOC_MMAP_THRESHOLD_", "default")}, options)
