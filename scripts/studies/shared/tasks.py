"""The tasks of GLUE: their files, metrics and fine-tuning, for any encoder and its converted forms."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel, set_seed

import hf_heads
from hf_heads.core.errors import HeadsError
from hf_heads.io.checkpoints.sources import Source, resolve_source
from hf_heads.jobs.evaluation.metrics import spearman
from studies.shared.inputs import read_jsonl
from studies.shared.sequences import Padded, Part
from studies.shared.training import Plan, fit

LONGEST = 128  # tokens


@dataclass(frozen=True)
class Task:
    """What a task's rows hold, and what it is measured by.

    Attributes:
        columns: of the texts.
        metrics: the first is the one that averages take.
        labels: how many classes; 1 is a number.
        label: the column of the labels.
    """

    columns: tuple[str, ...]
    metrics: tuple[str, ...]
    labels: int = 2
    label: str = "label"


PAIR = ("sentence1", "sentence2")
TASKS = {
    "cola": Task(("sentence",), ("matthews",)),
    "sst2": Task(("sentence",), ("accuracy",)),
    "mrpc": Task(PAIR, ("f1", "accuracy")),
    "stsb": Task(PAIR, ("pearson", "spearman"), 1, "score"),
    "qqp": Task(("question1", "question2"), ("f1", "accuracy")),
    "mnli": Task(("premise", "hypothesis"), ("accuracy",), 3),
    "qnli": Task(("question", "sentence"), ("accuracy",)),
    "rte": Task(PAIR, ("accuracy",)),
}


def file_of(name: str, part: str, folder: Path) -> str:
    """The rows of a task, `sst2/dev.jsonl` or `glue/sst2-dev.jsonl` say."""
    places = [folder / name / f"{part}.jsonl", folder / "glue" / f"{name}-{part}.jsonl"]
    for path in places:
        if path.is_file():
            return str(path)
    raise HeadsError(f"no rows of {name}: write them to '{places[0]}', with columns {', '.join(TASKS[name].columns)}")


def encoded(rows: list[dict[str, Any]], task: Task, folder: Path) -> Part:
    """Rows as a model's tokenizer reads them, pairs as two segments where it tells them apart."""
    given = [[row[column] for row in rows] for column in task.columns]
    found = AutoTokenizer.from_pretrained(folder)(*given, truncation=True, max_length=LONGEST)
    labels = torch.tensor([row[task.label] for row in rows], dtype=torch.float32 if task.labels == 1 else torch.long)
    types = found.get("token_type_ids")
    return Part(Padded.of(found["input_ids"]), labels, {"token_type_ids": Padded.of(types)} if types else {})


def classifier(folder: Path, task: Task, seed: int) -> PreTrainedModel:
    """A model with a new head for a task, the same for the same seed."""
    set_seed(seed)
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=task.labels, dtype="float32")
    assert isinstance(model, PreTrainedModel)
    return model


def tune(
    model: PreTrainedModel, part: Part, plan: Plan, seed: int, options: argparse.Namespace, folder: Path | None = None
) -> None:
    """Fine-tune in place; factors that heads share train as `hf_heads.parameter_groups` has them."""
    set_seed(seed)
    groups = hf_heads.parameter_groups(model, plan.learning_rate)
    fit(model, part.batches(plan.batch, seed), plan, options, folder, groups=groups)


@torch.no_grad()
def predicted(model: PreTrainedModel, part: Part) -> Tensor:
    """The class or number of every row, (rows,) in float64."""
    model.eval()
    found = torch.empty(len(part), dtype=torch.float64)
    for rows, batch in part.in_order(64):
        inputs = {name: value.to(model.device) for name, value in batch.items() if name != "labels"}
        logits = model(**inputs).logits.double().cpu()
        found[rows] = logits[:, 0] if logits.shape[1] == 1 else logits.argmax(1).double()
    return found


def accuracy(guesses: Tensor, labels: Tensor) -> float:
    """Percent right."""
    return 100 * float((guesses == labels).double().mean())


def f1(guesses: Tensor, labels: Tensor) -> float:
    """100 * F1 of class 1; 0 where it is neither there nor guessed."""
    hits = float(((guesses == 1) & (labels == 1)).sum())
    return 200 * hits / max(1.0, float((guesses == 1).sum() + (labels == 1).sum()))


def pearson(guesses: Tensor, labels: Tensor) -> float:
    """100 * correlation; of two classes that is Matthews'. 0 where either is the same for all."""
    return 100 * float(torch.corrcoef(torch.stack([guesses, labels]))[0, 1].nan_to_num(0.0))


METRICS: dict[str, Callable[[Tensor, Tensor], float]] = {
    "accuracy": accuracy,
    "f1": f1,
    "matthews": pearson,
    "pearson": pearson,
    "spearman": lambda guesses, labels: float(spearman(torch.stack([guesses, labels], -1))),
}


def scores(task: Task, model: PreTrainedModel, part: Part) -> dict[str, float]:
    """All metrics of a task."""
    assert isinstance(part.labels, Tensor)
    guesses = predicted(model, part)
    return {name: METRICS[name](guesses, part.labels.double()) for name in task.metrics}


def fine_tuned(name: str, source: Source, steps: int, options: argparse.Namespace, rate: float = 5e-5) -> Source:
    """A model fine-tuned on so many batches of 32 rows of a task, kept below --work."""
    output = options.work / f"{name}-{steps}-{rate:g}-{options.seed}"
    if not (output / "model.safetensors").is_file():
        part = encoded(read_jsonl(file_of(name, "train", options.data)), TASKS[name], source.folder)
        model = classifier(source.folder, TASKS[name], options.seed)
        tune(model, part, Plan(steps, 32, rate, steps // 10), options.seed, options)
        AutoTokenizer.from_pretrained(source.folder).save_pretrained(output)
        model.save_pretrained(output)
    return resolve_source(str(output))
