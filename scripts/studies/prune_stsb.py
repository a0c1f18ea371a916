"""Pruned MiniLMs on the STS benchmark, without fine-tuning and without labels: rules for choosing heads, and repair.

    python scripts/prune_stsb.py --train stsb/train.jsonl --dev stsb/dev.jsonl

Writes scripts/results/prune_stsb.json and figures of the curves and of the importances. Drop is in Spearman points
x 100 against the original; cosine is that of the pruned to the original sentence embeddings, mean over all sentences.
"""

from __future__ import annotations

import dataclasses

from common import FIGURES, SentenceTask, Timer, calibration, minilm, parser, save, start
from transformers import PreTrainedModel

import hf_heads
from hf_heads import rank_heads
from hf_heads.reporting.figures.curves import draw_curves
from hf_heads.reporting.figures.heads import draw_heads
from hf_heads.scoring.scores import HeadScores

REMOVED = (0.1, 0.25, 0.4, 0.5, 0.62, 0.75)
REPAIRED = (0.25, 0.5, 0.62)
STEPS = 4
CONTROLS = 3


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--train", required=True, help="training sentences to score heads on (.jsonl)")
    options.add_argument("--dev", required=True, help="pairs to score (.jsonl)")
    options = options.parse_args()
    start(options)
    source, model = minilm()
    task = SentenceTask(options.dev, source, model)
    batches = calibration(options.train, source, model).batches
    made = calibration(None, source, model).batches
    rows: list[dict] = []

    def add(label: str, removed: float, converted: PreTrainedModel, seconds: float, **more: object) -> None:
        row = {"label": label, "removed": removed, **task.score(converted), "seconds": seconds, **more}
        rows.append(row)
        print(f"{label:32} {removed:.2f} drop {row['drop']:+.2f} cos {row['cosine']:.4f} {seconds:.0f} s", flush=True)

    def measure(label: str, rank: dict, data: list | None) -> None:
        """Every share by a rule; scores are measured once for each share where they depend on it."""
        fixed: HeadScores | None = None
        for removed in REMOVED:
            with Timer() as timer:
                if fixed is None:
                    found = rank_heads(model, batches=data, keep=1 - removed, **rank)
                    if rank.get("steps") == 1:
                        fixed = found
                else:
                    found = fixed
                converted, _ = hf_heads.convert(model, found.keep(1 - removed))
            kept = {name: list(spec.kept or ()) for name, spec in found.keep(1 - removed).items()}
            add(label, removed, converted, timer.seconds, kept=kept)
            if rank["rule"] == "gauss-newton" and data is batches and removed in REPAIRED:
                specs = {name: dataclasses.replace(spec, repair=True) for name, spec in found.keep(1 - removed).items()}
                with Timer() as timer:
                    repaired, _ = hf_heads.convert(model, specs, calibration=batches)
                add(f"{label}, repair", removed, repaired, timer.seconds)

    measure("gauss-newton", {"rule": "gauss-newton", "steps": STEPS}, batches)
    measure("gauss-newton, one shot", {"rule": "gauss-newton", "steps": 1}, batches)
    measure("gauss-newton, random inputs", {"rule": "gauss-newton", "steps": STEPS}, made)
    measure("ablation", {"rule": "ablation", "steps": 1}, batches)
    measure("weights", {"rule": "weights", "steps": 1}, None)
    for seed in range(CONTROLS):
        measure(f"random heads {seed}", {"rule": "random", "steps": 1, "seed": seed}, None)

    save("prune_stsb", {"base": task.base, "rows": rows}, options)
    draw(rows)
    scores = rank_heads(model, "gauss-newton", batches, steps=1)
    gone = set(scores.order[: len(scores.order) // 2])
    draw_heads(
        FIGURES / "minilm_heads.png",
        scores.importance,
        "all-MiniLM-L6-v2: importance of its heads by gauss-newton, one shot; the half that goes is crossed out",
        "predicted 1 - cosine without the head",
        {name: {head for head in range(len(row)) if (name, head) in gone} for name, row in scores.importance.items()},
    )


def draw(rows: list[dict]) -> None:
    """The curves of cosine over the share removed; the controls as one line with its spread."""
    curves: dict[str, list[tuple[float, float]]] = {}
    spread = []
    for row in rows:
        if not row["label"].startswith("random heads"):
            curves.setdefault(row["label"], [(0.0, 1.0)]).append((100 * row["removed"], row["cosine"]))
    for removed in REMOVED:
        found = [row["cosine"] for row in rows if row["label"].startswith("random heads") and row["removed"] == removed]
        spread.append((100 * removed, min(found), sum(found) / len(found), max(found)))
    curves["random"] = [(0.0, 1.0), *((x, mean) for x, _, mean, _ in spread)]
    draw_curves(
        FIGURES / "minilm_pruned.png",
        {name: points for name, points in curves.items() if not name.endswith("repair")},
        "heads removed (%)",
        "cosine to the original embeddings",
        "all-MiniLM-L6-v2 on STS-B dev, no fine-tuning, by how heads were chosen",
        bands={"random": [(x, low, high) for x, low, _, high in spread]},
    )


if __name__ == "__main__":
    main()
