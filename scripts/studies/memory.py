"""Peak memory of converting a checkpoint that is larger than the memory it may take.

Makes a BERT with random weights in shards, converts it from the weights alone and with calibration, each in a process
of its own, and compares the files of a small one that was kept in memory and in files. Beside, a model of three layers
is calibrated on many texts, whose activations are in memory or on disk.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import BertConfig, BertModel

from hf_heads.io.checkpoints.writing import write_weights
from studies.shared.running import add_folders, save, shown

SHARD = 500 * 10**6
# The peak of the process itself: what `getrusage` says may be that of the one that started it.
CHILD = """
import json, re, resource, sys
from pathlib import Path
import hf_heads.io.checkpoints.shelf as shelf
from hf_heads.cli import main
shelf.ROOM = int(sys.argv[1]) or shelf.ROOM
code = main(sys.argv[2:])
peak = int(re.search(r"VmHWM:\\s+([0-9]+) kB", Path("/proc/self/status").read_text())[1]) * 1024 / 1e6
used = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps({"peak_mb": peak, "cpu_seconds": used.ru_utime + used.ru_stime}))
sys.exit(code)
"""
# What is converted with, and with activations on disk besides.
WAYS = {
    "weights alone": (["--calibrate", "none"], []),
    "calibrated": (["--calibration-samples", "128", "--objective", "scores"], ["--activations-on", "disk"]),
}
MANY = ["--calibration-samples", "2048", "--objective", "scores"]


def add_options(parser: argparse.ArgumentParser) -> None:
    add_folders(parser, "work")
    parser.add_argument("--layers", type=int, default=110, help="of the large checkpoint (default 110)")
    parser.add_argument("--width", type=int, default=1024, help="of the large checkpoint (default 1024)")
    parser.add_argument("--vocabulary", type=int, default=100_000, help="of the large checkpoint (default 100000)")
    parser.add_argument("--ways", nargs="*", default=list(WAYS), choices=WAYS, help="to measure; other rows stay")


def make_checkpoint(folder: Path, layers: int, width: int, vocabulary: int, seed: int, positions: int = 16) -> int:
    """Write a BERT shard by shard; returns its bytes. Few positions, so that measuring it takes minutes."""
    config = BertConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        intermediate_size=4 * width,
        max_position_embeddings=positions,
        architectures=["BertModel"],
    )
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in BertModel(config).state_dict().items()}
    generator = torch.Generator().manual_seed(seed)

    def get(name: str) -> torch.Tensor:
        if name.endswith("LayerNorm.weight"):
            return torch.ones(shapes[name])
        return torch.randn(shapes[name], generator=generator).mul_(0.02)

    folder.mkdir(parents=True)
    write_weights(folder, shapes, get, shard_bytes=SHARD)
    config.save_pretrained(folder)
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def converted(
    source: Path, output: Path, how: Sequence[str], options: argparse.Namespace, room: int = 0
) -> dict[str, Any]:
    """Convert in a process of its own; returns its peak memory and its time."""
    words = ["convert", source, "--to", "low-rank", "--rank", rank_of(source), *how, "--seed", options.seed]
    words += ["--max-shard-size", SHARD, "--output", output, "--json", "--device", "cpu"]
    command = [sys.executable, "-c", CHILD, str(room), *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def rank_of(source: Path) -> int:
    """Half of the width, which halves queries and keys."""
    return json.loads((source / "config.json").read_text(encoding="utf-8"))["hidden_size"] // 2


def same_files(here: Path, there: Path) -> bool:
    """Whether two checkpoints hold the same bytes of weights."""
    names = [sorted(file.name for file in folder.glob("*.safetensors")) for folder in (here, there)]
    return names[0] == names[1] and all((here / one).read_bytes() == (there / one).read_bytes() for one in names[0])


def run(options: argparse.Namespace) -> None:
    folder = options.work / "memory"
    size = {"layers": options.layers, "width": options.width, "vocabulary": options.vocabulary}
    kept = options.results / "memory.json"
    rows = {row["way"]: row for row in json.loads(kept.read_text())["rows"]} if kept.is_file() else {}
    try:
        make_checkpoint(folder / "middle", 3, 512, 1000, options.seed, positions=64)
        activations = []
        for where in ("memory", "disk"):
            row = converted(folder / "middle", folder / where, [*MANY, "--activations-on", where], options)
            activations.append(shown({"where": where, **row}))
        same = same_files(folder / "memory", folder / "disk")
        about = {"shard_bytes": SHARD, "activations": activations, "same": same}
        size["bytes"] = make_checkpoint(folder / "large", *size.values(), options.seed)
        make_checkpoint(folder / "small", 2, 128, 1000, options.seed)
        for way in options.ways:
            how, on_disk = WAYS[way]
            converted(folder / "small", folder / f"{way}-memory", how, options)
            converted(folder / "small", folder / f"{way}-files", [*how, *on_disk], options, 2**16)
            same = same_files(folder / f"{way}-memory", folder / f"{way}-files")
            row = converted(folder / "large", folder / "out", [*how, *on_disk], options)
            rows[way] = shown({"way": way, **size, "identical": same, **row})
            shutil.rmtree(folder / "out")
            save("memory", {**about, "rows": [rows[name] for name in WAYS if name in rows]}, options)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
