"""How a conversion's CPU seconds and peak memory grow with depth, width, rank and samples, on made checkpoints.

Each size is one conversion in Python, in a process of its own that runs it on short made sequences of 12 to 40 tokens.
An exponent is fitted to each quantity that varies, and the forward passes alone are timed beside. From a sum of terms
that is fitted to all sizes, larger models are predicted; how far off such sums are is seen where each size in turn is
left out of the fit. With `--vary` and nothing behind it the sizes are those of the results that are there.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy
from scipy.optimize import nnls

from studies.shared.running import save, shown

BASE = {"layers": 6, "width": 384, "rank": 96, "samples": 256}
VARIED: dict[str, Sequence[int]] = {
    "layers": (6, 12, 24),
    "width": (192, 384, 768),
    "rank": (48, 96, 192),
    "samples": (128, 256, 512),
}
# By name: sizes like those above, samples in sequences of 26 tokens, the mean of those that are measured.
PREDICTED = {
    "bert-large, 512 short texts": {"layers": 24, "width": 1024, "rank": 256, "samples": 512},
    "ViT-H, 256 images": {"layers": 32, "width": 1280, "rank": 320, "samples": 2530},
    "a decoder of 66B (OPT), 512 texts of 512 tokens": {"layers": 64, "width": 9216, "rank": 2304, "samples": 10082},
}
PROCESSES = (1, 64)
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
    parser.add_argument("--vary", nargs="*", default=list(VARIED), choices=VARIED)
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


# What a forward pass, the rest of a conversion and its peak are made of, each times a number that is found.
TERMS: dict[str, Callable[[int, int, int, int], list[float]]] = {
    "forward_seconds": lambda layers, width, rank, samples: [
        layers * samples * width,  # passes over activations
        layers * samples * width**2,
    ],
    "rest": lambda layers, width, rank, samples: [
        1,
        layers * samples * width,
        layers * width**2 * rank,  # the decomposition
        layers * width**3,  # eigenvalues
    ],
    "peak_mb": lambda layers, width, rank, samples: [1, layers * width**2, samples * width, width**2],
}


class Fit:
    """Sums of terms by least squares of relative errors, no term below zero.

    Args:
        sizes: rows of measured conversions. The original and the converted model each run once in them.
    """

    def __init__(self, sizes: Sequence[dict[str, Any]]) -> None:
        sizes = [{**size, "rest": size["seconds"] - 2 * size["forward_seconds"]} for size in sizes]
        self.factors = {what: self._factors(sizes, what) for what in TERMS}

    @staticmethod
    def _factors(sizes: Sequence[dict[str, Any]], what: str) -> Any:
        wanted = numpy.array([size[what] for size in sizes])
        terms = numpy.array([_terms(what, size) for size in sizes]) / wanted[:, None]
        scale = terms.max(0)
        return nnls(terms / scale, numpy.ones(len(sizes)))[0] / scale

    def predict(self, size: dict[str, Any], processes: int = 1) -> dict[str, float]:
        """Seconds of the process that takes longest, and its peak, where processes share the blocks evenly."""
        each = math.ceil(size["layers"] / processes) / size["layers"]
        found = {what: factors * _terms(what, size) for what, factors in self.factors.items()}
        shared = 2 * found["forward_seconds"].sum() + found["rest"][1:].sum()
        return {"seconds": float(found["rest"][0] + each * shared), "peak_mb": float(found["peak_mb"].sum())}


def _terms(what: str, size: dict[str, Any]) -> Any:
    return numpy.array(TERMS[what](*(size[name] for name in BASE)), dtype=float)


def predictions(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Every size left out in turn, and the models of `PREDICTED`; of the first objective."""
    objective = rows[0]["objective"]
    every = {json.dumps([size[name] for name in BASE]): size for row in rows for size in row["sizes"]}
    sizes = [size for size in every.values() if size["objective"] == objective]
    left_out = []
    for size in sizes:
        found = Fit([one for one in sizes if one is not size]).predict(size)
        left_out.append({name: found[name] / size[name] - 1 for name in found})
    fit, models = Fit(sizes), []
    for name, size in PREDICTED.items():
        by_processes = {str(count): fit.predict(size, count) for count in PROCESSES}
        models.append({"name": name, **size, "processes": by_processes})
    return {"left_out": left_out, "models": models}


def run(options: argparse.Namespace) -> None:
    Path(options.results).mkdir(parents=True, exist_ok=True)
    kept = options.results / "scaling.json"
    rows: list[dict[str, Any]] = [] if options.vary else json.loads(kept.read_text(encoding="utf-8"))["rows"]
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
    save("scaling", {"base": BASE, "rows": rows, "predicted": predictions(rows)}, options)
