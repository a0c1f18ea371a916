"""Fine-tunes a text classifier with transformers' Trainer, then converts its heads on its own training data.

    pip install .
    python examples/fine_tune_then_convert.py --model google-bert/bert-base-uncased --train train.tsv --dev dev.tsv \
        --to collab --rank 192 --output bert-mrpc

The files (.jsonl, .csv, .tsv or .parquet) are like those of GLUE: a column or two of text and a column `label`, whole
numbers for classes, or any numbers with --regression. Names of columns that differ are given with --columns and
--label. Without --train, a tiny model learns made-up pairs, which takes seconds and no network.

The conversion sees what the model was trained on: pairs as pairs, at their own lengths, and the labels where the
settings use them (`--to pruned` with a score by gradients). The result is an ordinary checkpoint: after
`import hf_heads`, `AutoModelForSequenceClassification.from_pretrained` loads it.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, load_dataset
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertTokenizer,
    DataCollatorWithPadding,
    EvalPrediction,
    Trainer,
    TrainingArguments,
    set_seed,
)

import hf_heads

WORDS = ("red", "blue", "green", "old", "new", "house", "river", "song", "garden", "train")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Fine-tune a text classifier, then convert its heads.")
    parser.add_argument("--model", help="a folder or a hub id (default: a tiny one, made here)")
    parser.add_argument("--output", required=True, help="folder for the result; must not exist")
    parser.add_argument("--train", metavar="FILE", help=".jsonl, .csv, .tsv or .parquet (default: made-up pairs)")
    parser.add_argument("--dev", metavar="FILE", help="the same, to measure on")
    parser.add_argument("--columns", metavar="A[,B]", help="the columns of text (default: those that hold text)")
    parser.add_argument("--label", default="label", help="the column of the label (default: label)")
    parser.add_argument("--regression", action="store_true", help="labels are numbers, not classes")
    parser.add_argument("--to", default="collab", choices=("collab", "low-rank", "mhe", "pruned"))
    parser.add_argument("--rank", type=int, help="of collab and low-rank (default: a quarter of the width)")
    parser.add_argument("--groups", type=int, default=1, help="shared heads of mhe")
    parser.add_argument("--keep", type=float, default=0.5, help="share of heads that pruned keeps")
    parser.add_argument("--calibration", type=int, default=512, metavar="N", help="training rows to convert on")
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, help="default 5e-5, of the tiny model 5e-3")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    if Path(options.output).exists():
        parser.error(f"'{options.output}' exists: choose another --output")
    if bool(options.train) != bool(options.dev) or (options.train and not options.model):
        parser.error("give --model, --train and --dev together, or none of them")
    options.learning_rate = options.learning_rate or (5e-5 if options.model else 5e-3)
    return options


def made_pairs(count: int, seed: int) -> Dataset:
    """Pairs of made-up phrases; the label is which of two words the second one has."""
    choose = random.Random(seed)
    rows = []
    for _ in range(count):
        first, second, label = choose.sample(WORDS, 3), choose.sample(WORDS[2:], 2), choose.randint(0, 1)
        second.insert(choose.randint(0, 2), WORDS[label])
        rows.append({"first": " ".join(first), "second": " ".join(second), "label": label})
    return Dataset.from_list(rows)


def tiny_model() -> tuple[Any, Any]:
    """A BERT of two small layers that knows the made-up words only."""
    vocabulary = {word: index for index, word in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS))}
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = BertConfig(vocab_size=len(vocabulary), max_position_embeddings=32, num_labels=2, **sizes)
    return AutoModelForSequenceClassification.from_config(config), BertTokenizer(vocab=vocabulary, model_max_length=32)


def read(path: str) -> Dataset:
    """The rows of a data file, whose format `datasets` knows by its ending."""
    file = Path(path).resolve()
    tabs = {"sep": "\t"} if file.suffix == ".tsv" else {}
    kind = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}.get(file.suffix, "csv")
    return load_dataset(kind, data_files=str(file), split="train", **tabs)


def settings(options: argparse.Namespace, width: int) -> hf_heads.HeadsSpec:
    rank = options.rank or width // 4
    if options.to == "collab":
        return hf_heads.CollabSpec(rank=rank)
    if options.to == "low-rank":
        return hf_heads.LowRankSpec(rank=rank)
    if options.to == "mhe":
        return hf_heads.MheSpec(groups=options.groups)
    return hf_heads.PrunedSpec(keep=options.keep, score="gradient")  # of the loss on the labels


def score(prediction: EvalPrediction) -> dict[str, float]:
    """Accuracy, or the correlation where labels are numbers."""
    found, labels = torch.as_tensor(prediction.predictions), torch.as_tensor(prediction.label_ids)
    if found.shape[-1] == 1:
        return {"score": float(torch.corrcoef(torch.stack([found.flatten(), labels.flatten()]).double())[0, 1])}
    return {"score": float((found.argmax(-1) == labels).double().mean())}


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    options = parse(arguments)
    set_seed(options.seed)  # the new classifier on top of the model is drawn at random
    train, dev = (read(options.train), read(options.dev)) if options.train else (made_pairs(1024, 0), made_pairs(64, 1))
    text = [name for name in train.column_names if name != options.label and isinstance(train[0][name], str)][:2]
    columns = options.columns.split(",") if options.columns else text
    if options.model:
        labels = 1 if options.regression else max(train[options.label]) + 1
        tokenizer = AutoTokenizer.from_pretrained(options.model)
        model = AutoModelForSequenceClassification.from_pretrained(
            options.model, num_labels=labels, ignore_mismatched_sizes=True, dtype="float32"
        )
    else:
        model, tokenizer = tiny_model()

    def tokens(rows: dict[str, Any]) -> dict[str, Any]:
        kind = float if options.regression else int
        return {
            **tokenizer(*(rows[name] for name in columns), truncation=True),
            "labels": [kind(one) for one in rows[options.label]],
        }

    train, dev = (part.map(tokens, batched=True, remove_columns=part.column_names) for part in (train, dev))
    collate = DataCollatorWithPadding(tokenizer)
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=options.output,
            num_train_epochs=options.epochs,
            per_device_train_batch_size=options.batch_size,
            per_device_eval_batch_size=options.batch_size,
            learning_rate=options.learning_rate,
            seed=options.seed,
            save_strategy="no",
            logging_steps=50,
            report_to="none",
        ),
        train_dataset=train,
        eval_dataset=dev,
        processing_class=tokenizer,
        data_collator=collate,
        compute_metrics=score,
    )
    trainer.train()
    before = trainer.evaluate()["eval_score"]

    # Rows of the model's own training data, of like lengths together, with their labels.
    rows = train.shuffle(seed=options.seed).select(range(min(options.calibration, len(train)))).to_list()
    rows.sort(key=lambda row: len(row["input_ids"]))
    size = options.batch_size
    batches = [dict(collate(rows[begin : begin + size])) for begin in range(0, len(rows), size)]
    _, report = hf_heads.convert(model, settings(options, model.config.hidden_size), calibration=batches, inplace=True)

    after = trainer.evaluate()["eval_score"]
    trainer.save_model()  # the tokenizer as well
    print(f"{before:.4f} fine-tuned, {after:.4f} converted, on {len(dev)} rows, saved to {options.output}")
    share = report.model_parameters / report.model_parameters_before
    return {"before": before, "after": after, "parameters": share}


if __name__ == "__main__":
    main()
