"""MiniLMs with pairs of heads merged into one with two Gaussian keys, on the STS benchmark, one shot.

    python scripts/mgk_stsb.py --train stsb/train.jsonl --dev stsb/dev.jsonl

Beside them pruning to as many heads in every layer, and in the whole model, as controls. Writes
scripts/results/mgk_stsb.json. Drop is in Spearman points x 100 against the original; cosine is that of the converted to
the original sentence embeddings, mean over all sentences.
"""

from __future__ import annotations

import dataclasses

from common import SentenceTask, Timer, calibration, minilm, parser, save, start

import hf_heads
from hf_heads import HeadsSpec, MgkSpec, PrunedSpec, rank_heads


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--train", required=True, help="training sentences to calibrate on (.jsonl)")
    options.add_argument("--dev", required=True, help="pairs to score (.jsonl)")
    options = options.parse_args()
    start(options)
    source, model = minilm()
    task = SentenceTask(options.dev, source, model)
    batches = calibration(options.train, source, model).batches
    merged: dict[str, HeadsSpec | dict[str, HeadsSpec]] = {
        "merge 2, exact scores": MgkSpec(merge=2),
        "merge 2, exact scores, one head's values": MgkSpec(merge=2, values="shared"),
        "merge 2, one query": MgkSpec(merge=2, queries="shared"),
        "merge 2, one query, one head's values": MgkSpec(merge=2, queries="shared", values="shared"),
    }
    scores = rank_heads(model, "gauss-newton", batches, steps=1)
    best = {
        name: PrunedSpec(kept=tuple(sorted(sorted(range(len(row)), key=lambda head: -row[head])[: len(row) // 2])))
        for name, row in scores.importance.items()
    }
    controls = {
        "pruned to 6 heads in every layer": best,
        "pruned to 6 heads in every layer, repair": {n: dataclasses.replace(s, repair=True) for n, s in best.items()},
        "pruned to half of all heads, repair": {
            name: dataclasses.replace(spec, repair=True) for name, spec in scores.keep(0.5).items()
        },
    }
    rows = []
    for label, spec in {**merged, **controls}.items():
        with Timer() as timer:
            converted, report = hf_heads.convert(model, spec, calibration=batches)
        row = {"label": label, **task.score(converted), "seconds": timer.seconds}
        row["attention_parameters"] = sum(block.parameters for block in report.blocks)
        row["cache"] = sum(block.cache for block in report.blocks) / len(report.blocks)
        rows.append(row)
        print(f"{label:42} drop {row['drop']:+.2f} cos {row['cosine']:.4f} {timer.seconds:.0f} s", flush=True)
    save("mgk_stsb", {"base": task.base, "rows": rows}, options)


if __name__ == "__main__":
    main()
