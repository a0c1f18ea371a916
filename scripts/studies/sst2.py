"""Fine-tunes the original and converted MiniLMs on SST-2 with the example's Trainer run and the same budget for each.

Results are accuracies on the dev sentences, one run a seed.
"""

from __future__ import annotations

import argparse

from hf_heads import CollabSpec, HeadsSpec, LowRankSpec
from hf_heads.io.checkpoints.loading import load_source
from hf_heads.io.data.calibration import CalibrationChoice
from hf_heads.jobs.conversion.checkpoint import convert_checkpoint
from hf_heads.jobs.conversion.request import ConversionRequest
from studies.shared.inputs import files, finetuned, hits_on, source_of
from studies.shared.running import add_folders, save, shown

SPECS: dict[str, HeadsSpec | None] = {
    "original": None,
    "collab R = 96": CollabSpec(rank=96),
    "low-rank R = 96": LowRankSpec(rank=96),
}


def add_options(parser: argparse.ArgumentParser) -> None:
    add_folders(parser, "data", "work")
    parser.add_argument("--epochs", default="1", help="of fine-tuning (default 1)")
    parser.add_argument("--seeds", type=int, default=1, help="how many runs of each, from --seed on (default 1)")


def run(options: argparse.Namespace) -> None:
    data, source = files("sst2", options), source_of("minilm", options)
    choice = CalibrationChoice(data.train, ("sentence",), seed=options.seed, pack=False)
    rows = []
    for label, spec in SPECS.items():
        folder = source.folder
        if spec is not None:
            folder = options.work / f"{spec.method}-96"
            request = ConversionRequest(source, spec, calibration=choice, device=options.device)
            convert_checkpoint(request, folder, overwrite=True)
        for seed in range(options.seed, options.seed + options.seeds):
            output = options.work / f"{label.replace(' ', '')}-seed{seed}"
            tuned = finetuned(folder, output, options, "--epochs", options.epochs, "--seed", str(seed))
            model = load_source(tuned, options.device)
            hits = hits_on(tuned, model, data.dev, ("sentence",))
            rows.append(shown({"label": label, "seed": seed, "accuracy": float(hits(model).mean())}))
    save("sst2", {"epochs": options.epochs, "rows": rows}, options)
