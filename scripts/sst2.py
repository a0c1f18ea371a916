"""Fine-tunes the original and converted MiniLMs on SST-2 with the example's Trainer run and the same budget for each.

    python scripts/sst2.py --train sst2/train.jsonl --dev sst2/dev.jsonl --work DIR

Writes scripts/results/sst2.json: accuracy on the dev sentences, one run a seed.
"""

from __future__ import annotations

from pathlib import Path

from common import example, minilm, parser, save, start

import hf_heads
from hf_heads import CollabSpec, LowRankSpec
from hf_heads.conversion.checkpoint import convert_checkpoint
from hf_heads.conversion.request import ConversionRequest
from hf_heads.data.calibration import CalibrationChoice


def main() -> None:
    options = parser(__doc__)
    for name in ("train", "dev", "work"):
        options.add_argument(f"--{name}", required=True)
    options.add_argument("--epochs", default="1")
    options.add_argument("--seeds", type=int, default=1)
    options = options.parse_args()
    start(options)
    finetune = example("finetune_sst2")

    source, _ = minilm()
    work = Path(options.work)
    choice = CalibrationChoice(options.train, ("sentence",))
    models: dict[str, tuple[str, hf_heads.HeadsSpec | None]] = {
        "original": (str(source.folder), None),
        "collab R = 96": (str(work / "collab-96"), CollabSpec(rank=96)),
        "low-rank R = 96": (str(work / "low-rank-96"), LowRankSpec(rank=96)),
    }
    rows = []
    for label, (folder, heads) in models.items():
        if heads is not None:
            request = ConversionRequest(source, heads, calibration=choice, device="cpu")
            convert_checkpoint(request, Path(folder), overwrite=True)
        for seed in range(options.seeds):
            arguments = ["--model", folder, "--train", options.train, "--dev", options.dev, "--epochs", options.epochs]
            output = work / f"{label.replace(' ', '')}-seed{seed}"
            scores = finetune.main([*arguments, "--seed", str(seed), "--output", str(output)])
            rows.append({"label": label, "seed": seed, "accuracy": 100 * scores["eval_accuracy"]})
            print(rows[-1], flush=True)
    save("sst2", {"epochs": options.epochs, "rows": rows}, options)


if __name__ == "__main__":
    main()
