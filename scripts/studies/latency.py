"""Latency of a converted attention block against the original's, in one process on the same inputs, interleaved.

    MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=4294967296 MALLOC_TOP_PAD_=268435456 \\
        python scripts/latency.py

The block is the first of all-MiniLM-L6-v2 with its output projection, float32, `sdpa`, no padding. Ratios are of
medians: original time / converted time, so above 1 the converted block is faster. Multiply-adds are counted for the
same block. Writes scripts/results/latency.json. The allocator's settings matter more than the method: glibc's default
hands every large tensor back to the system.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
from common import medians, minilm, parser, save, start

import hf_heads
from hf_heads import CollabSpec, HeadsSpec, LowRankSpec
from hf_heads.hosts.blocks import Block, find_blocks
from hf_heads.hosts.reading import host_shape

SHAPES = [(batch, length) for batch in (1, 8, 32) for length in (32, 128, 512)]
SPECS: dict[str, HeadsSpec] = {
    "collab 192": CollabSpec(rank=192),
    "collab 96": CollabSpec(rank=96),
    "collab 48": CollabSpec(rank=48),
    "low-rank 192": LowRankSpec(rank=192),
    "low-rank 96": LowRankSpec(rank=96),
}


def multiply_adds(spec: HeadsSpec | None, block: Block, length: int) -> int:
    """Multiply-adds of a self-attention block for one sequence, projections and attention."""
    shape = host_shape(block.module, block.site, block.output)
    width, heads, value = shape.query_width, shape.heads, shape.heads * shape.value_dim
    projections = length * width * 2 * value
    if spec is None:
        return projections + length * width * 2 * value + length**2 * 2 * value
    rank = spec.rank  # type: ignore[attr-defined]
    if isinstance(spec, CollabSpec):
        scores = heads * rank
        projections += length * (width * (2 * rank + heads) + heads * rank)
    else:
        scores = rank
        projections += length * width * 2 * rank
    return projections + length**2 * (scores + value)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--seconds", type=float, default=6.0, help="per shape (default 6)")
    options = options.parse_args()
    start(options)
    _, model = minilm()
    original = find_blocks(model)[0]
    blocks = {None: original}
    for name, spec in SPECS.items():
        blocks[name] = find_blocks(hf_heads.convert(model, spec, blocks="*layer.0*")[0])[0]
    rows = []
    for batch, length in SHAPES:
        states = torch.randn(batch, length, model.config.hidden_size)

        def run(block: Block, states: torch.Tensor = states) -> Callable[[], object]:
            return lambda: block.output(block.module(states)[0])

        with torch.inference_mode():
            times = medians({str(name): run(block) for name, block in blocks.items()}, options.seconds)
        for name, spec in SPECS.items():
            row = {"method": name, "batch": batch, "length": length, "milliseconds": 1000 * times[name]}
            row["ratio"] = times["None"] / times[name]
            row["work_ratio"] = multiply_adds(None, original, length) / multiply_adds(spec, original, length)
            rows.append(row)
            print(
                f"{batch:3} x {length:3} {name:13} {row['ratio']:.2f} (by multiply-adds {row['work_ratio']:.2f})",
                flush=True,
            )
    save("latency", {"rows": rows, "malloc": os.environ.get("MALLOC_MMAP_THRESHOLD_", "default")}, options)


if __name__ == "__main__":
    main()
