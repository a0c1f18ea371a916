"""Made-up records of comparisons, as `hf-heads compare --output` writes them; none of the numbers was measured."""

from __future__ import annotations

import math
import random
from typing import Any

LAYERS, WIDTH, HEADS = 6, 384, 12
DENSE = 4 * LAYERS * WIDTH * (WIDTH + 1)
TIMED = [(1, 128), (8, 128), (32, 128)]


def model(name: str, method: str | None, size: float, cosine: float, **changes: Any) -> dict[str, Any]:
    """A model with `size` of the original's attention parameters."""
    dice = random.Random(name)
    parameters = round(DENSE * size)
    speed = 1 if method is None else 0.85 + 0.5 * (1 - size)
    blocks = [
        {
            "name": f"encoder.layer.{layer}.attention.self",
            "kind": "self",
            "settings": f"{method or 'standard'}, 12 heads",
            "heads": HEADS,
            "parameters": parameters // LAYERS,
            "parameters_before": DENSE // LAYERS,
            "cache": round(768 * size),
            "cache_before": 768,
            "drift": None if method is None else (1 - cosine) * dice.uniform(0.3, 2) * math.exp(-0.25 * layer),
        }
        for layer in range(LAYERS)
    ]
    times = [(b, n, 0.05 * b * n**1.05 / (speed * dice.uniform(0.97, 1.03))) for b, n in TIMED]
    found = {
        "name": name,
        "source": f"out/{name}",
        "role": "converted" if method else "original",
        "methods": [method] if method else [],
        "settings": "standard, 12 heads",
        "calibration": "512 sentences of train.tsv" if method else None,
        "command": f"hf-heads convert all-MiniLM-L6-v2 --to {method} --calibrate train.tsv" if method else None,
        "healed": None,
        "attention_parameters": parameters,
        "model_parameters": 22_713_216 - DENSE + parameters,
        "cache_per_token": LAYERS * round(768 * size),
        "multiply_adds": {"128": round(1.36e9 * (0.7 + 0.3 * size)), "512": round(6.2e9 * (0.7 + 0.3 * size))},
        "latency": [
            {
                "batch": b,
                "length": n,
                "milliseconds": t,
                "tokens_per_second": 1000 * b * n / t,
                "ratio": (ratio := 0.05 * b * n**1.05 / t) if method else 1.0,
                "ratio_low": 0.97 * ratio if method else None,
                "ratio_high": 1.04 * ratio if method else None,
            }
            for b, n, t in times
        ],
        "generation": [],
        "peak_memory": [{"batch": b, "length": n, "bytes": round(9e7 + 2e4 * b * n)} for b, n in TIMED],
        "drift": {"cosine": cosine, "max_difference": 3 * math.sqrt(1 - cosine)} if method else None,
        "score": score(0.820 - 0.35 * (1 - cosine), method is None),
        "blocks": blocks,
    }
    return {**found, **changes}


def score(value: float, original: bool = False) -> dict[str, Any]:
    difference = 0.0 if original else value - 0.820
    return {
        "value": value,
        "low": value - 0.016,
        "high": value + 0.015,
        "difference": difference,
        "difference_low": 0.0 if original else difference - 0.004 - abs(difference) / 5,
        "difference_high": 0.0 if original else difference + 0.004 + abs(difference) / 5,
    }


def healed(seconds: int, start: float, end: float) -> dict[str, Any]:
    curve = [
        {"step": 100 * step, "seconds": seconds * step / 8, "cosine": end - (end - start) * math.exp(-step / 2)}
        for step in range(9)
    ]
    return {"seconds": seconds, "steps": 800, "data": "20,000 sentences of train.tsv", "curve": curve}


def comparison(models: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    found = {
        "format": 1,
        "kind": "comparison",
        "original": "all-MiniLM-L6-v2",
        "data": "256 pairs of stsb-test.tsv",
        "date": "2026-03-01",
        "versions": {"hf-heads": "0.1.0", "transformers": "5.20.1", "torch": "2.9.1"},
        "machine": "made up, 2 cores",
        "threads": 1,
        "device": "cpu",
        "metric": {
            "name": "spearman",
            "about": "rank correlation of the cosine of two embeddings with people's similarity scores",
            "higher_is_better": True,
            "examples": 1379,
        },
        "lengths": [128],
        "batches": [1, 8, 32],
        "models": models,
    }
    return {**found, **changes}


def rich() -> dict[str, Any]:
    """Ten models of all kinds, with healing."""
    return comparison(
        [
            model("all-MiniLM-L6-v2", None, 1, 1),
            model("collab-192", "collab", 0.78, 0.988, settings="collab rank 192, 12 heads"),
            model("collab-96", "collab", 0.64, 0.931, settings="collab rank 96, 12 heads"),
            model("collab-48", "collab", 0.57, 0.822, settings="collab rank 48, 12 heads"),
            model("low-rank-16", "low-rank", 0.75, 0.975, settings="low-rank rank 16, 12 heads"),
            model("low-rank-8", "low-rank", 0.625, 0.884, settings="low-rank rank 8, 12 heads"),
            model("pruned-75", "pruned", 0.75, 0.942, settings="pruned, 9 heads"),
            model("pruned-50", "pruned", 0.5, 0.801, settings="pruned, 6 heads"),
            model("mgk-6", "mgk", 0.69, 0.71, settings="mgk keys 2, 6 heads"),
            model(
                "collab-48-healed",
                "collab",
                0.57,
                0.957,
                settings="collab rank 48, 12 heads",
                healed=healed(600, 0.822, 0.957),
            ),
            model(
                "pruned-50-healed", "pruned", 0.5, 0.936, settings="pruned, 6 heads", healed=healed(540, 0.801, 0.936)
            ),
            model("collab-0", "collab", 0.5, 0.31, role="control", settings="collab rank 0, 12 heads"),
        ]
    )


def unmeasured() -> dict[str, Any]:
    """Only what must be there: no task, no timings, no blocks; and names that hold markup."""
    base = {"role": "original", "name": '<b>tiny</b> & "co"', "attention_parameters": 1000}
    small = {
        "role": "converted",
        "name": "<script>alert(1)</script>",
        "attention_parameters": 600,
        "methods": ["low-rank"],
        "drift": {"cosine": 0.9},
    }
    return {
        "format": 1,
        "kind": "comparison",
        "original": '<b>tiny</b> & "co"',
        "metric": None,
        "models": [base, small],
    }


def scores() -> dict[str, Any]:
    """Head scores, as `hf-heads importance --output` writes them."""
    dice = random.Random(0)
    rows = {
        f"encoder.layer.{layer}.attention.self": [dice.lognormvariate(-5, 1.2) for _ in range(HEADS)]
        for layer in range(LAYERS)
    }
    return {
        "format": 1,
        "rule": "gauss-newton",
        "about": "",
        "steps": 4,
        "normalize": False,
        "data": "512 sentences of train.tsv",
        "model": "0" * 64,
        "importance": rows,
        "order": [],
    }
