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
from hf_heads.io.checkpoints.sources import resolve_source
from hf_heads.io.data.choice import CalibrationChoice
from hf_heads.io.data.labelled import load_labelled
from hf_heads.jobs.reporting.figures.curves import draw_curves
from studies.shared.inputs import hits_on
from studies.shared.running import curves_over_removed, figure, save, shown

PAPER: dict[str, Any] = {"rule": "gradient", "steps": 10, "normalize": True}
RULES: dict[str, dict[str, Any]] = {
    "the paper's": PAPER,
    "tokens as units": {**PAPER, "unit": "token"},
    "random": {"rule": "random", "steps": 1},
}
SMALL = 64  # rows to score on


def add_labelled(parser: argparse.ArgumentParser) -> None:
    """The options of a classifier and its rows."""
    parser.add_argument("--model", required=True, metavar="DIR", help="a classifier, fine-tuned")
    parser.add_argument("--train", required=True, metavar="FILE", help="labelled rows to score heads on")
    parser.add_argument("--dev", required=True, metavar="FILE", help="labelled rows to measure on")
    parser.add_argument("--columns", nargs="+", default=["sentence"], help="of the text (default sentence)")
    parser.add_argument("--samples", type=int, default=512, help="rows to score heads on (default 512)")
    parser.add_argument("--small", action="store_true", help=f"{SMALL} rows to score heads on")


def labelled(options: argparse.Namespace, path: str, model: Any) -> list[Any]:
    """Batches of rows with labels."""
    samples = SMALL if options.small else options.samples
    choice = CalibrationChoice(path, tuple(options.columns), "label", samples=samples, seed=options.seed)
    return load_labelled(choice, model, resolve_source(options.model).folder)


def add_options(parser: argparse.ArgumentParser) -> None:
    add_labelled(parser)


def run(options: argparse.Namespace) -> None:
    source = resolve_source(options.model)
    model = load_source(source, options.device)
    batches = labelled(options, options.train, model)
    hits = hits_on(source, model, options.dev, tuple(options.columns))
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
    save("prune_curve", {"base": base, "examples": len(whole), "rows": rows}, options)
    curves = curves_over_removed(rows, "label", "accuracy", base)
    title = f"{source.given}, by how heads were chosen"
    draw_curves(figure(options, "prune_curve.png"), curves, "heads removed (%)", "accuracy (%)", title)
