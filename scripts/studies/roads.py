"""Fine-tuning and converting in either order: MiniLM on MRPC, RTE, SST-2 and STS-B, seed by seed.

Fine-tuned, then converted by the command line's defaults on training examples without labels; the same with one more
epoch; and converted first, on the same examples, then fine-tuned by a plain Trainer. A row that is in --work already is
not measured again, so that a study can be made in pieces.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
    set_seed,
)

import hf_heads
from hf_heads import CalibrationChoice, CollabSpec, HeadsSpec, MgkSpec, MheSpec, PrunedSpec
from hf_heads.io.data.calibration import load_data
from hf_heads.jobs.evaluation.metrics import spearman
from studies.shared.inputs import read_jsonl, source_of
from studies.shared.running import add_folders, save, shown

TASKS = {
    "mrpc": ("glue/mrpc-{}.jsonl", ("sentence1", "sentence2"), "label"),
    "rte": ("glue/rte-{}.jsonl", ("sentence1", "sentence2"), "label"),
    "sst2": ("sst2/{}.jsonl", ("sentence",), "label"),
    "stsb": ("stsb/{}.jsonl", ("sentence1", "sentence2"), "score"),
}
METHODS: dict[str, HeadsSpec] = {
    "collab 96": CollabSpec(rank=96),
    "pruned half": PrunedSpec(keep=0.5),
    "mhe 3": MheSpec(groups=3),
    "merge": MgkSpec(merge=2),
}
ROADS = ("after", "after, one epoch more", "before")


def add_options(parser: argparse.ArgumentParser) -> None:
    add_folders(parser, "data", "work")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS, metavar="METHOD")
    parser.add_argument("--roads", nargs="+", default=list(ROADS), choices=ROADS, metavar="ROAD")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of the classifier and of the order")
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--rate", type=float, default=1e-4)


class Task:
    """A task's files as the model's tokenizer reads them, cut at 128 tokens."""

    def __init__(self, name: str, options: argparse.Namespace) -> None:
        self.name, self.options = name, options
        pattern, self.columns, self.label = TASKS[name]
        self.paths = [options.data / pattern.format(part) for part in ("train", "dev")]
        self.source = source_of("minilm", options)
        self.tokenizer = AutoTokenizer.from_pretrained(self.source.folder)
        self.train, self.dev = (self._read(path) for path in self.paths)
        self.regression = name == "stsb"

    def _read(self, path: Path) -> list[dict[str, Any]]:
        kind = float if self.label == "score" else int
        return [
            {
                **self.tokenizer(*(row[column] for column in self.columns), truncation=True, max_length=128),
                "labels": kind(row[self.label]),
            }
            for row in read_jsonl(str(path))
        ]

    def classifier(self, seed: int) -> PreTrainedModel:
        """MiniLM with a new head."""
        set_seed(seed)
        labels = 1 if self.regression else 2
        return AutoModelForSequenceClassification.from_pretrained(self.source.folder, num_labels=labels)

    def convert(self, model: PreTrainedModel, method: str, seed: int) -> PreTrainedModel:
        """Converted on training examples without labels, as the command line reads them for this class."""
        choice = CalibrationChoice(str(self.paths[0]), self.columns, seed=seed)
        batches = load_data(choice, model, self.source.folder).batches
        return hf_heads.convert(model, METHODS[method], calibration=batches, seed=seed)[0]

    def trainer(self, model: PreTrainedModel, seed: int, epochs: float, rate: float) -> Trainer:
        """A plain Trainer."""
        arguments = TrainingArguments(
            output_dir=str(self.options.work / "trainer"),
            num_train_epochs=epochs,
            per_device_train_batch_size=32,
            per_device_eval_batch_size=64,
            learning_rate=rate,
            train_sampling_strategy="group_by_length",
            seed=seed,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        collate = DataCollatorWithPadding(self.tokenizer)
        return Trainer(model, arguments, collate, self.train, processing_class=self.tokenizer)

    def train_on(self, model: PreTrainedModel, seed: int, epochs: float, rate: float) -> PreTrainedModel:
        """The model, fine-tuned in place."""
        set_seed(seed)
        self.trainer(model, seed, epochs, rate).train()
        return model.eval()

    def score(self, model: PreTrainedModel) -> float:
        """Accuracy in percent; of a regression, Spearman x 100."""
        found = self.trainer(model, 0, 1, 1e-4).predict(self.dev)
        logits, labels = torch.as_tensor(found.predictions), torch.as_tensor(found.label_ids)
        if self.regression:
            return float(spearman(torch.stack([logits[:, 0].double(), labels.double()], 1)))
        return 100 * float((logits.argmax(1) == labels).double().mean())


def run(options: argparse.Namespace) -> None:
    options.work.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for name in options.tasks:
        task = Task(name, options)
        for seed in options.seeds:
            rows += _rows(task, seed, options)
            save("roads", {"epochs": options.epochs, "rate": options.rate, "rows": rows}, options)


def _rows(task: Task, seed: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """The original fine-tuned, and every method by every road."""
    folder = options.work / f"{task.name}-{seed}"
    if not (folder / "config.json").is_file():
        task.train_on(task.classifier(seed), seed, options.epochs, options.rate).save_pretrained(folder)

    def finetuned() -> PreTrainedModel:
        return AutoModelForSequenceClassification.from_pretrained(folder).eval()

    def row(method: str, road: str, make: Callable[[], PreTrainedModel]) -> dict[str, Any]:
        kept = options.work / f"{task.name}-{seed}-{method}-{road}.json".replace(" ", "-")
        if not kept.is_file():
            found = {"task": task.name, "seed": seed, "method": method, "road": road, "score": task.score(make())}
            kept.write_text(json.dumps(found))
        return shown(json.loads(kept.read_text()))

    rows = [row("original", "fine-tuned", finetuned)]
    for method in options.methods:
        ways = _ways(task, method, seed, finetuned, options)
        rows += [row(method, road, ways[road]) for road in options.roads]
    return rows


def _ways(
    task: Task, method: str, seed: int, finetuned: Callable[[], PreTrainedModel], options: argparse.Namespace
) -> dict[str, Callable[[], PreTrainedModel]]:
    """What makes the model of each road."""

    def after() -> PreTrainedModel:
        return task.convert(finetuned(), method, seed)

    def before() -> PreTrainedModel:
        return task.train_on(task.convert(task.classifier(seed), method, seed), seed, options.epochs, options.rate)

    made: Sequence[Callable[[], PreTrainedModel]] = (
        after,
        lambda: task.train_on(after(), seed + 100, 1, options.rate / 2),
        before,
    )
    return dict(zip(ROADS, made, strict=True))
