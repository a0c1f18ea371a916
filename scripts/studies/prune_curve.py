"""Any classifier loses its heads as in arXiv 1905.10650: scored by layer, a tenth at a time, scored anew; accuracy.

Heads are scored on the rows of --train and accuracy is measured on those of --dev, in the paper's order, with tokens as
units of importance, and at random. Draws a figure.
"""

from __future__ import annotations

import argparse
from typing import Any

import hf_heads
from hf_heads import rank_heads
from hf_heads.core.intervals import paired_interval
from hf_heads.io.checkpoints.loading import load_source
from hf_heads.jobs.reporting.figures.curves import draw_curves
from studies.shared.classifiers import add_labelled, hits_of, labelled, settle
from studies.shared.running import curves_over_removed, figure, save, shown

PAPER: dict[str, Any] = {"rule": "gradient", "steps": 10, "normalize": True}
RULES: dict[str, dict[str, Any]] = {
    "the paper's": PAPER,
    "tokens as units": {**PAPER, "unit": "token"},
    "random": {"rule": "random", "steps": 1},
}


def add_options(parser: argparse.ArgumentParser) -> None:
    add_labelled(parser, "sst2")


def run(options: argparse.Namespace) -> None:
    source = settle(options, "sst2")
    model = load_source(source, options.device)
    batches = labelled(options, options.train, model, source)
    hits = hits_of(options, model, source)
    whole = hits(model)
    base, rows = float(whole.mean()), []
    for label, settings in RULES.items():
        order = rank_heads(model, batches=batches, seed=options.seed, **settings)
        for tenth in range(1, 10):
            pruned, _ = hf_heads.convert(model, order.keep(1 - tenth / 10), calibration="none")
            right = hits(pruned)
            low, high = paired_interval(right - whole)
            row = {"label": label, "removed": tenth / 10, "accuracy": float(right.mean()), "low": low, "high": high}
            rows.append(shown(row))
    kept = {"base": base, "examples": len(whole), "scored on": sum(len(batch["labels"]) for batch in batches)}
    save("prune_curve", {**kept, "rows": rows}, options)
    curves = curves_over_removed(rows, "label", "accuracy", base)
    title = f"{source.given}, by how heads were chosen"
    draw_curves(figure(options, "prune_curve.png"), curves, "heads removed (%)", "accuracy (%)", title)
