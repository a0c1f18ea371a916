"""Images from scratch with ever narrower queries and keys: one space that heads share, or a part for each head.

The vision experiment of arXiv 2006.16362: a DeiT of 12 x 64 heads by default, AdamW, cosine, label smoothing, random
crops and flips, mixed pairs of images; RandAugment, CutMix and averaged weights of DeiT's own recipe are not here.
--train and --dev are what `datasets` loads: a folder of images by class, or files with `image` and `label`. --small
takes 32 x 32 images of CIFAR-10 below --data. Accuracy in percent, over seeds.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy
import torch
from datasets import Dataset, load_dataset
from torch import Tensor, nn
from transformers import AutoModelForImageClassification, DeiTConfig, PreTrainedModel, set_seed

import hf_heads
from hf_heads.core.errors import HeadsError
from hf_heads.io.data.reading import to_image
from studies.shared.drawing import draw_by_width
from studies.shared.inputs import files
from studies.shared.running import add_folders, figure, save, shown
from studies.shared.training import Plan, add_runs, add_training, fit, over_seeds, remembered, seeds_of

KINDS = ("collab", "concatenated")
SMOOTHING, MIXED = 0.1, 0.8  # of the labels; the parameter of the Beta that pairs are mixed by
PAPER: dict[str, Any] = {
    "width": 768,
    "heads": 12,
    "layers": 12,
    "size": 224,
    "patch": 16,
    "widths": [384, 192, 96],
    "steps": 375_000,  # 300 epochs of ImageNet
    "batch": 128,
    "forwards": 8,  # 1024 images a step
    "rate": 1e-3,
    "warmup": 6250,  # 5 epochs
}
SMALL: dict[str, Any] = {
    "width": 64,
    "heads": 4,
    "layers": 2,
    "size": 32,
    "patch": 8,
    "widths": [16, 8],
    "steps": 300,
    "batch": 32,
    "forwards": 1,
    "rate": 2e-3,
    "warmup": 30,
}


@dataclass(frozen=True)
class Images:
    """Images and their classes, read as they are needed.

    Attributes:
        data: with `image` and `label`.
        size: of an input, pixels a side.
    """

    data: Dataset
    size: int

    def pixels(self, index: int, draw: torch.Generator | None = None) -> Tensor:
        """One image, (3, size, size) from -1 to 1: a random crop and flip, or its middle."""
        image = to_image(self.data[index]["image"])
        found = torch.from_numpy(numpy.asarray(image).copy()).permute(2, 0, 1).float() / 127.5 - 1
        height, width = found.shape[1:]
        side = min(height, width)
        if draw is None:
            top, left = (height - side) // 2, (width - side) // 2
        else:
            # Between a third and all of the square's area, as crops of ImageNet usually are.
            side = max(1, int(side * (1 / 3 + 2 / 3 * float(torch.rand((), generator=draw))) ** 0.5))
            top, left = (int(torch.randint(room + 1, (), generator=draw)) for room in (height - side, width - side))
        found = found[:, top : top + side, left : left + side]
        if draw is not None and int(torch.randint(2, (), generator=draw)):
            found = found.flip(-1)
        sized = nn.functional.interpolate(found[None], self.size, mode="bilinear", antialias=True, align_corners=False)
        return sized[0]

    def batch(self, indices: list[int], draw: torch.Generator | None = None) -> dict[str, Tensor]:
        """What a model takes."""
        labels = torch.tensor([self.data[index]["label"] for index in indices])
        return {"pixel_values": torch.stack([self.pixels(index, draw) for index in indices]), "labels": labels}

    def batches(self, size: int, seed: int) -> Iterator[dict[str, Tensor]]:
        """Batches without end, every one with another of the same images to mix it with, and by how much."""
        draw, shares = torch.Generator().manual_seed(seed), numpy.random.default_rng(seed)
        while True:
            for indices in torch.randperm(len(self.data), generator=draw).split(size):
                share = torch.tensor(shares.beta(MIXED, MIXED), dtype=torch.float32)
                yield {**self.batch(indices.tolist(), draw), "share": share}

    def in_order(self, size: int) -> Iterator[dict[str, Tensor]]:
        """Every image once."""
        for begin in range(0, len(self.data), size):
            yield self.batch(list(range(begin, min(begin + size, len(self.data)))))


def read(path: str) -> Dataset:
    """Images by class in a folder, or in files."""
    if Path(path).is_dir():
        return load_dataset("imagefolder", data_dir=path, split="train")
    if not Path(path).is_file():
        raise HeadsError(f"no images in '{path}': name a folder of them by class, or a file with `image` and `label`")
    kind = {"jsonl": "json"}.get(ending := Path(path).suffix[1:], ending)
    return load_dataset(kind, data_files=path, split="train")


def mixed_loss(model: nn.Module, batch: Any) -> Tensor:
    """Cross-entropy of images that are mixed with the others of the batch in reverse, and of their labels."""
    images, labels, share = batch["pixel_values"], batch["labels"], batch["share"]
    logits = model(pixel_values=share * images + (1 - share) * images.flip(0)).logits.float()
    one, other = (
        nn.functional.cross_entropy(logits, some, label_smoothing=SMOOTHING) for some in (labels, labels.flip(0))
    )
    return share * one + (1 - share) * other


@torch.no_grad()
def accuracy(model: PreTrainedModel, images: Images) -> float:
    """Percent right."""
    model.eval()
    right = 0
    for batch in images.in_order(64):
        logits = model(pixel_values=batch["pixel_values"].to(model.device)).logits
        right += int((logits.argmax(1).cpu() == batch["labels"]).sum())
    return 100 * right / len(images.data)


def make(spec: hf_heads.HeadsSpec | None, classes: int, sizes: dict[str, Any]) -> PreTrainedModel:
    """A DeiT with random weights."""
    config = DeiTConfig(
        hidden_size=sizes["width"],
        num_attention_heads=sizes["heads"],
        num_hidden_layers=sizes["layers"],
        intermediate_size=4 * sizes["width"],
        image_size=sizes["size"],
        patch_size=sizes["patch"],
        num_labels=classes,
        architectures=["DeiTForImageClassification"],  # the Auto class knows another, for two heads, as well
    )
    return AutoModelForImageClassification.from_config(hf_heads.heads_config(config, spec) if spec else config)


def one_run(
    parts: tuple[Images, Images],
    spec: hf_heads.HeadsSpec | None,
    sizes: dict[str, Any],
    seed: int,
    options: argparse.Namespace,
    folder: Path,
) -> dict[str, float]:
    """A model trained and measured."""
    set_seed(seed)
    train, dev = parts
    model = make(spec, 1 + max(train.data["label"]), sizes)
    plan = Plan(
        sizes["steps"],
        sizes["batch"],
        sizes["rate"],
        sizes["warmup"],
        schedule="cosine",
        decay=0.05,
        forwards=sizes["forwards"],
    )
    trained = fit(model, train.batches(plan.batch, seed), plan, options, folder, mixed_loss)
    return {"accuracy": accuracy(model, dev), "loss": trained, "parameters": model.num_parameters()}


def add_options(parser: argparse.ArgumentParser) -> None:
    add_folders(parser, "data", "work")
    parser.add_argument("--train", metavar="SRC", help="images to train on (default: CIFAR-10 below --data)")
    parser.add_argument("--dev", metavar="SRC", help="images to measure on")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    for name, value in PAPER.items():
        kind, many = (float, None) if name == "rate" else (int, "+" if name == "widths" else None)
        about = f"default {value}, with --small {SMALL[name]}"
        parser.add_argument(f"--{name}", type=kind, nargs=many, metavar="N", help=about)
    add_training(parser)
    add_runs(parser, 2, "a small model on 32 x 32 pixels")


def run(options: argparse.Namespace) -> None:
    base = SMALL if options.small else PAPER
    sizes = {name: value if (value := getattr(options, name)) is not None else base[name] for name in base}
    paths = [given or path for given, path in zip((options.train, options.dev), files("vit", options), strict=True)]
    train, dev = (Images(read(path), sizes["size"]) for path in paths)
    makers = {"collab": hf_heads.CollabSpec, "concatenated": hf_heads.LowRankSpec}
    runs: dict[tuple[str, int], hf_heads.HeadsSpec | None] = {("separate heads", sizes["width"]): None}
    runs |= {(kind, wide): makers[kind](rank=wide) for wide in sizes["widths"] for kind in options.kinds}
    seeds, rows = seeds_of(options), []
    about = {name: value for name, value in sizes.items() if name != "widths"}
    for (kind, wide), spec in runs.items():
        kept = {**about, "precision": options.precision, "data": paths}
        one = partial(one_run, (train, dev), spec, sizes)
        found = [
            remembered(options, f"images-{kind.split()[0]}-{wide}-{seed}", kept, partial(one, seed, options))
            for seed in seeds
        ]
        row = {"kind": kind, "width": wide, "parameters": found[0]["parameters"]}
        row["accuracy"] = over_seeds([one["accuracy"] for one in found])
        shown({**row, "mean": row["accuracy"]["mean"]})
        rows.append(row)
    counts = {"train": len(train.data), "dev": len(dev.data)}
    save("imagenet_scratch", {**sizes, **counts, "seeds": list(seeds), "rows": rows}, options)
    title = "Images from scratch by the width of queries and keys"
    draw_by_width(figure(options, "imagenet_scratch.png"), rows, "accuracy", "accuracy (%)", title)
