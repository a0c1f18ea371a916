"""MiniLMs with head embeddings on the STS benchmark, one shot: groups, variants, and each side alone.

    python scripts/mhe_stsb.py --train stsb/train.jsonl --dev stsb/dev.jsonl

Writes scripts/results/mhe_stsb.json. Drop is in Spearman points x 100 against the original; cosine is that of the
converted to the original sentence embeddings, mean over all sentences.
"""

from __future__ import annotations

from common import SentenceTask, Timer, calibration, minilm, parser, save, start

import hf_heads
from hf_heads import MheSpec

ROWS = [
    *(("mul", groups, groups) for groups in (1, 2, 3, 4, 6)),
    *(("add", groups, groups) for groups in (1, 3)),
    ("mul", 1, 12),  # scores alone
    ("mul", 12, 1),  # values alone
    ("mul", 1, 3),
]


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--train", required=True, help="training sentences to calibrate on (.jsonl)")
    options.add_argument("--dev", required=True, help="pairs to score (.jsonl)")
    options = options.parse_args()
    start(options)
    source, model = minilm()
    task = SentenceTask(options.dev, source, model)
    data = {
        "data": calibration(options.train, source, model).batches,
        "random": calibration(None, source, model).batches,
    }
    rows = []
    for kind, batches in data.items():
        for variant, groups_qk, groups_v in ROWS:
            if kind == "random" and (variant, groups_qk) not in (("mul", 1), ("mul", 3)):
                continue
            if kind == "random" and groups_qk != groups_v:
                continue
            spec = MheSpec(variant=variant, groups_qk=groups_qk, groups_v=groups_v)
            with Timer() as timer:
                converted, report = hf_heads.convert(model, spec, calibration=batches)
            row = {"variant": variant, "groups_qk": groups_qk, "groups_v": groups_v, "calibration": kind}
            row |= {**task.score(converted), "seconds": timer.seconds}
            row["attention_parameters"] = sum(block.parameters for block in report.blocks)
            row["cache"] = report.blocks[0].cache
            rows.append(row)
            print(
                f"{kind} {variant} {groups_qk:2} {groups_v:2} drop {row['drop']:+.2f} cos {row['cosine']:.4f} "
                f"{timer.seconds:.0f} s",
                flush=True,
            )
    save("mhe_stsb", {"base": task.base, "rows": rows}, options)


if __name__ == "__main__":
    main()
