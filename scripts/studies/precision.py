"""What bfloat16 and int8 weights cost converted MiniLMs, beside what they cost the original; CP damped and not.

Cosine of mean-pooled embeddings of STS-B dev sentences to those of the same model in float32; conversions by the
defaults on 512 training sentences. In int8 the weights of linear maps are rounded to 8 bits, each output's row by its
largest number.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from transformers import PreTrainedModel

import hf_heads
from hf_heads import CollabSpec, HeadsSpec, LowRankSpec, MgkSpec, MheSpec, PrunedSpec
from hf_heads.core.batches import Batch, thin
from hf_heads.core.decompositions import cp
from hf_heads.core.vocabulary import BFLOAT16, INT8
from hf_heads.jobs.evaluation.precision import precision_drift
from hf_heads.methods import collab, mhe
from studies.shared.running import add_folders, save, shown
from studies.shared.sentences import Sentences

SPECS: dict[str, HeadsSpec] = {
    "pruned half, repair": PrunedSpec(keep=0.5, repair=True),
    "collab 48": CollabSpec(rank=48),
    "mhe 1": MheSpec(groups=1),
    "low-rank 96": LowRankSpec(rank=96),
    "merge": MgkSpec(merge=2),
}
UNDAMPED = ("collab 48", "mhe 1")


def add_options(parser: argparse.ArgumentParser) -> None:
    add_folders(parser, "data")
    parser.add_argument("--methods", nargs="*", default=list(SPECS), choices=tuple(SPECS), help="default all")
    parser.add_argument("--more", action="store_true", help="keep the rows of earlier results, measure those missing")
    parser.add_argument("--share", type=int, default=24, help="one sentence in so many (default 24)")


@contextmanager
def undamped() -> Iterator[None]:
    """CP without its damping, as long as a `with` block lasts."""
    for module in (collab, mhe):
        module.cp = partial(cp, damping=0.0)
    try:
        yield
    finally:
        for module in (collab, mhe):
            module.cp = cp


def run(options: argparse.Namespace) -> None:
    study = Sentences(options)
    calibration = study.calibration()
    some: list[Batch] = [
        thin({name: value for name, value in batch.items() if name != "index"}, options.share)
        for batch in study.batches
    ]

    def row(label: str, model: PreTrainedModel, **more: float | bool) -> dict:
        lost = {name: 1 - precision_drift(model, some, name).cosine for name in (BFLOAT16, INT8)}
        return shown({"label": label, **lost, **study.score(model), **more})

    path = options.results / "precision.json"
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"] if options.more and path.is_file() else []
    there = {(one["label"], one.get("damped")) for one in rows}
    rows = rows or [row("original", study.model)]

    def add(label: str, damped: bool) -> None:
        if (label, damped) in there:
            return
        begun = time.process_time()
        model, _ = hf_heads.convert(study.model, SPECS[label], calibration=calibration, seed=options.seed)
        rows.append(row(label, model, damped=damped, cpu_seconds=time.process_time() - begun))
        save("precision", {"rows": rows}, options)

    for label in options.methods:
        add(label, True)
    with undamped():
        for label in (label for label in UNDAMPED if label in options.methods):
            add(label, False)
