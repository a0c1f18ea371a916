"""Makes the documents' figures again: runs the study behind each table, then fills the tables.

Without names all of them, which takes hours on two cores; NAME is that of a table between the documents' markers
(heal_stsb, mhe, pruned, ...). DIR of --data holds stsb/, sst2/, glue/, multi30k/, cifar10/ and text/, that of
--models a Marian and a ViT; see FILES and MODELS in studies/shared/inputs.py. --list shows the commands and runs none.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
from pathlib import Path

import tables

# The study behind each table, the folders that it needs, and its options where the defaults do not serve.
COMMANDS = {
    "methods": "stsb DATA",
    "lengths": "lengths DATA WORK --threads 1",
    "attention_error": "attention_error DATA --threads 1",
    "attention_rank": "attention_rank DATA --threads 1",
    "prune_curve": "prune_curve DATA WORK --threads 1 --small",
    "glue": "glue DATA WORK --threads 1 --small --ranks 64",
    "squad": "squad DATA WORK --threads 1 --small --seeds 1",
    "lm": "lm DATA WORK --threads 1 --small",
    "lra": "lra DATA WORK --threads 1 --small --seeds 1",
    "head_dynamics": "head_dynamics DATA WORK --threads 1 --small --seeds 3",
    "nmt_scratch": "nmt_scratch DATA WORK --threads 1 --small --widths 8 --seeds 3",
    "imagenet_scratch": "imagenet_scratch DATA WORK --threads 1 --small",
    "mlm_pretrain": "mlm_pretrain DATA WORK --threads 1 --small --variants mha mhe-mul sha",
    "head_correlation": "head_correlation DATA WORK --threads 1 --small",
    "joined": "joined DATA MODELS --threads 1",
    "resolutions": "resolutions DATA MODELS --threads 1",
    "roads": "roads DATA MODELS WORK --threads 1",
    "finetune_rates": "finetune_rates DATA WORK --threads 1 --precision bfloat16 --ways plain groups",
    "domains": "domains DATA WORK --threads 1 --seeds 0",
    "memory": "memory WORK --threads 1",
    "recommend": "recommend DATA MODELS --threads 1 --max-drop 0.1",
    "scaling": "scaling --threads 1 --objectives scores",
    "precision": "precision DATA --threads 1",
    "kept": "kept DATA --threads 1 --seeds 0",
    "export_native": "export DATA MODELS --threads 1",
    "architectures": "architectures DATA MODELS",
    "kernels": "kernels --seconds 30",
    "processes": "processes WORK --threads 1",
    "latency": "latency",
    "ways": "ways",
    "solver": "solver MODELS --threads 1",
    "sst2": "sst2 DATA WORK",
    "pruned": "prune_stsb DATA",
    "pruned_sst2": "prune_sst2 DATA WORK",
    "pruned_marian": "prune_marian DATA MODELS --threads 1",
    "pruned_latency": "prune_latency DATA",
    "mhe": "mhe_stsb DATA --threads 1",
    "grouped": "grouped DATA WORK --threads 1 --steps 20",
    "grouped_made": "grouped_made DATA WORK --threads 1 --samples 8",
    "rotary_collab": "rotary_collab DATA WORK --threads 1",
    "speech": "speech DATA WORK --threads 1",
    "values": "values DATA --threads 1",
    "mhe_latency": "mhe_latency DATA MODELS",
    "mhe_scratch": "mhe_scratch DATA WORK --threads 1",
    "mgk": "mgk_stsb DATA --threads 1",
    "merge": "merge DATA MODELS --threads 1",
    "mgk_scratch": "mgk_scratch DATA --threads 1",
    "mgk_ways": "mgk_ways",
    "polish": "polish DATA WORK --threads 1",
    "heal_stsb": "heal stsb DATA MODELS WORK --threads 1 --steps 1300 --precision bfloat16",
    "healed_seeds": "heal stsb DATA MODELS WORK --threads 1 --steps 1300 --precision bfloat16 --seed 1",
    "heal_sst2": "heal sst2 DATA MODELS WORK --threads 1 --steps 300 --precision bfloat16",
    "heal_marian": "heal marian DATA MODELS WORK --threads 1 --steps 300 --precision bfloat16",
    "heal_vit": "heal vit DATA MODELS WORK --threads 1 --steps 400 --precision bfloat16",
}
# One study, several tables.
TOGETHER = {"calibration": "methods", "export_onnx": "export_native", "export_int8": "export_native"}
# glibc hands large tensors back to the system by default, and fetching them again is what would be timed.
ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "4294967296",
    "MALLOC_TOP_PAD_": "268435456",
}
TIMED = ("export_native", "kernels", "latency", "ways", "pruned_latency", "mhe_latency", "mgk_ways")


def command(name: str, options: argparse.Namespace) -> list[str]:
    """The words behind `run.py` that make a table's results."""
    folders = {word: [f"--{word.lower()}", getattr(options, word.lower())] for word in ("DATA", "MODELS", "WORK")}
    words = [part for word in shlex.split(COMMANDS[name]) for part in folders.get(word, [word])]
    return [*words, "--device", options.device]


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", nargs="*", metavar="NAME", help="tables to make again (default: all)")
    parser.add_argument("--data", default="data", help="folder with the data sets (default data)")
    parser.add_argument("--models", default="models", help="folder with the Marian and the ViT (default models)")
    parser.add_argument("--work", default="out/reproduced", help="folder for what is made on the way")
    parser.add_argument("--device", default="cpu", help="where models run: cpu (default), cuda, ...")
    parser.add_argument("--list", action="store_true", help="print the commands, run nothing")


def run(options: argparse.Namespace) -> int:
    names = list(dict.fromkeys(TOGETHER.get(name, name) for name in options.names or COMMANDS))
    if unknown := [name for name in names if name not in COMMANDS]:
        print(f"no table '{unknown[0]}'. Tables: {', '.join((*COMMANDS, *TOGETHER))}", file=sys.stderr)
        return 2
    for name in names:
        words = [sys.executable, str(Path(__file__).parent / "run.py"), *command(name, options)]
        allocator = ALLOCATOR if name in TIMED else {}
        print(shlex.join([*(f"{key}={value}" for key, value in allocator.items()), *words]), flush=True)
        if not options.list and (failed := subprocess.call(words, env={**os.environ, **allocator})):
            return failed
    return 0 if options.list else tables.fill()
