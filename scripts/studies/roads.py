"""Fine-tuning and converting in either order: MiniLM on MRPC, RTE, SST-2 and STS-B, a ViT on images; seed by seed.

Fine-tuned, then converted by the command line's defaults on training examples without labels; the same with one more
epoch, which the original gets too; converted at two thirds of the run by the callback; and converted first, on the same
examples, then fine-tuned by a plain Trainer: with the new head on, or the pretrained checkpoint as it is. The ViT,
which tells ten classes apart, learns them joined two by two in their order. A row that is in --work already is not
measured again, and rows of the results that are not measured this time stay with their dates, so that a study can be
made in pieces, each row beside the score that the same machine fine-tuned the original to.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import functools
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    DefaultDataCollator,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
    set_seed,
)

import hf_heads
from hf_heads import CalibrationChoice, CollabSpec, ConvertCallback, HeadsSpec, MgkSpec, MheSpec, PrunedSpec
from hf_heads.core.batches import Batch
from hf_heads.io.checkpoints.loading import load_source
from hf_heads.io.checkpoints.sources import Source
from hf_heads.io.data.calibration import load_data
from hf_heads.jobs.evaluation.metrics import spearman
from studies.shared.inputs import example, files, read_jsonl, source_of
from studies.shared.running import add_folders, save, shown

TEXTS = {
    "mrpc": ("glue/mrpc-{}.jsonl", ("sentence1", "sentence2"), "label"),
    "rte": ("glue/rte-{}.jsonl", ("sentence1", "sentence2"), "label"),
    "sst2": ("sst2/{}.jsonl", ("sentence",), "label"),
    "stsb": ("stsb/{}.jsonl", ("sentence1", "sentence2"), "score"),
}
TASKS = (*TEXTS, "cifar10")
METHODS: dict[str, Callable[[int, int], HeadsSpec]] = {  # of width and heads
    "collab quarter": lambda width, heads: CollabSpec(rank=width // 4),
    "collab eighth": lambda width, heads: CollabSpec(rank=width // 8),
    "collab eighth, none kept": lambda width, heads: CollabSpec(rank=width // 8),
    "pruned half": lambda width, heads: PrunedSpec(keep=0.5),
    "pruned half, none kept": lambda width, heads: PrunedSpec(keep=0.5),
    "mhe quarter": lambda width, heads: MheSpec(groups=heads // 4),
    "mhe quarter, matching blocks left": lambda width, heads: MheSpec(groups=heads // 4),
    "merge": lambda width, heads: MgkSpec(merge=2),
    "merge, matching blocks left": lambda width, heads: MgkSpec(merge=2),
}
# What a conversion before fine-tuning leaves: not even the heads that match, or MiniLM's two blocks that have one.
LEFT = {
    "none kept": {"keep_heads": "none"},
    "matching blocks left": {"blocks": "!encoder.layer.1.*,!encoder.layer.2.*"},
}
ROADS = ("after", "after, one epoch more", "on the way", "before", "before its head")


def add_options(parser: argparse.ArgumentParser) -> None:
    add_folders(parser, "data", "models", "work")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS, metavar="METHOD")
    parser.add_argument("--roads", nargs="+", default=list(ROADS), choices=ROADS, metavar="ROAD")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of the classifier and of the order")
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--kept", action="store_true", help="measure nothing: only the rows that are in --work already")


class Task:
    """What a model is fine-tuned to, and how: rows to train and to measure on, a fresh model, a plain Trainer."""

    batch, rate = 32, 1e-4
    source: Source
    train: list[dict[str, Any]]
    dev: list[dict[str, Any]]
    order: str
    collate: Any
    regression = False

    def __init__(self, name: str, options: argparse.Namespace) -> None:
        self.name, self.options = name, options

    def classifier(self, seed: int, folder: Path | None = None) -> PreTrainedModel:
        """The pretrained model, or what is in a folder, with a new head."""
        raise NotImplementedError

    def calibration(self, model: PreTrainedModel, seed: int) -> list[Batch]:
        """Training examples without labels, as the command line reads them for this class."""
        raise NotImplementedError

    def trainer(self, model: PreTrainedModel, seed: int, epochs: float, rate: float, *callbacks: Any) -> Trainer:
        """A plain Trainer."""
        arguments = TrainingArguments(
            output_dir=str(self.options.work / "trainer"),
            num_train_epochs=epochs,
            per_device_train_batch_size=self.batch,
            per_device_eval_batch_size=64,
            learning_rate=rate,
            train_sampling_strategy=self.order,
            seed=seed,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        return Trainer(model, arguments, self.collate, self.train, callbacks=list(callbacks))

    def spec(self, model: PreTrainedModel, method: str) -> HeadsSpec:
        """A method's settings for a model of this width."""
        return METHODS[method](model.config.hidden_size, model.config.num_attention_heads)

    def convert(self, model: PreTrainedModel, method: str, seed: int) -> PreTrainedModel:
        """Converted by the defaults."""
        batches = self.calibration(model, seed)
        left: dict[str, Any] = LEFT.get(method.partition(", ")[2], {})
        return hf_heads.convert(model, self.spec(model, method), calibration=batches, seed=seed, **left)[0]

    def train_on(
        self, model: PreTrainedModel, seed: int, epochs: float, rate: float, *callbacks: Any
    ) -> PreTrainedModel:
        """What fine-tuning makes of a model, which it changes."""
        set_seed(seed)
        trainer = self.trainer(model, seed, epochs, rate, *callbacks)
        trainer.train()
        return trainer.model.eval()

    def score(self, model: PreTrainedModel) -> float:
        """Accuracy in percent; of a regression, Spearman x 100."""
        found = self.trainer(model, 0, 1, 1e-4).predict(self.dev)
        logits, labels = torch.as_tensor(found.predictions), torch.as_tensor(found.label_ids)
        if self.regression:
            return float(spearman(torch.stack([logits[:, 0].double(), labels.double()], 1)))
        return 100 * float((logits.argmax(1) == labels).double().mean())


class Texts(Task):
    """MiniLM on a task's files, cut at 128 tokens."""

    order = "group_by_length"

    def __init__(self, name: str, options: argparse.Namespace) -> None:
        super().__init__(name, options)
        pattern, self.columns, self.label = TEXTS[name]
        self.paths = [options.data / pattern.format(part) for part in ("train", "dev")]
        self.source = source_of("minilm", options)
        self.tokenizer = AutoTokenizer.from_pretrained(self.source.folder)
        self.collate = DataCollatorWithPadding(self.tokenizer)
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

    def classifier(self, seed: int, folder: Path | None = None) -> PreTrainedModel:
        """With a classifier, or one number for a regression."""
        set_seed(seed)
        labels = 1 if self.regression else 2
        return AutoModelForSequenceClassification.from_pretrained(folder or self.source.folder, num_labels=labels)

    def calibration(self, model: PreTrainedModel, seed: int) -> list[Batch]:
        """As many examples as the command line reads, pairs where the task has them."""
        choice = CalibrationChoice(str(self.paths[0]), self.columns, seed=seed, pairs=len(self.columns) > 1)
        return load_data(choice, model, self.source.folder, enough=True).batches


class Images(Task):
    """The ViT on its images, its classes joined two by two."""

    order, rate = "random", 3e-4
    collate = DefaultDataCollator()

    def __init__(self, name: str, options: argparse.Namespace) -> None:
        super().__init__(name, options)
        self.source, self.paths = source_of("vit", options), files("vit", options)
        processor = AutoImageProcessor.from_pretrained(self.source.folder)
        self.train, self.dev = (
            [_image(row, processor) for row in rows] for rows in example("classify_images_vit").read(*self.paths)
        )

    def classifier(self, seed: int, folder: Path | None = None) -> PreTrainedModel:
        """For five classes."""
        set_seed(seed)
        return AutoModelForImageClassification.from_pretrained(
            folder or self.source.folder, num_labels=5, ignore_mismatched_sizes=True
        )

    def calibration(self, model: PreTrainedModel, seed: int) -> list[Batch]:
        """512 images."""
        return load_data(CalibrationChoice(self.paths.train, seed=seed), model, self.source.folder).batches


def _image(row: dict[str, Any], processor: Any) -> dict[str, Any]:
    pixels = processor(row["image"].convert("RGB"), return_tensors="pt")["pixel_values"][0]
    return {"pixel_values": pixels, "labels": row["label"] // 2}


def run(options: argparse.Namespace) -> None:
    options.work.mkdir(parents=True, exist_ok=True)
    kept = options.results / "roads.json"
    rows = {_place(row): row for row in (json.loads(kept.read_text())["rows"] if kept.is_file() else ())}
    for name in options.tasks:
        task = (Texts if name in TEXTS else Images)(name, options)
        for seed in options.seeds:
            rows |= {_place(row): row for row in _rows(task, seed, options)}
            save("roads", {"epochs": options.epochs, "rows": [rows[place] for place in sorted(rows)]}, options)


def _place(row: dict[str, Any]) -> tuple[int, int, int, int]:
    """Where a row stands among all."""
    methods, roads = ("original", *METHODS), ("fine-tuned", *ROADS)
    return TASKS.index(row["task"]), methods.index(row["method"]), roads.index(row["road"]), row["seed"]


def _rows(task: Task, seed: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """The original fine-tuned, and every method by every road."""
    folder = options.work / f"{task.name}-{seed}"

    def finetuned() -> PreTrainedModel:
        model = task.classifier(seed)
        if not (folder / "config.json").is_file():
            task.train_on(model, seed, options.epochs, task.rate).save_pretrained(folder)
        return type(model).from_pretrained(folder).eval()

    def row(method: str, road: str, make: Callable[[], PreTrainedModel]) -> list[dict[str, Any]]:
        kept = options.work / f"{task.name}-{seed}-{method}-{road}.json".replace(" ", "-")
        if not kept.is_file():
            if options.kept:
                return []
            found = {"task": task.name, "seed": seed, "method": method, "road": road, "score": task.score(make())}
            found["fine_tuned"] = rows[0]["score"] if rows else found["score"]
            kept.write_text(json.dumps({**found, "date": datetime.date.today().isoformat()}))
        return [shown(json.loads(kept.read_text()))]

    more = ROADS[1]
    rows: list[dict[str, Any]] = []
    rows += row("original", "fine-tuned", finetuned)
    if more in options.roads:
        rows += row("original", more, lambda: task.train_on(finetuned(), seed + 100, 1, task.rate / 2))
    for method in options.methods:
        ways = _ways(task, method, seed, finetuned, options.epochs)
        for road in options.roads:
            if ", " not in method or road.startswith("before"):
                rows += row(method, road, ways[road])
    return rows


def _ways(
    task: Task, method: str, seed: int, finetuned: Callable[[], PreTrainedModel], epochs: float
) -> dict[str, Callable[[], PreTrainedModel]]:
    """What makes the model of each road."""

    @functools.cache
    def after() -> PreTrainedModel:
        return task.convert(finetuned(), method, seed)

    def on_the_way() -> PreTrainedModel:
        model = task.classifier(seed)
        return task.train_on(model, seed, epochs, task.rate, ConvertCallback(task.spec(model, method), at=2 / 3))

    def before_its_head() -> PreTrainedModel:
        with tempfile.TemporaryDirectory() as folder:
            task.convert(load_source(task.source), method, seed).save_pretrained(folder)
            return task.train_on(task.classifier(seed, Path(folder)), seed, epochs, task.rate)

    made: Sequence[Callable[[], PreTrainedModel]] = (
        after,
        lambda: task.train_on(copy.deepcopy(after()), seed + 100, 1, task.rate / 2),
        on_the_way,
        lambda: task.train_on(task.convert(task.classifier(seed), method, seed), seed, epochs, task.rate),
        before_its_head,
    )
    return dict(zip(ROADS, made, strict=True))
