"""A classifier and its labelled rows, as the studies of pruned heads take them: any, or a MiniLM fine-tuned here."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from hf_heads.core.errors import HeadsError
from hf_heads.io.checkpoints.sources import Source, resolve_source
from hf_heads.io.data.choice import CalibrationChoice
from hf_heads.io.data.labelled import load_labelled
from studies.shared.inputs import EVERY, hits_on, source_of
from studies.shared.running import FOLDERS
from studies.shared.tasks import TASKS, file_of, fine_tuned

SMALL, MEASURED = 64, 300  # rows to score and to measure on
STEPS, RATE = 150, 5e-5  # of 32 rows, of the fine-tuning of a MiniLM


def add_labelled(parser: argparse.ArgumentParser, task: str) -> None:
    """The options of a classifier and its rows, which are those of a task by default."""
    given = f"(default: of {task} below --data)"
    model = f"a classifier, fine-tuned (default: a MiniLM, {STEPS} steps of {task}, kept below --work)"
    parser.add_argument("--model", metavar="DIR", help=model)
    parser.add_argument("--train", metavar="FILE", help=f"labelled rows to score heads on {given}")
    parser.add_argument("--dev", metavar="FILE", help=f"labelled rows to measure on {given}")
    parser.add_argument("--columns", nargs="+", help=f"of the texts (default {', '.join(TASKS[task].columns)})")
    for name in ("data", "work"):
        parser.add_argument(f"--{name}", type=Path, metavar="DIR", help=FOLDERS[name])
    parser.add_argument("--samples", type=int, default=512, help="rows to score heads on (default 512)")
    parser.add_argument(
        "--small", action="store_true", help=f"{SMALL} rows to score heads on, {MEASURED} to measure on"
    )


def settle(
    options: argparse.Namespace, task: str, tuned: bool = True, steps: int = STEPS, rate: float = RATE
) -> Source:
    """Fill in the rows of a task where none are named, and find the model, made first where none is named.

    Args:
        options: of `add_labelled`; what it lacks is filled in.
        task: whose rows they are.
        tuned: whether the model is to know the task; else it is the MiniLM as it comes.
        steps, rate: of its fine-tuning.
    """
    if options.data is None and None in (options.train, options.dev):
        raise HeadsError("no rows: name --train and --dev, or the folder --data")
    options.columns = options.columns or list(TASKS[task].columns)
    options.train = options.train or file_of(task, "train", options.data)
    options.dev = options.dev or file_of(task, "dev", options.data)
    if options.model is not None:
        return resolve_source(options.model)
    if tuned and None in (options.data, options.work):
        raise HeadsError("no classifier: name one with --model, or the folders --data and --work to make one")
    source = source_of("minilm", options)
    return fine_tuned(task, source, steps, options, rate) if tuned else source


def hits_of(options: argparse.Namespace, model: PreTrainedModel, source: Source) -> Callable[[PreTrainedModel], Tensor]:
    """What says of every row to measure on whether a classifier is right, see `hits_on`."""
    count = MEASURED if options.small else EVERY
    return hits_on(source, model, options.dev, tuple(options.columns), count)


def labelled(options: argparse.Namespace, path: str, model: Any, source: Source, small: int = SMALL) -> list[Any]:
    """Batches of rows with labels; of so many with --small."""
    samples = small if options.small else options.samples
    choice = CalibrationChoice(path, tuple(options.columns), "label", samples=samples, seed=options.seed)
    return load_labelled(choice, model, source.folder)
