"""Pruned MiniLMs on the STS benchmark, without fine-tuning and without labels: rules for choosing heads, and repair.

Drop is in Spearman points x 100 against the original; cosine is that of the pruned to the original sentence embeddings,
mean over all sentences. Draws figures of the curves and of the importances.
"""

from __future__ import annotations

import argparse
from typing import Any

from hf_heads import rank_heads
from hf_heads.core.batches import Batch
from hf_heads.jobs.reporting.figures.curves import draw_curves
from hf_heads.jobs.reporting.figures.heads import draw_heads
from hf_heads.jobs.scoring.scores import HeadScores
from studies.shared.inputs import repaired
from studies.shared.running import Timer, add_folders, curves_over_removed, figure, save, shown
from studies.shared.sentences import Sentences

REMOVED = (0.1, 0.25, 0.4, 0.5, 0.62, 0.75)
REPAIRED = (0.25, 0.5, 0.62)
STEPS = 4
CONTROLS = 3


def add_options(parser: argparse.ArgumentParser) -> None:
    add_folders(parser, "data")


def run(options: argparse.Namespace) -> None:
    study = Sentences(options)
    batches, made = study.calibration(), study.calibration("random")
    rows: list[dict[str, Any]] = []

    def measure(label: str, rule: str, steps: int, data: list[Batch] | None, seed: int = options.seed) -> None:
        """Every share by a rule; heads are scored anew for each share where the order depends on it."""
        scores: HeadScores | None = None
        for removed in REMOVED:
            with Timer() as timer:
                if scores is None or steps > 1:
                    scores = rank_heads(study.model, rule, data, keep=1 - removed, steps=steps, seed=seed)
            specs = scores.keep(1 - removed)
            row, _ = study.converted(specs, None)
            row |= {"label": label, "removed": removed, "seconds": timer.seconds + row["seconds"]}
            rows.append(shown({**row, "kept": {name: list(spec.kept or ()) for name, spec in specs.items()}}))
            if label == "gauss-newton" and removed in REPAIRED:
                row, _ = study.converted(repaired(specs), batches)
                rows.append(shown({**row, "label": f"{label}, repair", "removed": removed}))

    measure("gauss-newton", "gauss-newton", STEPS, batches)
    measure("gauss-newton, one shot", "gauss-newton", 1, batches)
    measure("gauss-newton, random inputs", "gauss-newton", STEPS, made)
    measure("ablation", "ablation", 1, batches)
    measure("weights", "weights", 1, None)
    for seed in range(CONTROLS):
        measure(f"random heads {seed}", "random", 1, None, seed)

    save("prune_stsb", {"base": study.base, "rows": rows}, options)
    draw(rows, options)
    scores = rank_heads(study.model, "gauss-newton", batches, steps=1, seed=options.seed)
    gone = set(scores.order[: len(scores.order) // 2])
    draw_heads(
        figure(options, "minilm_heads.png"),
        scores.importance,
        "all-MiniLM-L6-v2: importance of its heads by gauss-newton, one shot; the half that goes is crossed out",
        "predicted 1 - cosine without the head",
        {name: {head for head in range(len(row)) if (name, head) in gone} for name, row in scores.importance.items()},
    )


def draw(rows: list[dict[str, Any]], options: argparse.Namespace) -> None:
    """The curves of cosine over the share removed; the controls as one line with its spread."""
    controls = [row for row in rows if row["label"].startswith("random heads")]
    drawn = [row for row in rows if row not in controls and not row["label"].endswith("repair")]
    found = {removed: [row["cosine"] for row in controls if row["removed"] == removed] for removed in REMOVED}
    means = [{"label": "random", "removed": x, "cosine": sum(row) / len(row)} for x, row in found.items()]
    draw_curves(
        figure(options, "minilm_pruned.png"),
        curves_over_removed([*drawn, *means], "label", "cosine", 1.0),
        "heads removed (%)",
        "cosine to the original embeddings",
        "all-MiniLM-L6-v2 on STS-B dev, no fine-tuning, by how heads were chosen",
        bands={"random": [(100 * x, min(row), max(row)) for x, row in found.items()]},
    )
