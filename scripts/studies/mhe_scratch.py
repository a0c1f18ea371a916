"""Small language models from scratch on real text: multi-head, single-head, MHE-ADD and MHE-MUL, same data and steps.

    python scripts/mhe_scratch.py --text wikitext.txt --work DIR

Each is a run of examples/pretrain_mhe.py. The performance retention ratio is 1 - (perplexity - that of multi-head) /
that of multi-head, in percent. Writes scripts/results/mhe_scratch.json.
"""

from __future__ import annotations

import statistics
from pathlib import Path

from common import example, parser, save, start


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--text", required=True, help="plain text")
    options.add_argument("--work", required=True, help="folder for the models")
    options.add_argument("--seeds", type=int, default=2)
    options.add_argument("--max-steps", default="600")
    options = options.parse_args()
    start(options)
    pretrain = example("pretrain_mhe")
    rows = []
    for heads in ("mha", "single", "add", "mul"):
        for seed in range(options.seeds):
            output = str(Path(options.work) / f"{heads}-{seed}")
            settings = ["--text", options.text, "--max-steps", options.max_steps, "--seed", str(seed)]
            scores = pretrain.main([*settings, "--heads", heads, "--output", output])
            rows.append({"heads": heads, "seed": seed, **scores})
    means = {row["heads"]: 0.0 for row in rows}
    for heads in means:
        means[heads] = statistics.mean(row["perplexity"] for row in rows if row["heads"] == heads)
    retained = {heads: 100 * (1 - (mean - means["mha"]) / means["mha"]) for heads, mean in means.items()}
    print(means, retained)
    save("mhe_scratch", {"steps": int(options.max_steps), "rows": rows, "retained": retained}, options)


if __name__ == "__main__":
    main()
