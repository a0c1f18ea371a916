"""When heads come to matter: a classifier is fine-tuned, and its accuracy without the least important heads followed.

Section 6 of arXiv 1905.10650: at the start, after every --every steps and at the end heads are scored on the rows of
--train, and shares of them masked in that order. Draws a figure with a curve for each time.
"""

from __future__ import annotations

import argparse
import tempfile

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainingArguments

from hf_heads import HeadDynamicsCallback
from hf_heads.io.checkpoints.sources import resolve_source
from hf_heads.jobs.reporting.figures.curves import draw_curves
from hf_heads.jobs.scoring.agreement import agreement
from studies.prune_curve import add_labelled, labelled
from studies.shared.inputs import hits_on, read_jsonl
from studies.shared.running import figure, save, shown

SMALL_STEPS = 60


def add_options(parser: argparse.ArgumentParser) -> None:
    add_labelled(parser)
    parser.add_argument("--max-steps", type=int, default=600, help="of 32 rows (default 600; --small takes 60)")
    parser.add_argument("--every", type=int, help="steps (default: a sixth of all)")


def run(options: argparse.Namespace) -> None:
    source, steps = resolve_source(options.model), SMALL_STEPS if options.small else options.max_steps
    torch.manual_seed(options.seed)
    rows = read_jsonl(options.train)[: 32 * steps]
    labels = len({row["label"] for row in rows})
    model = AutoModelForSequenceClassification.from_pretrained(source.folder, num_labels=labels).to(options.device)
    tokenizer = AutoTokenizer.from_pretrained(source.folder)
    given = [[row[column] for row in rows] for column in options.columns]
    encoded = tokenizer(*given, truncation=True, max_length=128)
    data = [
        {**{name: values[place] for name, values in encoded.items()}, "labels": row["label"]}
        for place, row in enumerate(rows)
    ]
    hits = hits_on(source, model, options.dev, tuple(options.columns))
    watch = HeadDynamicsCallback(
        labelled(options, options.train, model),
        every=options.every or max(1, steps // 6),
        measure=lambda one: float(hits(one).mean()),
    )
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=32,
            learning_rate=5e-5,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            seed=options.seed,
        )
        Trainer(model=model, args=settings, train_dataset=data, processing_class=tokenizer, callbacks=[watch]).train()
    last = watch.records[-1]["importance"]
    found = [
        {"step": one["step"], "figures": one["figures"], **agreement(one["importance"], last)._asdict()}
        for one in watch.records
    ]
    for one in found:
        shown({**one, **{f"without {100 * share:.0f} %": value for share, value in one["figures"].items()}})
    save("head_dynamics", {"steps": steps, "rows": found}, options)
    curves = {f"step {one['step']}": [(100 * share, y) for share, y in one["figures"].items()] for one in found}
    draw_curves(
        figure(options, "head_dynamics.png"), curves, "heads masked (%)", "accuracy (%)", "Heads over fine-tuning"
    )
