"""Makes the README's figures again: runs the script behind each table, then fills the tables.

    python scripts/reproduce.py --data DIR --models DIR --work DIR [NAME ...]

Without names all of them, which takes hours on two cores; NAME is that of a table between the README's markers
(heal_stsb, mhe, pruned, ...). DIR of --data holds stsb/, sst2/, multi30k/, cifar10/ and text/, that of --models a
Marian and a ViT; see DATA and MODELS for the files. --list shows the commands and runs none.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
from pathlib import Path

SCRIPTS = Path(__file__).parent
DATA = {
    "STSB": "--train {data}/stsb/train.jsonl --dev {data}/stsb/dev.jsonl",
    "SST2": "--train {data}/sst2/train.jsonl --dev {data}/sst2/dev.jsonl",
    "PAIRS": "--train {data}/multi30k/train.jsonl --dev {data}/multi30k/val.jsonl",
    "IMAGES": "--train {data}/cifar10/calibration.parquet --dev {data}/cifar10/dev.parquet",
}
MODELS = {"MARIAN": "{models}/marian-multi30k-en-de", "VIT": "{models}/vit-cifar10"}
COMMANDS = {
    "methods": "stsb.py STSB --text {data}/text/wikitext2-valid.txt",
    "architectures": "architectures.py --marian MARIAN --pairs-train {data}/multi30k/train.jsonl "
    "--pairs-dev {data}/multi30k/val.jsonl --vit VIT --images-train {data}/cifar10/calibration.parquet "
    "--images-dev {data}/cifar10/dev.parquet --sentences 200",
    "latency": "latency.py",
    "ways": "ways.py",
    "solver": "solver.py",
    "sst2": "sst2.py SST2 --work {work}/sst2",
    "pruned": "prune_stsb.py STSB",
    "pruned_sst2": "prune_sst2.py SST2 --work {work}",
    "pruned_marian": "prune_marian.py --marian MARIAN PAIRS --threads 1",
    "pruned_latency": "prune_latency.py --train {data}/stsb/train.jsonl",
    "mhe": "mhe_stsb.py STSB --threads 1",
    "mhe_latency": "mhe_latency.py --marian MARIAN --pairs {data}/multi30k/val.jsonl",
    "mhe_scratch": "mhe_scratch.py --text {data}/text/wikitext2-valid.txt --work {work}/mhe --max-steps 300 "
    "--threads 1",
    "mgk": "mgk_stsb.py STSB --threads 1",
    "mgk_scratch": "mgk_scratch.py SST2 --threads 1",
    "mgk_ways": "mgk_ways.py",
    "heal_stsb": "heal.py stsb STSB --work {work}",
    "heal_sst2": "heal.py sst2 SST2 --work {work} --threads 1",
    "heal_marian": "heal.py marian --model MARIAN PAIRS --work {work} --threads 1",
    "heal_vit": "heal.py vit --model VIT IMAGES --work {work} --threads 1",
}
TOGETHER = {"calibration": "methods"}  # one script, two tables
# glibc hands large tensors back to the system by default, and fetching them again is what would be timed.
ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "4294967296",
    "MALLOC_TOP_PAD_": "268435456",
}
TIMED = ("latency", "ways", "pruned_latency", "mhe_latency", "mgk_ways")


def command(name: str, data: str, models: str, work: str) -> list[str]:
    """The words of the command that makes a table's results."""
    text = COMMANDS[name]
    for short, long in {**DATA, **MODELS}.items():
        text = text.replace(short, long)
    script, *words = shlex.split(text.format(data=data, models=models, work=work))
    return [sys.executable, str(SCRIPTS / "studies" / script), *words]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="tables to make again (default: all)")
    parser.add_argument("--data", default="data", help="folder with the data sets (default data)")
    parser.add_argument("--models", default="models", help="folder with the Marian and the ViT (default models)")
    parser.add_argument("--work", default="out/reproduced", help="folder for what is made on the way")
    parser.add_argument("--list", action="store_true", help="print the commands, run nothing")
    options = parser.parse_args()
    names = list(dict.fromkeys(TOGETHER.get(name, name) for name in options.names or COMMANDS))
    if unknown := [name for name in names if name not in COMMANDS]:
        parser.error(f"no table '{unknown[0]}'. Tables: {', '.join((*COMMANDS, *TOGETHER))}")
    for name in names:
        words = command(name, options.data, options.models, options.work)
        allocator = ALLOCATOR if name in TIMED else {}
        print(shlex.join([*(f"{key}={value}" for key, value in allocator.items()), *words]), flush=True)
        if not options.list and (failed := subprocess.call(words, env={**os.environ, **allocator})):
            return failed
    return 0 if options.list else subprocess.call([sys.executable, str(SCRIPTS / "tables.py")])


if __name__ == "__main__":
    sys.exit(main())
