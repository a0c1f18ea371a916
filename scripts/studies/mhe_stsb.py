"""MiniLMs with head embeddings on the STS benchmark, one shot: groups, variants, and each side alone.

Drop is in Spearman points x 100 against the original; cosine is that of the converted to the original sentence
embeddings, mean over all sentences.
"""

from __future__ import annotations

import argparse

from hf_heads import MheSpec
from studies.shared.running import add_folders, save, shown
from studies.shared.sentences import Sentences

# Variant, groups of scores, groups of values.
ROWS = [
    *(("mul", groups, groups) for groups in (1, 2, 3, 4, 6)),
    *(("add", groups, groups) for groups in (1, 3)),
    ("mul", 1, 12),  # scores alone
    ("mul", 12, 1),  # values alone
    ("mul", 1, 3),
]


def add_options(parser: argparse.ArgumentParser) -> None:
    add_folders(parser, "data")


def run(options: argparse.Namespace) -> None:
    study = Sentences(options)
    rows = []
    for kind, chosen in {"data": ROWS, "random": [("mul", 1, 1), ("mul", 3, 3)]}.items():
        batches = study.calibration("random" if kind == "random" else None)
        for variant, groups_qk, groups_v in chosen:
            row, report = study.converted(MheSpec(variant=variant, groups_qk=groups_qk, groups_v=groups_v), batches)
            named = {"variant": variant, "groups_qk": groups_qk, "groups_v": groups_v, "calibration": kind}
            rows.append(shown({**named, **row, "cache": report.blocks[0].cache}))
    save("mhe_stsb", {"base": study.base, "rows": rows}, options)
