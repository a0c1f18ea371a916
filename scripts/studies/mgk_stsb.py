"""MiniLMs with pairs of heads merged into one with two Gaussian keys, on the STS benchmark, one shot.

Beside them pruning to as many heads in every layer, and in the whole model, as controls. Drop is in Spearman points
x 100 against the original; cosine is that of the converted to the original sentence embeddings, mean over all
sentences.
"""

from __future__ import annotations

import argparse

from hf_heads import HeadsSpec, MgkSpec, PrunedSpec, rank_heads
from studies.shared.inputs import repaired
from studies.shared.running import add_folders, save, shown
from studies.shared.sentences import Sentences


def add_options(parser: argparse.ArgumentParser) -> None:
    add_folders(parser, "data")


def run(options: argparse.Namespace) -> None:
    study = Sentences(options)
    batches = study.calibration()
    scores = rank_heads(study.model, "gauss-newton", batches, steps=1, seed=options.seed)
    best = {
        name: PrunedSpec(kept=tuple(sorted(sorted(range(len(row)), key=lambda head: -row[head])[: len(row) // 2])))
        for name, row in scores.importance.items()
    }
    specs: dict[str, HeadsSpec | dict[str, HeadsSpec]] = {
        "merge 2, exact scores": MgkSpec(merge=2),
        "merge 2, exact scores, one head's values": MgkSpec(merge=2, values="shared"),
        "merge 2, one query": MgkSpec(merge=2, queries="shared"),
        "merge 2, one query, one head's values": MgkSpec(merge=2, queries="shared", values="shared"),
        "pruned to 6 heads in every layer": best,
        "pruned to 6 heads in every layer, repair": repaired(best),
        "pruned to half of all heads, repair": repaired(scores.keep(0.5)),
    }
    rows = []
    for label, spec in specs.items():
        row, report = study.converted(spec, batches)
        cache = sum(block.cache for block in report.blocks) / len(report.blocks)
        rows.append(shown({"label": label, **row, "cache": cache}))
    save("mgk_stsb", {"base": study.base, "rows": rows}, options)
