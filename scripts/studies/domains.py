"""MiniLM's collaborative heads calibrated on more and fewer texts of four kinds, measured on texts of each kind.

Sentences (STS-B), reviews (SST-2), captions (Multi30k, English) and articles (WikiText, its lines cut in two halves),
as they are and without labels: training texts to calibrate on, others to measure on. A row that is in --work already
is not measured again.
"""

from __future__ import annotations

import argparse
import datetime
import json
import time
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

import hf_heads
from hf_heads import CalibrationChoice, CollabSpec
from hf_heads.core.batches import Batch, main_output, mean_pool
from hf_heads.core.vocabulary import RANDOM
from hf_heads.io.data.batching import make_batches
from hf_heads.io.data.calibration import calibration_data
from hf_heads.io.data.encoding import encode_text
from studies.shared.inputs import TEXT, files, load, read_jsonl
from studies.shared.running import add_folders, save, shown

KINDS = ("sentences", "reviews", "captions", "articles")


def add_options(parser: argparse.ArgumentParser) -> None:
    add_folders(parser, "data", "work")
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[32, 128, 512, 2048, 4096], help="texts to calibrate on"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of their choice (default 0, 1 and 2)")
    parser.add_argument("--texts", type=int, default=400, help="of each kind to measure on (default 400)")


def texts_of(options: argparse.Namespace) -> dict[str, tuple[list[str], list[str]]]:
    """Texts to calibrate and to measure on, by kind."""
    lines = [line.strip() for line in (options.data / TEXT).read_text(encoding="utf-8").splitlines()]
    lines = [line for line in lines if len(line.split()) > 3 and not line.startswith("=")]
    half = len(lines) // 2
    columns = {"stsb": ("sentence1", "sentence2"), "sst2": ("sentence",), "marian": ("en",)}
    found = []
    for name, names in columns.items():
        parts = ([row[one] for row in read_jsonl(path) for one in names] for path in files(name, options))
        found.append(tuple(list(dict.fromkeys(part)) for part in parts))
    return dict(zip(KINDS, [*found, (lines[:half], lines[half:])], strict=True))


class Measured:
    """Texts of each kind, and the original's embeddings of them."""

    def __init__(self, model: PreTrainedModel, folder: Any, texts: dict[str, list[str]]) -> None:
        self.batches = {kind: make_batches(encode_text(chosen, folder), model.config) for kind, chosen in texts.items()}
        self.wanted = {kind: _embeddings(model, batches) for kind, batches in self.batches.items()}

    def score(self, model: PreTrainedModel) -> dict[str, dict[str, float]]:
        """Mean cosine, its standard error over the texts, and its 5th percentile, by kind."""
        found = {}
        for kind, batches in self.batches.items():
            cosines = (_embeddings(model, batches) * self.wanted[kind]).sum(1)
            found[kind] = {
                "cosine": float(cosines.mean()),
                "error": float(cosines.std() / len(cosines) ** 0.5),
                "low": float(torch.quantile(cosines, 0.05)),
            }
        return found


@torch.no_grad()
def _embeddings(model: PreTrainedModel, batches: list[Batch]) -> Tensor:
    """Normalised mean-pooled embeddings, (texts, width)."""
    pooled = [mean_pool(main_output(model, batch)[0].float(), batch["attention_mask"]) for batch in batches]
    return torch.nn.functional.normalize(torch.cat(pooled), dim=-1)


def run(options: argparse.Namespace) -> None:
    source, model = load("minilm", options)
    texts = texts_of(options)
    options.work.mkdir(parents=True, exist_ok=True)
    for kind, (calibrated, _) in texts.items():
        (options.work / f"{kind}.txt").write_text("\n".join(calibrated), encoding="utf-8")
    paths = {kind: str(options.work / f"{kind}.txt") for kind in KINDS}
    chance = torch.Generator().manual_seed(options.seed)
    chosen = {
        kind: [part[index] for index in torch.randperm(len(part), generator=chance).tolist()[: options.texts]]
        for kind, (_, part) in texts.items()
    }
    measured = Measured(model, source.folder, chosen)
    plan = [("sentences", size) for size in options.sizes]
    plan += [(kind, 512) for kind in (*KINDS[1:], "all four", "made")]
    sources = {**paths, "all four": tuple(paths.values()), "made": RANDOM}
    rows = []
    for kind, samples in plan:
        for seed in options.seeds:
            kept = options.work / f"{kind}-{samples}-{seed}.json".replace(" ", "-")
            if not kept.is_file():
                choice = CalibrationChoice(sources[kind], samples=samples, seed=seed, pack=kind == "made")
                batches = calibration_data(source, model, choice).batches
                begun = time.process_time()
                converted, _ = hf_heads.convert(model, CollabSpec(rank=96), calibration=batches, seed=seed)
                row = {"kind": kind, "samples": samples, "seed": seed, "cpu_seconds": time.process_time() - begun}
                row |= {"date": datetime.date.today().isoformat(), "scores": measured.score(converted)}
                kept.write_text(json.dumps(row))
            rows.append(shown(json.loads(kept.read_text())))
            save("domains", {"texts": options.texts, "rows": rows}, options)
