"""Gives every head of a sentence classifier a second key per position, exactly where it stood, and fine-tunes it.

    pip install .
    python examples/gaussian_keys.py --model google-bert/bert-base-uncased --output bert-mgk-sst2

With your own files, which need the columns `sentence` and `label`:

    python examples/gaussian_keys.py --model bert-sst2 --train train.jsonl --dev dev.jsonl --output bert-mgk-sst2

The two keys of a head start almost equal, so that nothing is lost; training moves them apart, and lets the norms of
keys count (beta, from the host's dot product at 0 towards the Gaussian kernel at 1). Both are reported.
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
    PreTrainedModel,
    Trainer,
    TrainingArguments,
    set_seed,
)

import hf_heads
from hf_heads.attention.hosts.blocks import find_blocks


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Fine-tune a classifier with a mixture of Gaussian keys.")
    parser.add_argument("--model", required=True, help="a folder or a hub id")
    parser.add_argument("--output", required=True, help="folder for the result")
    parser.add_argument("--train", metavar="FILE", help=".jsonl, .csv, .tsv or .parquet (default: SST-2 of the hub)")
    parser.add_argument("--dev", metavar="FILE", help="the same, to measure accuracy on")
    parser.add_argument("--mixture", choices=("mgk", "smgk"), default="mgk", help="projection or shift for every key")
    parser.add_argument("--components", type=int, default=2, metavar="M", help="keys of a head (default 2)")
    parser.add_argument("--max-steps", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=5e-5)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


def read(path: str | None, split: str) -> Dataset:
    """The rows of a data file, whose format `datasets` knows by its ending; without one, of SST-2."""
    if path is None:
        return load_dataset("stanfordnlp/sst2", split=split)
    return load_dataset(str(Path(path).resolve().parent), data_files=Path(path).name, split="train")


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


@torch.no_grad()
def apart(model: PreTrainedModel) -> tuple[float, float]:
    """How far the first two keys of a position are apart, as a share of their size, and the mean beta."""
    distances, betas = [], []
    for block in find_blocks(model):
        inputs = torch.randn(1, 64, block.module.shape.key_width, generator=torch.Generator().manual_seed(0))
        keys = block.module.components_of(block.module.project_memory(inputs.to(model.device))[0])
        distances.append(float((keys[:, :, 0] - keys[:, :, 1]).norm() / keys.norm()))
        betas.append(float(block.module.norm_coefficient.mean()))
    return sum(distances) / len(distances), sum(betas) / len(betas)


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    options = parse(arguments)
    set_seed(options.seed)
    train, dev = read(options.train, "train"), read(options.dev, "validation")
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    model = AutoModelForSequenceClassification.from_pretrained(options.model, num_labels=2, dtype="float32")
    model, _ = hf_heads.convert(
        model, hf_heads.MgkSpec(mixture=options.mixture, components=options.components), calibration="none"
    )

    def tokens(rows: dict[str, Any]) -> dict[str, Any]:
        return tokenizer(rows["sentence"], truncation=True, max_length=128)

    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=options.output,
            max_steps=options.max_steps,
            per_device_train_batch_size=options.batch_size,
            per_device_eval_batch_size=options.batch_size,
            learning_rate=options.learning_rate,
            seed=options.seed,
            save_strategy="no",
            report_to="none",
        ),
        train_dataset=train.map(tokens, batched=True),
        eval_dataset=dev.map(tokens, batched=True),
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=accuracy,
    )
    before = apart(model)
    trainer.train()
    trainer.save_model()  # the tokenizer as well
    after = apart(model)
    scores = trainer.evaluate()
    print(f"keys of a position: {before[0]:.4f} apart before, {after[0]:.4f} after; beta {after[1]:.4f}")
    print(f"dev accuracy {scores['eval_accuracy']:.4f} on {len(dev)} sentences, saved to {options.output}")
    return {**scores, "apart_before": before[0], "apart_after": after[0], "beta": after[1]}


if __name__ == "__main__":
    main()
