"""Fine-tunes a checkpoint, original or converted, as a sentence classifier on SST-2 with transformers' Trainer.

    pip install .
    hf-heads convert google-bert/bert-base-uncased --to collab --rank 256 --output bert-collab
    python examples/finetune_sst2.py --model bert-collab --output bert-collab-sst2

With your own files, which need the columns `sentence` and `label` (0 or 1):

    python examples/finetune_sst2.py --model bert-collab --train train.jsonl --dev dev.jsonl --output bert-collab-sst2

An interrupted run goes on with --resume. The result is an ordinary checkpoint: after `import hf_heads`,
`AutoModelForSequenceClassification.from_pretrained` loads it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, load_dataset
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    EvalPrediction,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint

import hf_heads  # lets the Auto classes load converted checkpoints


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Fine-tune a checkpoint as a sentence classifier on SST-2.")
    parser.add_argument("--model", required=True, help="a folder or a hub id; original or converted")
    parser.add_argument("--output", required=True, help="folder for the checkpoints and the result")
    parser.add_argument("--train", metavar="FILE", help=".jsonl, .csv, .tsv or .parquet (default: SST-2 of the hub)")
    parser.add_argument("--dev", metavar="FILE", help="the same, to measure accuracy on")
    parser.add_argument("--samples", type=int, metavar="N", help="train on the first N rows only")
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--max-steps", type=int, default=-1, metavar="N", help="stop after N steps, whatever --epochs")
    parser.add_argument("--save-steps", type=int, default=500, metavar="N", help="a checkpoint every N steps")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=5e-5)
    parser.add_argument(
        "--factors",
        default="slow",
        choices=("slow", "frozen", "free"),
        help="how a converted model trains what its heads share (default slow; an original has nothing of it)",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true", help="continue from the last checkpoint in --output")
    options = parser.parse_args(arguments)
    options.checkpoint = get_last_checkpoint(options.output) if Path(options.output).is_dir() else None
    if options.resume and not options.checkpoint:
        parser.error(f"--resume: there is no checkpoint in '{options.output}'")
    if options.checkpoint and not options.resume:
        parser.error(f"'{options.output}' has checkpoints: add --resume, or choose another --output")
    return options


def read(path: str | None, split: str) -> Dataset:
    """The rows of a data file, whose format `datasets` knows by its ending; without one, of SST-2."""
    if path is None:
        return load_dataset("stanfordnlp/sst2", split=split)
    return load_dataset(str(Path(path).resolve().parent), data_files=Path(path).name, split="train")


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    options = parse(arguments)
    set_seed(options.seed)  # the new classifier on top of the model is drawn at random

    train, dev = read(options.train, "train"), read(options.dev, "validation")
    if options.samples:
        train = train.select(range(min(options.samples, len(train))))

    # The Trainer itself would restore only those weights that have the same name in the file and in the model.
    start = options.checkpoint or options.model
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    model = AutoModelForSequenceClassification.from_pretrained(start, num_labels=2, dtype="float32")

    def tokens(rows: dict[str, Any]) -> dict[str, Any]:
        return tokenizer(rows["sentence"], truncation=True, max_length=128)

    train, dev = train.map(tokens, batched=True), dev.map(tokens, batched=True)

    if options.factors == "frozen":
        hf_heads.freeze_factors(model)
    share = {"share": 1.0} if options.factors == "free" else {}
    groups = hf_heads.parameter_groups(model, options.learning_rate, **share)

    trainer = Trainer(
        model=model,
        optimizers=(torch.optim.AdamW(groups), None),
        args=TrainingArguments(
            output_dir=options.output,
            num_train_epochs=options.epochs,
            max_steps=options.max_steps,
            per_device_train_batch_size=options.batch_size,
            per_device_eval_batch_size=options.batch_size,
            learning_rate=options.learning_rate,
            seed=options.seed,
            save_steps=options.save_steps,
            save_total_limit=2,
            logging_steps=50,
            report_to="none",
        ),
        train_dataset=train,
        eval_dataset=dev,
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=accuracy,
    )
    trainer.train(resume_from_checkpoint=options.checkpoint)
    trainer.save_model()  # the tokenizer as well
    scores = trainer.evaluate()
    print(f"dev accuracy {scores['eval_accuracy']:.4f} on {len(dev)} sentences, saved to {options.output}")
    return scores


if __name__ == "__main__":
    main()
