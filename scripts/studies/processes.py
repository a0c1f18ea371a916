"""Wall time of one conversion by one process and by several of one thread each, and whether they write the same.

A BERT of BERT-base's sizes with made weights becomes collaborative heads, from the weights alone and calibrated, and
its heads are scored; the start of Python, loading and writing are in the time. Run it on a machine that has nothing
else to do, with a core for each process.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

import torch
from transformers import BertConfig, BertModel

from studies.memory import same_files
from studies.shared.running import add_folders, save, shown

CONVERT = ["convert", "--to", "collab", "--overwrite"]
WAYS = {
    "weights": ("`convert` from the weights alone", [*CONVERT, "--calibrate", "none"]),
    "converted": ("`convert`", CONVERT),
    "original": ("`convert --inputs original`", [*CONVERT, "--inputs", "original"]),
    "importance": ("`importance` by gauss-newton", ["importance", "--overwrite"]),
}


def add_options(parser: argparse.ArgumentParser) -> None:
    add_folders(parser, "work")
    parser.add_argument("--processes", type=int, default=2, help="beside one (default 2)")
    parser.add_argument("--layers", type=int, default=12, help="of the model (default 12)")
    parser.add_argument("--width", type=int, default=768, help="of the model, heads of 64 (default 768)")
    parser.add_argument("--rank", type=int, default=256, help="of the conversion (default 256)")
    parser.add_argument("--samples", type=int, default=128, help="made sequences where it is calibrated (default 128)")
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS, help="what is timed; others stay")


def run(options: argparse.Namespace) -> None:
    folder = options.work / "processes"
    source = folder / f"source-{options.layers}-{options.width}"
    if not source.is_dir():
        make_model(source, options)
    kept = options.results / "processes.json"
    rows = {_place(row): row for row in (json.loads(kept.read_text())["rows"] if kept.is_file() else ())}
    for way in options.ways:
        title, (name, *words) = WAYS[way]
        outputs, seconds = [], []
        for count in (1, options.processes):
            outputs.append(folder / f"{way}-{count}")
            command = [name, source, *words, "--calibration-samples", options.samples, "--output", outputs[-1]]
            command += ["--device", "cpu", *(["--rank", options.rank] if name == "convert" else [])]
            seconds.append(timed(count, [str(word) for word in command]))
        row = {"way": way, "title": title, "samples": 0 if way == "weights" else options.samples, "seconds": seconds}
        row |= {"processes": [1, options.processes], "ratio": seconds[0] / seconds[1], "date": str(date.today())}
        rows[_place(row)] = shown({**row, "same": found_the_same(*outputs)})
    size = {name: getattr(options, name) for name in ("layers", "width", "rank")}
    save("processes", {**size, "rows": [rows[place] for place in sorted(rows)]}, options)


def _place(row: dict[str, Any]) -> tuple[int, int]:
    """Where a row stands among all."""
    return list(WAYS).index(row["way"]), row["samples"]


def found_the_same(one: Path, other: Path) -> str:
    """What two outputs have in common: the bytes of their files, or the drift that they report; of scores the order."""
    if one.is_dir():
        drifts = [json.loads((folder / "heads_report.json").read_text())["drift"] for folder in (one, other)]
        off = max(abs(drifts[0][name]["cosine"] - drifts[1][name]["cosine"]) for name in drifts[0])
        return "bytes" if same_files(one, other) else f"cosine to {off:.0e}"
    orders = [json.loads(path.read_text())["order"] for path in (one, other)]
    return "order of heads" if orders[0] == orders[1] else "-"


def make_model(folder: Path, options: argparse.Namespace) -> None:
    """Made weights, of the size of the model."""
    torch.manual_seed(options.seed)
    config = BertConfig(
        hidden_size=options.width,
        num_hidden_layers=options.layers,
        num_attention_heads=options.width // 64,
        intermediate_size=4 * options.width,
    )
    BertModel(config).save_pretrained(folder)


def timed(count: int, arguments: list[str]) -> float:
    """Wall seconds of a command by so many processes."""
    launch = ["-m", "hf_heads"]
    if count > 1:
        launch = ["-m", "torch.distributed.run", "--nproc_per_node", str(count), "--standalone", *launch]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    started = time.perf_counter()
    subprocess.run([sys.executable, *launch, *arguments], stdout=subprocess.DEVNULL, check=True, env=environment)
    return time.perf_counter() - started
