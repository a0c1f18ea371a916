"""How a conversion's CPU seconds and peak memory grow with depth, width, rank and samples, on made checkpoints.

Each size is one conversion in Python, in a process of its own that runs it on short made sequences of 12 to 40 tokens.
An exponent is fitted to each quantity that varies, and the forward passes alone are timed beside.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from studies.shared.running import save, shown

BASE = {"layers": 6, "width": 384, "rank": 96, "samples": 256}
VARIED: dict[str, Sequence[int]] = {
    "layers": (6, 12, 24),
    "width": (192, 384, 768),
    "rank": (48, 96, 192),
    "samples": (128, 256, 512),
}
CHILD = """
import json, random, re, sys, time
from pathlib import Path
import torch
from transformers import BertConfig, BertModel
import hf_heads
from hf_heads.io.data.batching import make_batches
size, objective, seed, threads = json.loads(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
torch.set_num_threads(threads)
torch.manual_seed(seed)
config = BertConfig(vocab_size=8000, hidden_size=size["width"], num_hidden_layers=size["layers"],
    num_attention_heads=size["width"] // 32, intermediate_size=4 * size["width"], initializer_range=0.05)
model = BertModel(config).eval()
chance = random.Random(seed)
examples = [{"input_ids": [chance.randrange(1000, 8000) for _ in range(chance.randint(12, 40))]}
    for _ in range(size["samples"])]
batches = make_batches(examples, config)
started = time.process_time()
with torch.no_grad():
    for batch in batches:
        model(**batch)
forward = time.process_time() - started
started = time.process_time()
hf_heads.convert(model, hf_heads.CollabSpec(rank=size["rank"]), calibration=batches, objective=objective, inplace=True)
seconds = time.process_time() - started
peak = int(re.search(r"VmHWM:\\s+([0-9]+) kB", Path("/proc/self/status").read_text())[1]) * 1024 / 1e6
print(json.dumps({"seconds": seconds, "forward_seconds": forward, "peak_mb": peak}))
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--vary", nargs="+", default=list(VARIED), choices=VARIED)
    parser.add_argument("--objectives", nargs="+", default=["scores", "attention"])


def measured(size: dict[str, int], objective: str, options: argparse.Namespace) -> dict[str, Any]:
    """One conversion in a process of its own."""
    words = [json.dumps(size), objective, str(options.seed), str(options.threads)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
    done = subprocess.run(
        [sys.executable, "-c", CHILD, *words], stdout=subprocess.PIPE, text=True, check=True, env=environment
    )
    found = json.loads(done.stdout.splitlines()[-1])
    return shown({**size, "objective": objective, **found})


def exponent(rows: Sequence[dict[str, Any]], name: str, what: str) -> float:
    """The slope of the logarithms by least squares."""
    points = [(math.log(row[name]), math.log(row[what])) for row in rows]
    mean_x, mean_y = (sum(axis) / len(points) for axis in zip(*points, strict=True))
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / sum((x - mean_x) ** 2 for x, _ in points)


def run(options: argparse.Namespace) -> None:
    Path(options.results).mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    known: dict[str, dict[str, Any]] = {}
    for objective in options.objectives:
        for name in options.vary:
            part = []
            for value in VARIED[name]:
                size = {**BASE, name: value}
                key = json.dumps([size, objective])
                if key not in known:
                    known[key] = measured(size, objective, options)
                part.append(known[key])
            rows.append(
                {
                    "varied": name,
                    "objective": objective,
                    "values": [row[name] for row in part],
                    "sizes": part,
                    "seconds_exponent": exponent(part, name, "seconds"),
                    "peak_exponent": exponent(part, name, "peak_mb"),
                }
            )
            save("scaling", {"base": BASE, "rows": rows}, options)
