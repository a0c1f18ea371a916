"""Drift of a converted Marian on sentences joined two and three at a time, calibrated on joined ones or not.

Pairs of Multi30k's validation split, in their order; teacher-forced, by token. Without labels. Rows of the results that
are not measured this time stay.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

import hf_heads
from hf_heads import CalibrationChoice, CollabSpec, HeadsSpec, MheSpec, PrunedSpec
from hf_heads.core.batches import Batch
from hf_heads.core.vocabulary import RANDOM
from hf_heads.io.data.batching import make_batches, with_targets
from hf_heads.io.data.calibration import calibration_data
from hf_heads.io.data.encoding import ENCODE
from hf_heads.jobs.evaluation.drift import measure_drift
from studies.shared.inputs import files, load, read_jsonl
from studies.shared.running import add_folders, save, shown

METHODS: dict[str, Callable[[int, int], HeadsSpec]] = {  # of width and heads
    "collab": lambda width, heads: CollabSpec(rank=width // 4),
    "mhe": lambda width, heads: MheSpec(groups=heads // 2),
    "pruned": lambda width, heads: PrunedSpec(keep=0.75),
}


KINDS = ("joined", "one by one", "made")


def add_options(parser: argparse.ArgumentParser) -> None:
    add_folders(parser, "data", "models")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS, help="what is calibrated on")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--pairs", type=int, default=300, help="how many inputs of each kind (default 300)")


def run(options: argparse.Namespace) -> None:
    source, model = load("marian", options)
    data = files("marian", options)
    pairs = [(row["en"], row["de"]) for row in read_jsonl(data.dev)]

    def joined(count: int) -> list[Batch]:
        groups = [pairs[begin : begin + count] for begin in range(0, len(pairs) - count + 1, count)][: options.pairs]
        texts = [(" ".join(one for one, _ in group), " ".join(two for _, two in group)) for group in groups]
        made = make_batches(ENCODE["text-to-text"](texts, source.folder, 128), model.config)
        return [with_targets(batch, model.config, None) for batch in made]

    measured = {count: joined(count) for count in (1, 2, 3)}
    width, heads = model.config.d_model, model.config.encoder_attention_heads
    kept = options.results / "joined.json"
    rows = {_place(row): row for row in (json.loads(kept.read_text())["rows"] if kept.is_file() else ())}
    for label in options.kinds:
        made = label == "made"
        choice = CalibrationChoice(
            RANDOM if made else data.train,
            None if made else ("en", "de"),
            seed=options.seed,
            pack=label != "one by one",
        )
        batches = calibration_data(source, model, choice).batches
        for method in options.methods:
            spec = METHODS[method](width, heads)
            converted, _ = hf_heads.convert(model, spec, calibration=batches, seed=options.seed)
            row: dict[str, Any] = {"calibration": label, "method": method}
            for count, inputs in measured.items():
                drift = measure_drift(converted, model, inputs)
                row |= {f"kl_{count}": drift.kl, f"agreement_{count}": drift.agreement}
            rows[_place(row)] = shown(row)
            save("joined", {"pairs": options.pairs, "rows": [rows[place] for place in sorted(rows)]}, options)


def _place(row: dict[str, Any]) -> tuple[int, int]:
    """Where a row stands among all."""
    return KINDS.index(row["calibration"]), list(METHODS).index(row["method"])
