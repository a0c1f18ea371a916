"""BLEU of a Marian by the share of heads removed: encoder, decoder and cross-attention heads apart, then all together.

Heads are scored on training pairs. Draws a figure for every rule.
"""

from __future__ import annotations

import argparse

import hf_heads
from hf_heads import rank_heads
from hf_heads.io.data.calibration import CalibrationChoice, labelled_batches
from hf_heads.jobs.reporting.figures.curves import draw_curves
from studies.shared.inputs import files, load, read_jsonl, repaired
from studies.shared.running import add_folders, curves_over_removed, figure, save, shown
from studies.shared.translation import bleu

KINDS = {"encoder": "encoder.*", "decoder": "decoder.*.self_attn", "cross": "decoder.*.encoder_attn", "all": "*"}
REMOVED = tuple(step / 10 for step in range(1, 10))
STEPS = {"gauss-newton": len(REMOVED), "gradient": len(REMOVED), "random": 1}  # by rule


def add_options(parser: argparse.ArgumentParser) -> None:
    add_folders(parser, "data", "models")
    parser.add_argument("--sentences", type=int, default=300, help="how many pairs to translate (default 300)")
    parser.add_argument("--beams", type=int, default=1, help="beams (default 1, greedy)")


def run(options: argparse.Namespace) -> None:
    source, model = load("marian", options)
    data = files("marian", options)
    pairs = read_jsonl(data.dev)[: options.sentences]
    batches = labelled_batches(
        source, model, CalibrationChoice(data.train, ("en", "de"), samples=256, seed=options.seed)
    )
    base = bleu(model, source, pairs, options.beams)
    print(f"all heads: {base:.2f}")
    rows = []
    for rule, steps in STEPS.items():
        for kind, pattern in KINDS.items():
            order = rank_heads(
                model, rule, batches, blocks=pattern, keep=1 - REMOVED[-1], steps=steps, seed=options.seed
            )
            for removed in REMOVED:
                specs = order.keep(1 - removed)
                row = {"rule": rule, "kind": kind, "removed": removed}
                row["bleu"] = bleu(hf_heads.convert(model, specs, calibration="none")[0], source, pairs, options.beams)
                if (rule, kind) == ("gauss-newton", "all"):
                    refitted, _ = hf_heads.convert(model, repaired(specs), calibration=batches)
                    row["bleu_repaired"] = bleu(refitted, source, pairs, options.beams)
                rows.append(shown(row))
                if row["bleu"] < base / 4:
                    break
    save("prune_marian", {"base": base, "sentences": len(pairs), "beams": options.beams, "rows": rows}, options)
    for rule in STEPS:
        draw_curves(
            figure(options, f"marian_pruned_{rule.replace('-', '_')}.png"),
            curves_over_removed([row for row in rows if row["rule"] == rule], "kind", "bleu", base),
            "heads of this kind removed (%)",
            "BLEU",
            f"Marian on Multi30k en-de, no fine-tuning, heads chosen by {rule}",
            baseline=("all heads", base),
        )
