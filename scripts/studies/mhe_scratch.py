"""Small language models from scratch on real text: multi-head, single-head, MHE-ADD and MHE-MUL, same data and steps.

Each is a run of examples/pretrain_mhe.py. The performance retention ratio is 1 - (perplexity - that of multi-head) /
that of multi-head, in percent.
"""

from __future__ import annotations

import argparse
import statistics

from studies.shared.inputs import TEXT, example
from studies.shared.running import add_folders, save, shown


def add_options(parser: argparse.ArgumentParser) -> None:
    add_folders(parser, "data", "work")
    parser.add_argument("--seeds", type=int, default=2, help="how many runs of each, from --seed on (default 2)")
    parser.add_argument("--max-steps", type=int, default=300, help="of each run (default 300)")


def run(options: argparse.Namespace) -> None:
    pretrain = example("pretrain_mhe")
    rows = []
    for heads in ("mha", "single", "add", "mul"):
        for seed in range(options.seed, options.seed + options.seeds):
            words = ["--text", str(options.data / TEXT), "--heads", heads, "--seed", str(seed)]
            output = options.work / f"mhe-{heads}-{seed}"
            scores = pretrain.main([*words, "--max-steps", str(options.max_steps), "--output", str(output)])
            rows.append(shown({"heads": heads, "seed": seed, **scores}))
    means = {
        heads: statistics.mean(row["perplexity"] for row in rows if row["heads"] == heads)
        for heads in dict.fromkeys(row["heads"] for row in rows)
    }
    retained = {heads: 100 * (1 - (mean - means["mha"]) / means["mha"]) for heads, mean in means.items()}
    save("mhe_scratch", {"steps": options.max_steps, "rows": rows, "retained": shown(retained)}, options)
