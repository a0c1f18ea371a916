"""Small language models from scratch on real text: multi-head, single-head, multi-query, MHE-ADD and MHE-MUL.

The same data and steps for all; each is a run of examples/pretrain_mhe.py. The text is the validation text of
WikiText-2, of which the last tenth is measured on. The performance retention ratio is 1 - (perplexity - that of
multi-head) / that of multi-head, in percent; the elasticity of parameters is the gain over single-head attention, in
percent of it, for each percent of its parameters more.
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
    for heads in ("mha", "sha", "single", "mqa", "add", "mul"):
        for seed in range(options.seed, options.seed + options.seeds):
            words = ["--text", str(options.data / TEXT), "--heads", heads, "--seed", str(seed)]
            output = options.work / f"mhe-{heads}-{seed}"
            scores = pretrain.main([*words, "--max-steps", str(options.max_steps), "--output", str(output)])
            rows.append(shown({"heads": heads, "seed": seed, **scores}))
    means = {
        heads: statistics.mean(row["perplexity"] for row in rows if row["heads"] == heads)
        for heads in dict.fromkeys(row["heads"] for row in rows)
    }
    attention = {row["heads"]: row["attention"] for row in rows}
    found = {heads: retained(mean, means["mha"]) for heads, mean in means.items()}
    elastic = {
        heads: elasticity(mean, means["sha"], attention[heads], attention["sha"])
        for heads, mean in means.items()
        if attention[heads] > attention["sha"]
    }
    results = {"steps": options.max_steps, "rows": rows, "retained": shown(found), "elasticity": shown(elastic)}
    save("mhe_scratch", results, options)


def retained(perplexity: float, many: float) -> float:
    """How much of multi-head attention's performance is kept, in percent."""
    return 100 * (1 - (perplexity - many) / many)


def elasticity(perplexity: float, single: float, parameters: float, fewest: float) -> float:
    """Relative gain of perplexity over single-head attention by the relative growth of the attention's parameters."""
    return (1 - perplexity / single) / (parameters / fewest - 1)
