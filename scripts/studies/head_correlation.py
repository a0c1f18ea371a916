"""Whether heads matter alike on two sets of rows: losses without each, correlated (arXiv 1905.10650, section 3.4).

--other is of another domain or task with the same labels. The loss without each head is measured on both, and so is the
importance by gradients.
"""

from __future__ import annotations

import argparse

import hf_heads
from hf_heads import rank_heads
from hf_heads.io.checkpoints.loading import load_source
from hf_heads.io.checkpoints.sources import resolve_source
from hf_heads.jobs.scoring.ablation import AblationTable
from hf_heads.jobs.scoring.agreement import agreement
from studies.prune_curve import add_labelled, labelled
from studies.shared.running import save, shown


def add_options(parser: argparse.ArgumentParser) -> None:
    add_labelled(parser)
    parser.add_argument("--other", required=True, metavar="FILE", help="rows of another domain or task, labelled alike")


def by_block(table: AblationTable) -> dict[str, list[float]]:
    """Changes without each head."""
    found: dict[str, list[float]] = {}
    for row in table.one_out:
        found.setdefault(row.block, []).append(row.change)
    return found


def run(options: argparse.Namespace) -> None:
    model = load_source(resolve_source(options.model), options.device)
    here, there = (labelled(options, path, model) for path in (options.dev, options.other))
    tables = [hf_heads.ablate(model, batches, metric="loss") for batches in (here, there)]
    scores = [rank_heads(model, "gradient", batches, steps=1, normalize=True) for batches in (here, there)]
    rows = [
        shown({"what": "loss without the head", **agreement(*map(by_block, tables), options.seed)._asdict()}),
        shown({"what": "importance", **agreement(*(one.importance for one in scores), options.seed)._asdict()}),
    ]
    counts = [[sum(row.p < 0.05 for row in table.one_out), len(table.one_out)] for table in tables]
    save("head_correlation", {"rows": rows, "heads that matter, of": counts}, options)
