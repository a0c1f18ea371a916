"""What every study does alike: its options, its start, its clock, and results kept with their circumstances."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

RESULTS = Path(__file__).parents[2] / "results"
FOLDERS = {
    "data": "folder with the data sets, see FILES in studies/shared/inputs.py",
    "models": "folder with the checkpoints, see MODELS in studies/shared/inputs.py",
    "work": "folder for what is made on the way; what is there already is used again",
}


def add_folders(parser: argparse.ArgumentParser, *names: str) -> None:
    """The options of the folders that a study cannot do without."""
    for name in names:
        parser.add_argument(f"--{name}", type=Path, required=True, metavar="DIR", help=FOLDERS[name])


def add_common(parser: argparse.ArgumentParser) -> None:
    """The options that every study has."""
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn at random (default 0)")
    parser.add_argument("--threads", type=int, default=2, help="torch threads (default 2)")
    parser.add_argument("--device", default="cpu", help="where models run: cpu (default), cuda, ...")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR", help="default scripts/results")


def start(options: argparse.Namespace) -> None:
    """Fix threads, seed and device, silence the libraries, and make the folders that results go into."""
    sys.stdout.reconfigure(line_buffering=True)
    figure(options, "").mkdir(parents=True, exist_ok=True)
    if options.device == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "true"  # the Trainer of the examples finds a GPU by itself
    else:
        os.environ["ACCELERATE_TORCH_DEVICE"] = options.device  # else always the first
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def shown(row: dict[str, Any]) -> dict[str, Any]:
    """The same row, its plain values printed in a line."""
    plain = {name: value for name, value in row.items() if not isinstance(value, list | dict | tuple)}
    print(*(f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in plain.items()))
    return row


def save(name: str, results: dict[str, Any], options: argparse.Namespace) -> None:
    """Write results with the date, versions and machine that they were made with."""
    where = torch.cuda.get_device_name(options.device) if options.device.startswith("cuda") else platform.machine()
    circumstances = {
        "date": datetime.date.today().isoformat(),
        "versions": {package: version(package) for package in ("hf-heads", "transformers", "torch", "tensorly")},
        "python": platform.python_version(),
        "machine": f"{where} {options.device.partition(':')[0].upper()}, {options.threads} threads",
    }
    text = json.dumps({"circumstances": circumstances, **results}, indent=1)
    (options.results / f"{name}.json").write_text(text + "\n", encoding="utf-8")


def figure(options: argparse.Namespace, name: str) -> Path:
    """Where a figure goes."""
    return options.results / "figures" / name


class Timer:
    """Seconds of a `with` block."""

    def __enter__(self) -> Timer:
        self.started = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self.started


def curves_over_removed(
    rows: list[dict[str, Any]], by: str, score: str, whole: float
) -> dict[str, list[tuple[float, float]]]:
    """A curve for every value of column `by`: (percent removed, score), from (0, `whole`) on."""
    curves: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        curves.setdefault(row[by], [(0.0, whole)]).append((100 * row["removed"], row[score]))
    return curves
