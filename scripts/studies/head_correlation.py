"""Whether heads matter alike on two sets of rows: losses without each, correlated (arXiv 1905.10650, section 3.4).

--other is of another domain or task with the same labels. The loss without each head is measured on both, and so is the
importance by gradients. By default a MiniLM that knows MRPC, news, is measured on its dev pairs and on pairs of STS-B,
captions and forums, which count as paraphrases from 4 points on and as none up to 2. Draws a figure.
"""

from __future__ import annotations

import argparse
import json

import hf_heads
from hf_heads import rank_heads
from hf_heads.core.errors import HeadsError
from hf_heads.io.checkpoints.loading import load_source
from hf_heads.jobs.scoring.ablation import AblationTable
from hf_heads.jobs.scoring.agreement import agreement
from studies.shared.classifiers import add_labelled, labelled, settle
from studies.shared.drawing import draw_points
from studies.shared.inputs import files, read_jsonl
from studies.shared.running import figure, save, shown

SAME, OTHER = 4, 2  # points of STS-B


def add_options(parser: argparse.ArgumentParser) -> None:
    add_labelled(parser, "mrpc")
    about = "rows of another domain or task, labelled alike (default: pairs of STS-B below --data)"
    parser.add_argument("--other", metavar="FILE", help=about)


def paraphrases(options: argparse.Namespace) -> str:
    """Pairs of STS-B that are clearly paraphrases or clearly none, in a file below --work."""
    if None in (options.data, options.work):
        raise HeadsError("no rows of another domain: name --other, or the folders --data and --work to make some")
    rows = [row for row in read_jsonl(files("stsb", options).dev) if not OTHER < row["score"] < SAME]
    pairs = [{name: row[name] for name in ("sentence1", "sentence2")} | {"label": row["score"] >= SAME} for row in rows]
    path = options.work / "stsb-paraphrases.jsonl"
    path.write_text("".join(json.dumps({**pair, "label": int(pair["label"])}) + "\n" for pair in pairs), "utf-8")
    return str(path)


def by_block(table: AblationTable) -> dict[str, list[float]]:
    """Changes without each head."""
    found: dict[str, list[float]] = {}
    for row in table.one_out:
        found.setdefault(row.block, []).append(row.change)
    return found


def run(options: argparse.Namespace) -> None:
    source = settle(options, "mrpc")
    model = load_source(source, options.device)
    others = options.other or paraphrases(options)
    here, there = (labelled(options, path, model, source) for path in (options.dev, others))
    tables = [hf_heads.ablate(model, batches, metric="loss") for batches in (here, there)]
    scores = [rank_heads(model, "gradient", batches, steps=1, normalize=True) for batches in (here, there)]
    rows = [
        shown({"what": "loss without the head", **agreement(*map(by_block, tables), options.seed)._asdict()}),
        shown({"what": "importance", **agreement(*(one.importance for one in scores), options.seed)._asdict()}),
    ]
    counts = [[sum(row.p < 0.05 for row in table.one_out), len(table.one_out)] for table in tables]
    whole = {"losses": [table.whole for table in tables], "examples": [table.examples for table in tables]}
    save("head_correlation", {"rows": rows, "heads that matter, of": counts, **whole}, options)
    points = [[row.change for row in table.one_out] for table in tables]
    groups = {"a head": list(zip(*points, strict=True))}
    axes = "change of the loss without it, rows of --dev", "the same, rows of --other"
    draw_points(figure(options, "head_correlation.png"), groups, *axes, "Losses without each head on two sets of rows")
