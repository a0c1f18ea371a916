"""Drift of a converted ViT on images larger than those that it was trained and calibrated on.

Images of CIFAR-10's dev split, enlarged; the model interpolates its positions. Calibrated on training images as the
image processor gives them. Without labels.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

import hf_heads
from hf_heads import CalibrationChoice, CollabSpec, HeadsSpec, MgkSpec, MheSpec, PrunedSpec
from hf_heads.io.data.calibration import load_data
from studies.shared.inputs import files, load
from studies.shared.running import add_folders, save, shown

METHODS: dict[str, HeadsSpec] = {
    "collab 32": CollabSpec(rank=32),
    "collab 16": CollabSpec(rank=16),
    "mhe 1": MheSpec(),
    "pruned 40 %": PrunedSpec(keep=0.6),
    "merge": MgkSpec(merge=2),
}


def add_options(parser: argparse.ArgumentParser) -> None:
    add_folders(parser, "data", "models")
    parser.add_argument("--sizes", nargs="+", type=int, default=[32, 48, 64], help="pixels of a side")
    parser.add_argument("--images", type=int, default=1000, help="to measure on (default 1000)")


def run(options: argparse.Namespace) -> None:
    source, model = load("vit", options)
    data = files("vit", options)
    batches = load_data(CalibrationChoice(data.train, seed=options.seed), model, source.folder).batches
    dev = load_data(CalibrationChoice(data.dev, samples=options.images, seed=options.seed), model, source.folder)
    images = torch.cat([batch["pixel_values"] for batch in dev.batches])
    original = {size: _logits(model, images, size) for size in options.sizes}
    rows = []
    for method, spec in METHODS.items():
        converted, _ = hf_heads.convert(model, spec, calibration=batches, seed=options.seed)
        row: dict[str, Any] = {"method": method}
        for size, before in original.items():
            after = _logits(converted.eval(), images, size)
            row[f"kl_{size}"] = float(F.kl_div(after, before, reduction="batchmean", log_target=True))
            row[f"agreement_{size}"] = float((after.argmax(-1) == before.argmax(-1)).double().mean())
        rows.append(shown(row))
        save("resolutions", {"sizes": options.sizes, "images": len(images), "rows": rows}, options)


@torch.no_grad()
def _logits(model: PreTrainedModel, images: Tensor, size: int) -> Tensor:
    """Of images at a size, log-probabilities of their classes, (images, classes)."""
    found = []
    for some in images.split(50):
        larger = F.interpolate(some, size=(size, size), mode="bicubic", antialias=True)
        found.append(model(pixel_values=larger, interpolate_pos_encoding=True).logits.double().log_softmax(-1))
    return torch.cat(found)
