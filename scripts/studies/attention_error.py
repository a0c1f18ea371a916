"""Matching heads of MiniLM, and the drift on sentences and pairs, by what errors of scores are weighed by.

Calibrated on STS-B sentences, on MRPC pairs, or on both; `matching` is the mean attention of block 1, head 1 and of
block 2, head 9 to the same token in the other sentence of unseen MRPC pairs. Seconds are of the process.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import hf_heads
from hf_heads import CollabSpec, LowRankSpec, MheSpec
from hf_heads.core.batches import Batch
from hf_heads.io.data.batching import make_batches
from hf_heads.io.data.encoding import load_tokenizer
from hf_heads.jobs.evaluation.drift import measure_drift
from hf_heads.jobs.scoring.probe import host_places, probe_heads
from hf_heads.modeling.blocks import block_specs
from studies.shared.inputs import read_jsonl
from studies.shared.running import add_folders, save, shown
from studies.shared.sentences import Sentences

HEADS = (("encoder.layer.1.attention.self", 1), ("encoder.layer.2.attention.self", 9))
SPECS = {"collab": CollabSpec(rank=96), "low-rank": LowRankSpec(rank=96), "mhe": MheSpec(groups=3)}


def pairs(study: Sentences, path: Path, count: int) -> list[Batch]:
    """Batches of the first pairs of a GLUE file."""
    rows = read_jsonl(str(path))[:count]
    first, second = ([row[side] for row in rows] for side in ("sentence1", "sentence2"))
    found = load_tokenizer(study.source.folder)(first, second, truncation=True, max_length=512)
    kinds = zip(found["input_ids"], found["token_type_ids"], strict=True)
    return make_batches([{"input_ids": ids, "token_type_ids": kind} for ids, kind in kinds], study.model.config)


def add_options(parser: argparse.ArgumentParser) -> None:
    add_folders(parser, "data")
    parser.add_argument("--methods", nargs="*", default=["collab"], choices=tuple(SPECS), help="default collab")
    parser.add_argument("--keep-heads", metavar="LIST", help="one more row for each: these heads left exact")


def run(options: argparse.Namespace) -> None:
    study = Sentences(options)
    mrpc, unseen = (pairs(study, options.data / "glue" / f"mrpc-{part}.jsonl", 512) for part in ("train", "dev"))
    data = {"sentences": study.calibration(), "pairs": mrpc, "both": [*study.calibration(), *mrpc]}
    before = probe_heads(study.model, unseen).found["matching"]
    original = [before[block][head] for block, head in HEADS]
    print("matching heads of the original", original)
    rows = []
    for method in options.methods:
        for name, batches in data.items():
            for objective, keep in [("scores", None), ("attention", None), ("attention", options.keep_heads)]:
                if keep is None and (objective, method, name) in [row["key"] for row in rows]:
                    continue
                begun = time.process_time()
                model, report = hf_heads.convert(
                    study.model, SPECS[method], calibration=batches, objective=objective, keep_heads=keep or "none"
                )
                seconds = time.process_time() - begun
                found, specs = probe_heads(model, unseen).found["matching"], block_specs(model)
                left = [found[b][host_places(specs[b], len(found[b]))[head]] for b, head in HEADS]
                drift = measure_drift(model, study.model, unseen).to_dict()
                row = {"method": method, "data": name, "objective": objective, "keep": keep or ""}
                row |= {"matching_1": left[0], "matching_2": left[1], "cosine_stsb": study.score(model)["cosine"]}
                row |= {f"{figure}_mrpc": value for figure, value in drift.items()} | {"cpu_seconds": seconds}
                divergences = [(block.divergence_before, block.divergence) for block in report.blocks]
                rows.append({**shown(row), "divergences": divergences, "key": (objective, method, name)})
    save("attention_error", {"original": original, "rows": rows}, options)
