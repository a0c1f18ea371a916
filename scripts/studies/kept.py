"""What one-shot conversions of MiniLM by the defaults keep, on the STS benchmark's dev sentences, over several seeds.

Without labels, on training sentences as `convert` reads them, packed and cut to a mixture of lengths or as they are, or
on made data. A seed chooses the sentences or makes the data, and is the conversion's. Cosine is that of
the converted to the original sentence embeddings: its mean over all sentences, and what one sentence in twenty falls
short of.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import torch

import hf_heads
from hf_heads import CalibrationChoice, CollabSpec, HeadsSpec, LowRankSpec, MgkSpec, MheSpec, PrunedSpec
from hf_heads.io.data.calibration import calibration_data
from studies.shared.running import add_folders, save, shown
from studies.shared.sentences import Sentences

MADE, AS_THEY_ARE, SHORT = "made data", "sentences as they are", "made data, short"
CHOICES: dict[str, dict[str, Any]] = {
    MADE: {"source": "random"},
    AS_THEY_ARE: {"pack": False},
    SHORT: {"source": "random", "pack": False},
}
SPECS: dict[str, HeadsSpec] = {
    "collab 192": CollabSpec(rank=192),
    "collab 96": CollabSpec(rank=96),
    "collab 48": CollabSpec(rank=48),
    "collab 32": CollabSpec(rank=32),
    "low-rank 96": LowRankSpec(rank=96),
    "pruned half": PrunedSpec(keep=0.5),
    "mhe 3": MheSpec(groups=3),
    "mhe 1": MheSpec(groups=1),
    "mgk merge": MgkSpec(merge=2, queries="shared"),
}
SPECS |= {f"{label}, {AS_THEY_ARE}": spec for label, spec in SPECS.items()}
SPECS |= {f"collab 96, {made}": CollabSpec(rank=96) for made in (MADE, SHORT)}


def add_options(parser: argparse.ArgumentParser) -> None:
    add_folders(parser, "data")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default 0, 1 and 2")
    parser.add_argument("--labels", nargs="+", default=list(SPECS), choices=tuple(SPECS), help="default all")
    parser.add_argument("--more", action="store_true", help="keep the rows of earlier results, measure those missing")


def run(options: argparse.Namespace) -> None:
    study = Sentences(options)
    path = options.results / "kept.json"
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"] if options.more and path.is_file() else []
    there = {(row["label"], row["seed"]) for row in rows}
    for seed in options.seeds:
        for label in options.labels:
            if (label, seed) not in there:
                rows.append(shown(_row(study, label, seed)))
                rows.sort(key=lambda row: (list(SPECS).index(row["label"]), row["seed"]))
                save("kept", {"base": study.base, "sentences": 2 * len(study.scores), "rows": rows}, options)


def _row(study: Sentences, label: str, seed: int) -> dict[str, Any]:
    kind = label.partition(", ")[2]
    choice = CalibrationChoice(**{"source": study.files.train, "seed": seed, **CHOICES.get(kind, {})})
    batches = calibration_data(study.source, study.model, choice, enough=True).batches
    begun = time.process_time()
    model, report = hf_heads.convert(study.model, SPECS[label], calibration=batches, seed=seed)
    seconds = time.process_time() - begun
    embeddings = study.embed(model)
    cosines = (embeddings * study.original).sum(1)
    return {
        "label": label,
        "samples": sum(len(batch["input_ids"]) for batch in batches),
        "seed": seed,
        "drop": study.base - study.spearman(embeddings),
        "cosine": float(cosines.mean()),
        "cosine_low": float(torch.quantile(cosines, 0.05)),
        "cpu_seconds": seconds,
        "attention_parameters": sum(block.parameters for block in report.blocks),
    }
