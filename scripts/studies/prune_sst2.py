"""A MiniLM fine-tuned on SST-2 loses its heads: accuracy by the share removed, without and with a short fine-tuning.

Heads are scored on training sentences, never on those that accuracy is measured on. Draws a figure.
"""

from __future__ import annotations

import argparse

from transformers import AutoTokenizer, PreTrainedModel

import hf_heads
from hf_heads import rank_heads
from hf_heads.core.intervals import paired_interval
from hf_heads.io.checkpoints.loading import load_source
from hf_heads.io.data.choice import CalibrationChoice
from hf_heads.io.data.labelled import load_labelled
from hf_heads.jobs.reporting.figures.curves import draw_curves
from hf_heads.jobs.scoring.scores import HeadScores
from studies.shared.inputs import files, finetuned, hits_on, repaired, sst2_original
from studies.shared.running import add_folders, curves_over_removed, figure, save, shown

REMOVED = tuple(step / 10 for step in range(1, 10))
FIRST = "gradient, re-scored"
RULES = {
    FIRST: {"rule": "gradient", "steps": 9},
    "gradient, one shot": {"rule": "gradient", "steps": 1},
    "gradient, one shot, normalized": {"rule": "gradient", "steps": 1, "normalize": True},
    "gauss-newton": {"rule": "gauss-newton", "steps": 9},
    "random": {"rule": "random", "steps": 1},
}
TUNED = (0.2, 0.4, 0.6, 0.8)


def add_options(parser: argparse.ArgumentParser) -> None:
    add_folders(parser, "data", "work")
    parser.add_argument("--tuning-steps", type=int, default=60, help="steps of 32 sentences (default 60)")


def run(options: argparse.Namespace) -> None:
    source, data = sst2_original(options), files("sst2", options)
    model = load_source(source, options.device)
    hits = hits_on(source, model, data.dev, ("sentence",))
    whole = hits(model)
    base = float(whole.mean())
    print(f"all heads: {base:.2f}")
    batches = load_labelled(CalibrationChoice(data.train, seed=options.seed), model, source.folder)
    rows: list[dict] = []

    def add(label: str, removed: float, pruned: PreTrainedModel) -> None:
        right = hits(pruned)
        low, high = paired_interval(right - whole)
        accuracy = float(right.mean())
        rows.append(shown({"label": label, "removed": removed, "accuracy": accuracy, "low": low, "high": high}))

    orders: dict[str, HeadScores] = {}
    for label, settings in RULES.items():
        orders[label] = rank_heads(model, batches=batches, seed=options.seed, **settings)
        for removed in REMOVED:
            specs = orders[label].keep(1 - removed)
            add(label, removed, hf_heads.convert(model, specs, calibration="none")[0])
            if label == FIRST:
                add(f"{label}, repair", removed, hf_heads.convert(model, repaired(specs), calibration=batches[::2])[0])
    steps = str(options.tuning_steps)
    for removed in TUNED:
        pruned, _ = hf_heads.convert(model, orders[FIRST].keep(1 - removed), calibration="none")
        shot, output = options.work / f"sst2-pruned-{removed}", options.work / f"sst2-tuned-{removed}"
        pruned.save_pretrained(shot)
        AutoTokenizer.from_pretrained(source.folder).save_pretrained(shot)
        tuned = finetuned(shot, output, options, "--max-steps", steps, "--save-steps", steps)
        add(f"{FIRST}, then {steps} steps", removed, load_source(tuned, options.device))
    save("prune_sst2", {"base": base, "examples": len(whole), "rows": rows}, options)
    draw_curves(
        figure(options, "sst2_pruned.png"),
        curves_over_removed(rows, "label", "accuracy", base),
        "heads removed (%)",
        "accuracy (%)",
        "MiniLM fine-tuned on SST-2, dev, by how heads were chosen",
        baseline=("all heads", base),
    )
