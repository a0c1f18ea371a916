"""When heads come to matter: a classifier is fine-tuned, and its accuracy without the least important heads followed.

Section 6 of arXiv 1905.10650: at the start, after every --every steps and at the end heads are scored on the rows of
--train, and shares of them masked in that order. Draws a figure with a curve for each time, means over seeds.
"""

from __future__ import annotations

import argparse
import tempfile
from typing import Any

from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
    set_seed,
)

from hf_heads import HeadDynamicsCallback
from hf_heads.io.checkpoints.sources import Source
from hf_heads.jobs.reporting.figures.curves import draw_curves
from hf_heads.jobs.scoring.agreement import agreement
from studies.shared.classifiers import add_labelled, hits_of, labelled, settle
from studies.shared.inputs import read_jsonl
from studies.shared.running import figure, save, shown
from studies.shared.training import over_seeds

SMALL_STEPS, SMALL_RATE = 60, 2e-4
SHARES = tuple(tenth / 10 for tenth in range(1, 10))
SMALL_SHARES = (0.2, 0.4, 0.6, 0.8)


def add_options(parser: argparse.ArgumentParser) -> None:
    add_labelled(parser, "sst2")
    parser.add_argument("--max-steps", type=int, help=f"of 32 rows (default 600; --small takes {SMALL_STEPS})")
    parser.add_argument("--every", type=int, help="steps (default: a quarter of all)")
    about = f"its highest (default 5e-5; --small takes {SMALL_RATE:g})"
    parser.add_argument("--learning-rate", type=float, help=about)
    parser.add_argument("--seeds", type=int, default=2, help="how many runs, from --seed on (default 2)")


def examples(options: argparse.Namespace, source: Source, count: int) -> tuple[list[dict[str, Any]], int]:
    """The first rows to train on, encoded, and how many classes they have."""
    rows = read_jsonl(options.train)[:count]
    given = [[row[column] for row in rows] for column in options.columns]
    encoded = AutoTokenizer.from_pretrained(source.folder)(*given, truncation=True, max_length=128)
    data = [
        {**{name: values[place] for name, values in encoded.items()}, "labels": row["label"]}
        for place, row in enumerate(rows)
    ]
    return data, len({row["label"] for row in rows})


def followed(options: argparse.Namespace, source: Source, seed: int, steps: int) -> list[dict[str, Any]]:
    """One run of fine-tuning: at every look the accuracies by the share masked, and how alike importance is at the end.

    What is masked is called by its share, 0 for nothing.
    """
    set_seed(seed)
    data, classes = examples(options, source, 32 * steps)
    model = AutoModelForSequenceClassification.from_pretrained(source.folder, num_labels=classes).to(options.device)
    assert isinstance(model, PreTrainedModel)
    hits = hits_of(options, model, source)
    watch = HeadDynamicsCallback(
        labelled(options, options.train, model, source),
        every=options.every or max(1, steps // 4),
        measure=lambda one: float(hits(one).mean()),
        removed=SMALL_SHARES if options.small else SHARES,
    )
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=32,
            learning_rate=options.learning_rate or (SMALL_RATE if options.small else 5e-5),
            train_sampling_strategy="group_by_length",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
            seed=seed,
        )
        tokenizer = AutoTokenizer.from_pretrained(source.folder)
        Trainer(model=model, args=settings, train_dataset=data, processing_class=tokenizer, callbacks=[watch]).train()
    last = watch.records[-1]["importance"]
    found = [(one, agreement(one["importance"], last)) for one in watch.records]
    return [
        shown({"seed": seed, "step": one["step"], "figures": one["figures"], **alike._asdict()}) for one, alike in found
    ]


def summary(runs: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """By step: mean and interval over runs of the accuracy at each share masked, and of the correlation."""
    rows = []
    for looks in zip(*runs, strict=True):
        figures = {share: over_seeds([one["figures"][share] for one in looks]) for share in looks[0]["figures"]}
        rows.append(
            {"step": looks[0]["step"], "figures": figures, "pearson": over_seeds([one["pearson"] for one in looks])}
        )
    return rows


def run(options: argparse.Namespace) -> None:
    source = settle(options, "sst2", tuned=False)
    steps = options.max_steps or (SMALL_STEPS if options.small else 600)
    seeds = range(options.seed, options.seed + options.seeds)
    runs = [followed(options, source, seed, steps) for seed in seeds]
    rows = summary(runs)
    save("head_dynamics", {"steps": steps, "seeds": list(seeds), "rows": rows}, options)
    curves = {
        f"step {row['step']}": [(100 * share, one["mean"]) for share, one in row["figures"].items()] for row in rows
    }
    draw_curves(
        figure(options, "head_dynamics.png"), curves, "heads masked (%)", "accuracy (%)", "Heads over fine-tuning"
    )
