"""GLUE with collaborative heads: an encoder is fine-tuned, converted at several ranks, and fine-tuned again.

Table 2 of arXiv 2006.16362, its two steps and settings. --data holds TASK/train.jsonl and TASK/dev.jsonl with the
columns of GLUE, MNLI's matched part as dev. Accuracy; of CoLA Matthews' correlation, of MRPC and QQP F1 and accuracy,
of STS-B Pearson's and Spearman's correlation; all in percent, over seeds. What is lost is told from the original that
is fine-tuned twice as well, which the paper does not have. --first convert converts the encoder before it has seen the
task, and fine-tunes once.
"""

from __future__ import annotations

import argparse
import itertools
import re
from functools import partial
from pathlib import Path
from typing import Any

import hf_heads
from hf_heads.core.batches import Batch
from hf_heads.io.checkpoints.sources import Source, resolve_source
from hf_heads.jobs.reporting.figures.curves import draw_curves
from studies.shared.inputs import MINILM, read_jsonl
from studies.shared.running import add_folders, figure, save, shown
from studies.shared.sequences import Part
from studies.shared.tasks import TASKS, Task, classifier, encoded, file_of, scores, tune
from studies.shared.training import Plan, add_runs, add_training, over_seeds, remembered, seeds_of

MODELS = ("google-bert/bert-base-cased", "distilbert/distilbert-base-cased", "albert/albert-base-v2")
RANKS = (768, 384, 256, 128)
CALIBRATION, SMALL_CALIBRATION = 512, 128  # rows, without labels
WEIGHED = ("weights", "data")
SMALL: dict[str, Any] = {
    "models": [MINILM],
    "ranks": [64, 16],
    "tasks": ["sst2", "stsb"],
    "rows": 1920,
    "epochs": 1.0,
    "again": 0.2,
    "learning_rate": 2e-4,
    "again_rate": 5e-5,
}
SMALL_DEV = 300
AGAIN = "original, tuned again"


def add_options(parser: argparse.ArgumentParser) -> None:
    add_folders(parser, "data", "work")
    parser.add_argument("--models", nargs="+", metavar="MODEL", help=f"encoders (default {', '.join(MODELS)})")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, help="default all")
    parser.add_argument("--ranks", nargs="+", type=int, help=f"R (default {', '.join(map(str, RANKS))})")
    about = "what the decomposition sees: weights alone, as the paper's, or data as well (default both)"
    parser.add_argument("--weigh", nargs="+", choices=WEIGHED, default=list(WEIGHED), help=about)
    parser.add_argument("--first", choices=("tune", "convert"), default="tune", help="what comes first (default tune)")
    parser.add_argument("--rows", type=int, help="train on the first so many (default all)")
    parser.add_argument("--epochs", type=float, help="of fine-tuning (default 3)")
    parser.add_argument("--again", type=float, metavar="EPOCHS", help="of fine-tuning the converted (default 3)")
    parser.add_argument("--learning-rate", type=float, help="default 2e-5, the authors'")
    parser.add_argument("--again-rate", type=float, help="that of the second fine-tuning (default the same)")
    add_training(parser)
    about = "a MiniLM, SST-2 and STS-B, 1920 rows once, a fifth of them again after conversion"
    add_runs(parser, 3, about)


def settle(options: argparse.Namespace) -> None:
    """Fill in what is not given: the paper's, or small sizes."""
    paper = {"models": MODELS, "ranks": RANKS, "tasks": TASKS, "rows": None, "epochs": 3.0, "again": 3.0}
    paper["again_rate"] = options.learning_rate or 2e-5
    for name, value in (SMALL if options.small else {**paper, "learning_rate": 2e-5}).items():
        if getattr(options, name) is None:
            setattr(options, name, value if value is None or isinstance(value, float | int) else list(value))


class Measured:
    """A task read for a model.

    Attributes:
        task: what it holds.
        train, dev: its rows.
    """

    def __init__(self, name: str, source: Source, options: argparse.Namespace) -> None:
        self.task: Task = TASKS[name]
        rows = {part: read_jsonl(file_of(name, part, options.data)) for part in ("train", "dev")}
        self.train, self.dev = (
            encoded(rows[part][:count], self.task, source.folder)
            for part, count in (("train", options.rows), ("dev", SMALL_DEV if options.small else None))
        )

    def calibration(self, count: int) -> list[Batch]:
        """Batches of about so many training rows of all lengths, no labels."""
        found: list[Batch] = []
        for _, batch in self.train.in_order(32):
            found.append({name: value for name, value in batch.items() if name != "labels"})
        step = max(1, len(found) * 32 // count)
        return found[::step]


def plan(part: Part, epochs: float, rate: float) -> Plan:
    """So many epochs of batches of 32, the rate falling from the start."""
    return Plan(max(1, round(epochs * len(part) / 32)), 32, rate, 0)


Scores = dict[str, float]


def originals(
    read: Measured, source: Source, seed: int, options: argparse.Namespace, folder: Path
) -> dict[str, Scores | str]:
    """Metrics of the original, tuned once and as often as the converted; the first is kept beside `folder`."""
    model, rate = classifier(source.folder, read.task, seed), options.learning_rate
    tune(model, read.train, plan(read.train, options.epochs, rate), seed, options, folder / "original")
    model.save_pretrained(folder.parent / "model")
    found: dict[str, Scores | str] = {"original": scores(read.task, model, read.dev)}
    if options.first == "tune":
        again = plan(read.train, options.again, options.again_rate)
        tune(model, read.train, again, seed, options, folder / "again")
        found[AGAIN] = scores(read.task, model, read.dev)
    return {**found, "kept": str(folder.parent / "model")}


def converted(
    read: Measured, start: Path, rank: int, by: str, seed: int, options: argparse.Namespace, folder: Path
) -> Scores:
    """Metrics of a model that is converted and tuned, and the first of them before it is tuned."""
    seen: Any = "none"
    if by == "data":
        seen = read.calibration(SMALL_CALIBRATION if options.small else CALIBRATION)
    model = classifier(start, read.task, seed).to(options.device)
    made, _ = hf_heads.convert(model, hf_heads.CollabSpec(rank=rank), calibration=seen)
    shot = scores(read.task, made, read.dev)[read.task.metrics[0]]
    once = options.epochs, options.learning_rate
    how = once if options.first == "convert" else (options.again, options.again_rate)
    tune(made, read.train, plan(read.train, *how), seed, options, folder)
    return {**scores(read.task, made, read.dev), "shot": shot}


def one_seed(
    read: Measured, source: Source, name: str, seed: int, kept: dict[str, Any], options: argparse.Namespace
) -> dict[str, Scores]:
    """By label, the metrics of a seed's models; each is made once, so that more ranks may follow."""
    named = f"glue-{name}-{seed}"
    found = remembered(options, named, kept, partial(originals, read, source, seed, options))
    tuned = Path(found.pop("kept"))
    start = source.folder if options.first == "convert" else tuned
    for rank, by in itertools.product(options.ranks, options.weigh):
        make = partial(converted, read, start, rank, by, seed, options)
        found[f"R = {rank}, by {by}"] = remembered(options, f"{named}-{rank}-{by}", kept, make)
    return found


def draw(rows: list[dict[str, Any]], options: argparse.Namespace) -> None:
    """For every model and task the first metric by rank, before the second fine-tuning and after it."""
    for model, name in dict.fromkeys((row["model"], row["task"]) for row in rows):
        mine = {row["label"]: row for row in rows if (row["model"], row["task"]) == (model, name)}
        metric = TASKS[name].metrics[0]
        curves: dict[str, list[tuple[float, float]]] = {}
        for rank, by in itertools.product(options.ranks, options.weigh):
            found = mine[f"R = {rank}, by {by}"]["metrics"]
            for when, key in (("before tuning", "shot"), ("tuned again", metric)):
                curves.setdefault(f"by {by}, {when}", []).append((rank, found[key]["mean"]))
        whole = mine.get(AGAIN, mine["original"])["metrics"][metric]["mean"]
        short = re.sub(r"\W+", "-", model)[-30:].strip("-")
        path = figure(options, f"glue_{name}.png" if len(options.models) == 1 else f"glue_{name}_{short}.png")
        title = f"{name} by the width of shared queries and keys"
        draw_curves(path, curves, "R", metric, title, baseline=("original", whole))


def run(options: argparse.Namespace) -> None:
    settle(options)
    names = ("first", "rows", "epochs", "again", "learning_rate", "again_rate", "precision")
    settings = {name: getattr(options, name) for name in names}
    seeds, rows = seeds_of(options), []
    for given in options.models:
        source = resolve_source(given)
        for name in options.tasks:
            read = Measured(name, source, options)
            kept = {**settings, "model": given, "data": str(options.data), "dev": len(read.dev)}
            runs = [one_seed(read, source, name, seed, kept, options) for seed in seeds]
            for label in runs[0]:
                metrics = {metric: over_seeds([one[label][metric] for one in runs]) for metric in runs[0][label]}
                first = read.task.metrics[0]
                against = AGAIN if AGAIN in runs[0] and label != "original" else "original"
                lost = over_seeds([one[against][first] - one[label][first] for one in runs])
                row = {"model": given, "task": name, "label": label}
                shown({**row, first: metrics[first]["mean"], "lost": lost["mean"]})
                rows.append({**row, "metrics": metrics, "lost": lost})
    sizes = {"ranks": options.ranks, "seeds": list(seeds)}
    save("glue", {**settings, **sizes, "rows": rows}, options)
    draw(rows, options)
