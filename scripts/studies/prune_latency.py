"""Speed of pruned attention against the original's, one block and the whole model, in one process, interleaved.

    MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=4294967296 MALLOC_TOP_PAD_=268435456 \\
        python scripts/prune_latency.py [--train stsb/train.jsonl]

all-MiniLM-L6-v2 in float32, `sdpa`, no padding, the batch sizes of the paper's table. In every block the first heads
stay. Ratios are of medians: original time / pruned time, so above 1 the pruned one is faster. Writes
scripts/results/prune_latency.json, and the time that scoring and pruning takes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from common import Timer, calibration, medians, minilm, parser, save, start
from transformers import PreTrainedModel

import hf_heads
from hf_heads import PrunedSpec
from hf_heads.hosts.blocks import Block, find_blocks

KEPT = (9, 6, 3)
BATCHES = (1, 4, 16, 64)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--seconds", type=float, default=8.0, help="per batch size (default 8)")
    options.add_argument("--train", help="sentences to time a whole conversion on (.jsonl; made ones if left out)")
    options.add_argument("--length", type=int, default=128, help="tokens (default 128)")
    options = options.parse_args()
    start(options)
    source, model = minilm()
    batches = calibration(options.train, source, model).batches
    with Timer() as timer:
        hf_heads.convert(model, PrunedSpec(keep=0.5), calibration=batches)
    print(f"scoring heads on 512 sentences and removing half of them: {timer.seconds:.1f} s", flush=True)
    models = {"original": model}
    for kept in KEPT:
        models[f"{kept} of 12"] = hf_heads.convert(model, PrunedSpec(kept=tuple(range(kept))))[0]
    rows = []
    for batch in BATCHES:
        states = torch.randn(batch, options.length, model.config.hidden_size)
        ids = torch.randint(1000, 20_000, (batch, options.length))

        def block_run(block: Block, states: torch.Tensor = states) -> Callable[[], object]:
            return lambda: block.output(block.module(states)[0])

        def model_run(one: PreTrainedModel, ids: torch.Tensor = ids) -> Callable[[], object]:
            return lambda: one(input_ids=ids)

        with torch.inference_mode():
            blocks = medians({name: block_run(find_blocks(one)[0]) for name, one in models.items()}, options.seconds)
            whole = medians({name: model_run(one) for name, one in models.items()}, 2 * options.seconds)
        for name in list(models)[1:]:
            row = {"kept": name, "batch": batch, "milliseconds": 1000 * blocks[name]}
            row["block_ratio"] = blocks["original"] / blocks[name]
            row["model_ratio"] = whole["original"] / whole[name]
            rows.append(row)
            print(f"batch {batch:3} {name} block {row['block_ratio']:.2f} model {row['model_ratio']:.2f}", flush=True)
    results = {"length": options.length, "conversion_seconds": timer.seconds, "rows": rows}
    save("prune_latency", results, options)


if __name__ == "__main__":
    main()
