"""Quality of converted Marian and ViT checkpoints: BLEU and accuracy by what they were calibrated on."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace

import torch
from transformers import PreTrainedModel

import hf_heads
from hf_heads import CollabSpec, LowRankSpec
from hf_heads.core.batches import Batch
from hf_heads.io.checkpoints.sources import Source
from hf_heads.io.data.calibration import CalibrationChoice, calibration_data
from hf_heads.jobs.evaluation.drift import measure_drift
from studies.shared.inputs import calibration, files, hits_on, load, read_jsonl
from studies.shared.running import add_folders, save, shown
from studies.shared.translation import bleu

# One by so many of the width is the rank; the columns of the data.
STUDIED: dict[str, tuple[int, tuple[str, ...] | None]] = {"marian": (4, ("en", "de")), "vit": (8, None)}


def add_options(parser: argparse.ArgumentParser) -> None:
    add_folders(parser, "data", "models")
    parser.add_argument("--sentences", type=int, default=200, help="how many pairs to translate (default 200)")


def white_noise(model: PreTrainedModel) -> list[Batch]:
    """Images without a spectrum, to see what that of the made ones is worth."""
    size, generator = (32, 3, model.config.image_size, model.config.image_size), torch.Generator().manual_seed(0)
    return [{"pixel_values": torch.randn(size, generator=generator)} for _ in range(16)]


def scorer(
    name: str, source: Source, model: PreTrainedModel, options: argparse.Namespace
) -> Callable[[PreTrainedModel], float]:
    """BLEU of the Marian, accuracy of the ViT, on the dev files."""
    dev = files(name, options).dev
    if name == "marian":
        pairs = read_jsonl(dev)[: options.sentences]
        return lambda one: bleu(one, source, pairs)
    hits = hits_on(source, model, dev, None)
    return lambda one: float(hits(one).mean())


def run(options: argparse.Namespace) -> None:
    rows = []
    for name, (share, columns) in STUDIED.items():
        source, model = load(name, options)
        score = scorer(name, source, model, options)
        own = CalibrationChoice(files(name, options).train, columns, seed=options.seed, pack=False)
        held_out = calibration_data(source, model, replace(own, seed=options.seed + 1)).held_out
        calibrations = {
            "data": calibration_data(source, model, own).batches,
            "random": calibration(source, model, options),
            **({"white": white_noise(model)} if name == "vit" else {}),
            "none": None,
        }
        rank = model.config.hidden_size // share
        specs = {f"collab R = {rank}": CollabSpec(rank=rank), f"low-rank R = {rank}": LowRankSpec(rank=rank)}
        rows.append(shown({"model": name, "label": "original", "score": score(model)}))
        for kind, batches in calibrations.items():
            for label, spec in specs.items():
                converted, _ = hf_heads.convert(model, spec, calibration=batches)
                row = {"model": name, "label": label, "calibration": kind, "score": score(converted)}
                rows.append(shown(row | measure_drift(converted, model, held_out).to_dict()))
    save("architectures", {"sentences": options.sentences, "rows": rows}, options)
