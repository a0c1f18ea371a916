"""Removes the least important heads of a fine-tuned sentence classifier, and fine-tunes what is left.

    pip install .
    python examples/finetune_sst2.py --model google-bert/bert-base-uncased --output bert-sst2
    python examples/prune_classifier.py --model bert-sst2 --keep 0.5 --output bert-sst2-half

With your own files, which need the columns `sentence` and `label`:

    python examples/prune_classifier.py --model bert-sst2 --train train.jsonl --dev dev.jsonl --output bert-sst2-half

The result is an ordinary checkpoint with smaller matrices: after `import hf_heads`,
`AutoModelForSequenceClassification.from_pretrained` loads it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset
from torch.utils.data import DataLoader
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


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Prune a sentence classifier and fine-tune it on.")
    parser.add_argument("--model", required=True, help="a fine-tuned classifier: a folder or a hub id")
    parser.add_argument("--output", required=True, help="folder for the checkpoints and the result")
    parser.add_argument("--train", metavar="FILE", help=".jsonl, .csv, .tsv or .parquet (default: SST-2 of the hub)")
    parser.add_argument("--dev", metavar="FILE", help="the same, to measure accuracy on")
    parser.add_argument("--keep", type=float, default=0.5, help="share of the heads that stays (default 0.5)")
    parser.add_argument("--steps", type=int, default=4, help="rounds of removal (default 4)")
    parser.add_argument("--samples", type=int, default=512, metavar="N", help="to score heads on (default 512)")
    parser.add_argument("--max-steps", type=int, default=200, metavar="N", help="steps of fine-tuning (default 200)")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=3e-5)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


def read(path: str | None, split: str) -> Dataset:
    """The rows of a data file, whose format `datasets` knows by its ending; without one, of SST-2."""
    if path is None:
        return load_dataset("stanfordnlp/sst2", split=split)
    return load_dataset(str(Path(path).resolve().parent), data_files=Path(path).name, split="train")


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    options = parse(arguments)
    set_seed(options.seed)
    train, dev = read(options.train, "train"), read(options.dev, "validation")
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    model = AutoModelForSequenceClassification.from_pretrained(options.model, dtype="float32")

    def tokens(rows: dict[str, Any]) -> dict[str, Any]:
        return tokenizer(rows["sentence"], truncation=True, max_length=128)

    train, dev = (
        rows.map(tokens, batched=True).select_columns(["label", "input_ids", "attention_mask"]) for rows in (train, dev)
    )
    collate = DataCollatorWithPadding(tokenizer)

    def trainer(one: PreTrainedModel) -> Trainer:
        return Trainer(
            model=one,
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
            train_dataset=train,
            eval_dataset=dev,
            processing_class=tokenizer,
            data_collator=collate,
            compute_metrics=accuracy,
        )

    # Heads are scored by |dL/d(mask)| of every sentence, on training data; `labels` in a batch is all that it takes.
    some = train.shuffle(seed=options.seed).select(range(min(options.samples, len(train))))
    batches = list(DataLoader(some, batch_size=options.batch_size, collate_fn=collate))
    spec = hf_heads.PrunedSpec(keep=options.keep, score="gradient", steps=options.steps)
    pruned, report = hf_heads.convert(model, spec, calibration=batches)
    scores = {"all heads": trainer(model).evaluate()["eval_accuracy"]}
    tuned = trainer(pruned)
    scores["pruned"] = tuned.evaluate()["eval_accuracy"]
    tuned.train()
    tuned.save_model()  # the tokenizer as well
    scores["pruned and fine-tuned"] = tuned.evaluate()["eval_accuracy"]

    for block in report.blocks:
        print(f"{block.name}: heads {', '.join(map(str, block.spec.kept)) or 'none'}")
    for name, score in scores.items():
        print(f"{name}: dev accuracy {score:.4f}")
    print(f"{report.model_parameters_before:,} -> {report.model_parameters:,} parameters, saved to {options.output}")
    return scores


if __name__ == "__main__":
    main()
