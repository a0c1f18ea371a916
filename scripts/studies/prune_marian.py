"""BLEU of a Marian by the share of heads removed: encoder, decoder and cross-attention heads apart, then all together.

    python scripts/prune_marian.py --marian DIR --train train.jsonl --dev val.jsonl

Heads are scored on training pairs. Writes scripts/results/prune_marian.json and a figure.
"""

from __future__ import annotations

import dataclasses

import torch
from common import FIGURES, bleu, parser, read_jsonl, save, start

import hf_heads
from hf_heads import rank_heads
from hf_heads.checkpoints.loading import load_source
from hf_heads.checkpoints.sources import resolve_source
from hf_heads.data.calibration import CalibrationChoice
from hf_heads.data.calibration import labelled_batches as load
from hf_heads.reporting.figures.curves import draw_curves

KINDS = {"encoder": "encoder.*", "decoder": "decoder.*.self_attn", "cross": "decoder.*.encoder_attn", "all": "*"}
REMOVED = tuple(step / 10 for step in range(1, 10))
RULES = {
    "gauss-newton": {"rule": "gauss-newton", "steps": len(REMOVED)},
    "gradient": {"rule": "gradient", "steps": len(REMOVED)},
    "random": {"rule": "random", "steps": 1},
}


def main() -> None:
    options = parser(__doc__)
    for name in ("marian", "train", "dev"):
        options.add_argument(f"--{name}", required=True)
    options.add_argument("--sentences", type=int, default=300, help="how many pairs to translate (default 300)")
    options.add_argument("--beams", type=int, default=1, help="beams (default 1, greedy)")
    options = options.parse_args()
    start(options)
    torch.manual_seed(0)
    source = resolve_source(options.marian)
    model = load_source(source)
    pairs = read_jsonl(options.dev)[: options.sentences]
    batches = load(source, model, CalibrationChoice(options.train, ("en", "de"), samples=256))
    base = bleu(model, options.marian, pairs, options.beams)
    print(f"all heads: {base:.2f}", flush=True)
    rows = []
    for rule, settings in RULES.items():
        for kind, pattern in KINDS.items():
            order = rank_heads(model, batches=batches, blocks=pattern, keep=1 - REMOVED[-1], **settings)
            for removed in REMOVED:
                pruned, _ = hf_heads.convert(model, order.keep(1 - removed))
                row = {"rule": rule, "kind": kind, "removed": removed}
                row["bleu"] = bleu(pruned, options.marian, pairs, options.beams)
                if rule == "gauss-newton" and kind == "all":
                    specs = {n: dataclasses.replace(spec, repair=True) for n, spec in order.keep(1 - removed).items()}
                    repaired, _ = hf_heads.convert(model, specs, calibration=batches)
                    row["bleu_repaired"] = bleu(repaired, options.marian, pairs, options.beams)
                rows.append(row)
                print(f"{rule:14} {kind:8} {removed:.1f} {row['bleu']:.2f}", flush=True)
                if row["bleu"] < base / 4:
                    break
    save("prune_marian", {"base": base, "sentences": len(pairs), "beams": options.beams, "rows": rows}, options)
    for rule in RULES:
        curves: dict[str, list[tuple[float, float]]] = {}
        for row in rows:
            if row["rule"] == rule:
                curves.setdefault(row["kind"], [(0.0, base)]).append((100 * row["removed"], row["bleu"]))
        draw_curves(
            FIGURES / f"marian_pruned_{rule.replace('-', '_')}.png",
            curves,
            "heads of this kind removed (%)",
            "BLEU",
            f"Marian on Multi30k en-de, no fine-tuning, heads chosen by {rule}",
            baseline=("all heads", base),
        )


if __name__ == "__main__":
    main()
