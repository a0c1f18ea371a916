"""Fine-tunes a converted MiniLM on MRPC: the Trainer's own optimizer, parameter groups, frozen factors, at three rates.

Converted first, on pairs of the training data without their labels; the original is fine-tuned beside it. A run that is
in --work already is not repeated, so that a study can be made in pieces.
"""

from __future__ import annotations

import argparse
import copy
import functools
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_utils import PredictionOutput

import hf_heads
from hf_heads.io.checkpoints.sources import Source
from studies.shared.inputs import read_jsonl, source_of
from studies.shared.running import Timer, add_folders, save, shown

WAYS = ("plain", "groups", "frozen")


def add_options(parser: argparse.ArgumentParser) -> None:
    add_folders(parser, "data", "work")
    parser.add_argument("--models", nargs="+", default=["original", "96"], metavar="R", help="original, or a rank")
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS, help="of training converted models")
    parser.add_argument("--rates", nargs="+", type=float, default=[5e-5, 1e-4, 2e-4])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="of the new classifier and of the order")
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32", help="(default float32)")


class Pairs:
    """MRPC as the model's tokenizer reads it, two segments each."""

    def __init__(self, source: Source, folder: Path) -> None:
        self.source = source
        self.tokenizer = AutoTokenizer.from_pretrained(source.folder)
        self.collate = DataCollatorWithPadding(self.tokenizer)
        self.train, self.dev = (self._read(folder / f"mrpc-{part}.jsonl") for part in ("train", "dev"))

    def _read(self, path: Path) -> list[dict[str, Any]]:
        rows = read_jsonl(str(path))
        return [
            {**self.tokenizer(row["sentence1"], row["sentence2"], truncation=True), "labels": row["label"]}
            for row in rows
        ]

    def calibration(self, count: int = 512) -> list[dict[str, torch.Tensor]]:
        """Batches of the first pairs of the training data, without labels."""
        rows = [{name: value for name, value in row.items() if name != "labels"} for row in self.train[:count]]
        rows.sort(key=lambda row: len(row["input_ids"]))
        return [dict(self.collate(rows[begin : begin + 32])) for begin in range(0, count, 32)]

    @functools.cache  # noqa: B019 - there is one of this class
    def classifier(self, model: str, seed: int) -> PreTrainedModel:
        """The original or a converted MiniLM with a new classifier, which is the same for both."""
        if model == "original":
            return self._with_head(self.source.folder, seed)
        spec = hf_heads.CollabSpec(rank=int(model))
        with tempfile.TemporaryDirectory() as folder:
            base = AutoModel.from_pretrained(self.source.folder, dtype="float32")
            hf_heads.convert(base, spec, calibration=self.calibration())[0].save_pretrained(folder)
            return self._with_head(folder, seed)

    @staticmethod
    def _with_head(folder: Path | str, seed: int) -> PreTrainedModel:
        set_seed(seed)
        return AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2, dtype="float32")

    @staticmethod
    def scores(found: PredictionOutput) -> dict[str, float]:
        """Accuracy, Matthews correlation and area under the curve, all in percent."""
        logits, labels = torch.as_tensor(found.predictions), torch.as_tensor(found.label_ids)
        guess, margin = logits.argmax(1), (logits[:, 1] - logits[:, 0]).double()
        both = torch.stack([guess, labels]).double()
        ranks = margin.argsort().argsort().double() + 1
        yes = int(labels.sum())
        area = (float(ranks[labels == 1].sum()) - yes * (yes + 1) / 2) / (yes * (len(labels) - yes))
        return {
            "accuracy": 100 * float((guess == labels).double().mean()),
            "matthews": 100 * float(torch.corrcoef(both)[0, 1].nan_to_num(0.0)),
            "area": 100 * area,
        }


def train(pairs: Pairs, model: PreTrainedModel, way: str, rate: float, seed: int, options: argparse.Namespace) -> Any:
    """Fine-tune a model in place, and return the Trainer."""
    optimizer = None
    if way == "groups":
        optimizer = torch.optim.AdamW(hf_heads.parameter_groups(model, rate), lr=rate)
    if way == "frozen":
        hf_heads.freeze_factors(model)
    set_seed(seed)
    arguments = TrainingArguments(
        output_dir=str(options.work / "trainer"),
        num_train_epochs=options.epochs,
        per_device_train_batch_size=32,
        per_device_eval_batch_size=64,
        learning_rate=rate,
        train_sampling_strategy="group_by_length",  # a third of the time goes into padding otherwise
        seed=seed,
        bf16=options.precision == "bfloat16",
        use_cpu=options.device == "cpu",
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    trainer = Trainer(
        model, arguments, pairs.collate, pairs.train, optimizers=(optimizer, None), processing_class=pairs.tokenizer
    )
    trainer.train()
    return trainer


def run(options: argparse.Namespace) -> None:
    pairs = Pairs(source_of("minilm", options), options.data / "glue")
    options.work.mkdir(parents=True, exist_ok=True)
    rows = []
    for seed in options.seeds:
        for rate in options.rates:
            for name in options.models:
                for way in ("plain",) if name == "original" else options.ways:
                    kept = options.work / f"finetune-{name}-{way}-{rate:g}-{seed}.json"
                    if not kept.is_file():
                        model = copy.deepcopy(pairs.classifier(name, seed))
                        with Timer() as timer:
                            trainer = train(pairs, model, way, rate, seed, options)
                        found = trainer.predict(pairs.dev)  # in an order of its own, where batches are grouped
                        row = {"model": name, "way": way, "rate": rate, "seed": seed, **pairs.scores(found)}
                        kept.write_text(json.dumps({**row, "seconds": timer.seconds}))
                    rows.append(shown(json.loads(kept.read_text())))
                    how = {"examples": len(pairs.dev), "epochs": options.epochs, "precision": options.precision}
                    save("finetune_rates", {**how, "rows": rows}, options)
