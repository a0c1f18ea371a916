"""A MiniLM fine-tuned on SST-2 loses its heads: accuracy by the share removed, without and with a short fine-tuning.

    python scripts/prune_sst2.py --train sst2/train.jsonl --dev sst2/dev.jsonl --work DIR

Heads are scored on training sentences, never on those that accuracy is measured on. Writes
scripts/results/prune_sst2.json and a figure. DIR keeps the fine-tuned model, and a second run takes it from there.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from common import FIGURES, example, minilm, parser, read_jsonl, save, start
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel

import hf_heads
from hf_heads import rank_heads
from hf_heads.checkpoints.sources import resolve_source
from hf_heads.core.intervals import paired_interval
from hf_heads.data.labelled import load_labelled
from hf_heads.reporting.figures.curves import draw_curves
from hf_heads.scoring.scores import HeadScores

REMOVED = tuple(step / 10 for step in range(1, 10))
RULES = {
    "gradient, re-scored": {"rule": "gradient", "steps": 9},
    "gradient, one shot": {"rule": "gradient", "steps": 1},
    "gradient, one shot, normalized": {"rule": "gradient", "steps": 1, "normalize": True},
    "gauss-newton": {"rule": "gauss-newton", "steps": 9},
    "random": {"rule": "random", "steps": 1},
}
TUNED = (0.2, 0.4, 0.6, 0.8)


class Dev:
    """The dev sentences: which of them a model gets right."""

    def __init__(self, path: str, folder: str) -> None:
        rows = read_jsonl(path)
        self.labels = torch.tensor([row["label"] for row in rows])
        tokenizer = AutoTokenizer.from_pretrained(folder)
        self.batches = []
        for begin in range(0, len(rows), 64):
            texts = [row["sentence"] for row in rows[begin : begin + 64]]
            self.batches.append(tokenizer(texts, padding=True, truncation=True, max_length=128, return_tensors="pt"))

    @torch.no_grad()
    def right(self, model: PreTrainedModel) -> torch.Tensor:
        """100 for every sentence whose label is predicted, else 0."""
        model.eval()
        found = torch.cat([model(**batch).logits.argmax(-1) for batch in self.batches])
        return 100.0 * (found == self.labels)


def main() -> None:
    options = parser(__doc__)
    for name in ("train", "dev", "work"):
        options.add_argument(f"--{name}", required=True)
    options.add_argument(
        "--tuning-steps", type=int, default=60, help="steps of 32 sentences after pruning (default 60)"
    )
    options = options.parse_args()
    start(options)
    source, _ = minilm()
    work, data = Path(options.work), ["--train", options.train, "--dev", options.dev]
    finetune = example("finetune_sst2")
    folder = work / "sst2"
    if not (folder / "model.safetensors").is_file():
        finetune.main(["--model", str(source.folder), *data, "--epochs", "2", "--output", str(folder)])
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    dev = Dev(options.dev, str(folder))
    whole = dev.right(model)
    base = float(whole.mean())
    print(f"all heads: {base:.2f}", flush=True)
    batches = load_labelled(options.train, model, resolve_source(str(folder)).folder, samples=512)

    rows: list[dict] = []

    def add(label: str, removed: float, pruned: PreTrainedModel) -> None:
        right = dev.right(pruned)
        low, high = paired_interval(right - whole)
        row = {"label": label, "removed": removed, "accuracy": float(right.mean()), "low": low, "high": high}
        rows.append(row)
        change = row["accuracy"] - base
        print(f"{label:32} {removed:.1f} {row['accuracy']:.2f} ({change:+.2f}, {low:+.2f} to {high:+.2f})", flush=True)

    orders: dict[str, HeadScores] = {}
    for label, settings in RULES.items():
        orders[label] = rank_heads(model, batches=batches, **settings)
        for removed in REMOVED:
            specs = orders[label].keep(1 - removed)
            add(label, removed, hf_heads.convert(model, specs)[0])
            if label == "gradient, re-scored":
                repaired = {name: dataclasses.replace(spec, repair=True) for name, spec in specs.items()}
                add(f"{label}, repair", removed, hf_heads.convert(model, repaired, calibration=batches[::2])[0])
    for removed in TUNED:
        pruned, _ = hf_heads.convert(model, orders["gradient, re-scored"].keep(1 - removed))
        start_from, output = work / f"pruned-{removed}", work / f"tuned-{removed}"
        pruned.save_pretrained(start_from)
        AutoTokenizer.from_pretrained(folder).save_pretrained(start_from)
        steps = ["--max-steps", str(options.tuning_steps), "--save-steps", str(options.tuning_steps)]
        if not (output / "model.safetensors").is_file():
            finetune.main(["--model", str(start_from), *data, *steps, "--output", str(output)])
        label = f"gradient, re-scored, then {options.tuning_steps} steps"
        add(label, removed, AutoModelForSequenceClassification.from_pretrained(output))
    save("prune_sst2", {"base": base, "examples": len(whole), "rows": rows}, options)
    curves: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        curves.setdefault(row["label"], [(0.0, base)]).append((100 * row["removed"], row["accuracy"]))
    draw_curves(
        FIGURES / "sst2_pruned.png",
        curves,
        "heads removed (%)",
        "accuracy (%)",
        "MiniLM fine-tuned on SST-2, dev, by how heads were chosen",
        baseline=("all heads", base),
    )


if __name__ == "__main__":
    main()
