"""Speed of pruned attention against the original's, one block and the whole model, in one process, interleaved.

all-MiniLM-L6-v2 in float32, `sdpa`, no padding, the batch sizes of the paper's table. In every block the first heads
stay. Ratios are of medians: original time / pruned time, so above 1 the pruned one is faster. Beside them stands the
time that scoring and pruning takes. The allocator's settings matter: run it by `run.py reproduce pruned_latency`, which
sets them.
"""

from __future__ import annotations

import argparse
from functools import partial

import torch

import hf_heads
from hf_heads import PrunedSpec
from hf_heads.attention.hosts.blocks import find_blocks
from studies.shared.inputs import calibration, files, load
from studies.shared.running import Timer, add_folders, save, shown
from studies.shared.timing import add_seconds, attended, medians

KEPT = (9, 6, 3)
BATCHES = (1, 4, 16, 64)


def add_options(parser: argparse.ArgumentParser) -> None:
    add_folders(parser, "data")
    add_seconds(parser, 8)
    parser.add_argument("--length", type=int, default=128, help="tokens (default 128)")


def run(options: argparse.Namespace) -> None:
    source, model = load("minilm", options)
    batches = calibration(source, model, options, files("stsb", options).train)
    with Timer() as timer:
        hf_heads.convert(model, PrunedSpec(keep=0.5), calibration=batches)
    print(f"scoring heads on 512 sentences and removing half of them: {timer.seconds:.1f} s")
    models = {"original": model}
    for kept in KEPT:
        models[f"{kept} of 12"] = hf_heads.convert(model, PrunedSpec(kept=tuple(range(kept))), calibration="none")[0]
    rows = []
    for batch in BATCHES:
        states = torch.randn(batch, options.length, model.config.hidden_size, device=options.device)
        ids = torch.randint(1000, 20_000, (batch, options.length), device=options.device)
        blocks = {name: partial(attended, find_blocks(one)[0], states) for name, one in models.items()}
        wholes = {name: partial(one, input_ids=ids) for name, one in models.items()}
        block = medians(blocks, options.seconds, options.device)
        whole = medians(wholes, 2 * options.seconds, options.device)
        for name in list(models)[1:]:
            row = {"kept": name, "batch": batch, "milliseconds": 1000 * block[name]}
            row |= {"block_ratio": block["original"] / block[name], "model_ratio": whole["original"] / whole[name]}
            rows.append(shown(row))
    results = {"length": options.length, "conversion_seconds": timer.seconds, "rows": rows}
    save("prune_latency", results, options)
