"""Fine-tunes a ViT checkpoint, original or converted, as an image classifier and measures accuracy before and after.

    pip install . pillow
    hf-heads convert google/vit-base-patch16-224 --to collab --rank 256 --output vit-collab
    python examples/classify_images_vit.py --model vit-collab --train photos/train --dev photos/dev --output vit-photos

The data are two folders with one subfolder of images per class, or two parquet files with the columns `image` and
`label` (0, 1, ...) as `datasets` writes them.

An interrupted run goes on with --resume. The result is an ordinary checkpoint: after `import hf_heads`,
`AutoModelForImageClassification.from_pretrained` loads it.

With `--rank R` the model is converted once it is trained, on its own training images; give an original as --model.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import ClassLabel, Dataset, Image, load_dataset
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    EvalPrediction,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint

import hf_heads  # lets the Auto classes load converted checkpoints


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Fine-tune a ViT checkpoint, with accuracy before and after.")
    parser.add_argument("--model", required=True, help="a folder or a hub id; original or converted")
    parser.add_argument("--output", required=True, help="folder for the checkpoints and the result")
    parser.add_argument("--train", required=True, metavar="PATH", help="a folder of images or a .parquet file")
    parser.add_argument("--dev", required=True, metavar="PATH", help="the same, to measure accuracy on")
    parser.add_argument("--samples", type=int, metavar="N", help="train on N images only, a random choice")
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--max-steps", type=int, default=-1, metavar="N", help="stop after N steps, whatever --epochs")
    parser.add_argument("--save-steps", type=int, default=500, metavar="N", help="a checkpoint every N steps")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=5e-5)
    parser.add_argument("--rank", type=int, metavar="R", help="convert to collab of this rank once it is trained")
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


def read(train: str, dev: str) -> tuple[Dataset, Dataset]:
    """The rows of two image folders or parquet files; read together, they number the classes alike."""
    kind, below = ("imagefolder", "/**") if Path(train).is_dir() else ("parquet", "")
    rows = load_dataset(kind, data_files={"train": train + below, "dev": dev + below}, split=["train", "dev"])
    return tuple(part.cast_column("image", Image()) for part in rows)


def batched(numbers: range, size: int) -> list[range]:
    """Consecutive numbers in parts of a size."""
    return [numbers[begin : begin + size] for begin in range(0, len(numbers), size)]


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    options = parse(arguments)
    set_seed(options.seed)  # a new classifier, where one is needed, is drawn at random

    train, dev = read(options.train, options.dev)
    label = train.features["label"]
    classes = label.num_classes if isinstance(label, ClassLabel) else max(train["label"]) + 1
    if options.samples:  # a folder lists one class after the other
        train = train.shuffle(seed=options.seed).select(range(min(options.samples, len(train))))

    # The Trainer itself would restore only those weights that have the same name in the file and in the model.
    start = options.checkpoint or options.model
    processor = AutoImageProcessor.from_pretrained(options.model)
    model = AutoModelForImageClassification.from_pretrained(
        start,
        num_labels=classes,
        ignore_mismatched_sizes=True,  # a classifier for other classes gives way to a new one
        dtype="float32",
    )
    if isinstance(label, ClassLabel):
        model.config.id2label = dict(enumerate(label.names))
        model.config.label2id = {name: index for index, name in enumerate(label.names)}

    def pixels(rows: dict[str, Any]) -> dict[str, Any]:
        images = [image.convert("RGB") for image in rows["image"]]
        return {**processor(images, return_tensors="np"), "labels": rows["label"]}

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
            remove_unused_columns=False,  # `pixels` reads them when a batch is made
            report_to="none",
        ),
        train_dataset=train.with_transform(pixels),
        eval_dataset=dev.with_transform(pixels),
        processing_class=processor,
        compute_metrics=accuracy,
    )
    before = trainer.evaluate()["eval_accuracy"]  # with --resume: of the checkpoint
    trainer.train(resume_from_checkpoint=options.checkpoint)
    scores = {"accuracy_before": before, **trainer.evaluate()}
    after = f"{scores['eval_accuracy']:.4f} after"
    if options.rank:
        rows = train.shuffle(seed=options.seed).select(range(min(256, len(train)))).with_transform(pixels)
        batches = [trainer.data_collator([rows[at] for at in part]) for part in batched(range(len(rows)), 32)]
        hf_heads.convert(model, hf_heads.CollabSpec(rank=options.rank), calibration=batches, inplace=True)
        scores["accuracy_trained"] = scores["eval_accuracy"]
        scores.update(trainer.evaluate())
        after += f", {scores['eval_accuracy']:.4f} converted"
    trainer.save_model()  # the image processor as well
    print(f"accuracy {before:.4f} before, {after}, on {len(dev)} images, saved to {options.output}")
    return scores


if __name__ == "__main__":
    main()
