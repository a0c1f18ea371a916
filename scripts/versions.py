"""Has the lowest and the installed transformers read each other's checkpoints, and those of format 1.

The lowest version comes into an environment of its own in the folder of --work, or of the Python that --python names.
Each version converts the small models of tests/regression/make.py, 8 settings in 3 hosts; then each reads what both
wrote and what tests/regression/format-1 holds. Weights have to be the same bits, outputs the same but for rounding.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FORMAT_1 = ROOT / "tests" / "regression" / "format-1"
CASES = 24  # 8 settings in 3 hosts
TOLERANCE = 1e-5  # as in tests/regression; stored outputs come from another machine


def lowest() -> str:
    """The lowest transformers that pyproject.toml allows, `5.20.*`."""
    found = re.search(r'"transformers>=([\d.]+)', (ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert found is not None
    return f"{found[1]}.*"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--old", default=lowest(), help="the other version of transformers (default %(default)s)")
    parser.add_argument("--python", help="a Python with it and hf-heads; without, an environment is made")
    parser.add_argument("--work", type=Path, default=Path("out/versions"), help="folder for what is made on the way")


def run(options: argparse.Namespace) -> int:
    work = options.work.resolve()
    old = options.python or environment(work / "venv", options.old)
    pythons = {"old": old, "new": sys.executable}
    shutil.rmtree(work / "cases", ignore_errors=True)
    versions = {name: call(python, "write", work / "cases" / name) for name, python in pythons.items()}
    if not same_version(versions["old"], options.old) or versions["old"] == versions["new"]:
        print(f"transformers is {versions['old']} here and {versions['new']} there, wanted {options.old} there")
        return 2
    for reader, python in pythons.items():
        call(python, "read", work / "cases", reader)
    return report(work / "cases", versions)


def same_version(found: str, wanted: str) -> bool:
    """Whether a version is the wanted one, `5.20.2` or `5.20.*`."""
    return found == wanted or (wanted.endswith(".*") and found.startswith(wanted[:-1]))


def environment(folder: Path, version: str) -> str:
    """The Python of an environment with this package and a version of transformers, made if it is not there."""
    python = str(folder / "bin" / "python")
    if not Path(python).exists():
        venv.create(folder, with_pip=True)
    subprocess.run([str(ROOT / "scripts" / "install_torch.sh"), python], check=True)
    subprocess.run([python, "-m", "pip", "install", "-q", "-e", str(ROOT), f"transformers=={version}"], check=True)
    return python


def call(python: str, *words: Any) -> str:
    """Run this file with another Python; returns the last line that it prints, its version of transformers."""
    command = [python, str(Path(__file__).resolve()), *map(str, words)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return done.stdout.splitlines()[-1]


def report(cases: Path, versions: dict[str, str]) -> int:
    """Compare what both versions read, a line for each who wrote; returns 1 where they differ."""
    from safetensors.torch import load_file  # takes seconds, and --help does without

    read_by_old, read_by_new = (json.loads((cases / f"{name}.json").read_text()) for name in versions)
    assert read_by_old.keys() == read_by_new.keys()
    failed = False
    print(f"transformers {versions['old']} and {versions['new']}")
    for writer, who in {**versions, "stored": "format 1"}.items():
        names = [name for name in read_by_old if name.startswith(f"{writer}/")]
        weights = sum(read_by_old[name] == read_by_new[name] for name in names)
        differences = []
        for name in names:
            one, other = (load_file(cases / f"{name}.outputs" / f"{reader}.safetensors") for reader in versions)
            found = distance(one, other)
            if writer == "stored":
                stored = load_file(FORMAT_1 / "outputs" / f"{'-'.join(name.split('/')[1:])}.safetensors")
                wanted = {key: stored[key] for key in one}
                found = max(found, distance(one, wanted), distance(other, wanted))
            differences.append(found)
        print(
            f"written by {who}: {len(names)} read by both, weights the same bits in {weights}, "
            f"outputs in {differences.count(0.0)}, largest difference {max(differences, default=0.0):.1e}"
        )
        failed |= len(names) != CASES or weights < len(names) or not max(differences) <= TOLERANCE
    return int(failed)


def distance(one: dict[str, Any], other: dict[str, Any]) -> float:
    """The largest difference of outputs by name; infinite where names or shapes differ."""
    if one.keys() != other.keys() or any(one[key].shape != other[key].shape for key in one):
        return float("inf")
    return max(float((one[key] - other[key]).abs().max()) for key in one)


def write(folder: Path) -> None:
    """Convert every model of tests/regression/make.py by the command, in this process."""
    from hf_heads.cli.program import main  # these take seconds, and only the two readers and writers need them
    from tests.regression import make

    for host, model in make.originals().items():
        model.eval().save_pretrained(original := folder / host / "original")
        for name, options in make.METHODS.items():
            words = ["convert", original, *options, "--calibration-samples", 16, "--output", folder / host / name]
            assert main([*map(str, words)]) == 0, (host, name)


def read(cases: Path, reader: str) -> None:
    """Load every checkpoint in the class that it names; keeps a digest of its weights, and its outputs."""
    import hashlib

    import torch  # see above
    from safetensors.torch import save_file
    from transformers import AutoConfig

    from hf_heads import models
    from tests.regression import make

    digests = {}
    for writer, place in {"old": cases / "old", "new": cases / "new", "stored": FORMAT_1}.items():
        for folder in sorted(path.parent for path in place.glob("*/*/heads_report.json")):
            case, made = f"{writer}/{folder.parent.name}/{folder.name}", {}
            named = getattr(models, AutoConfig.from_pretrained(folder).architectures[0])
            for implementation in ("eager", "sdpa"):
                model = named.from_pretrained(folder, attn_implementation=implementation)
                with torch.no_grad():
                    made[implementation] = model.base_model(**make.inputs(folder.parent.name))[0].contiguous()
            whole = hashlib.sha256()
            for key, tensor in sorted(model.state_dict().items()):
                whole.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode() + tensor.numpy().tobytes())
            digests[case] = whole.hexdigest()
            (cases / f"{case}.outputs").mkdir(parents=True, exist_ok=True)
            save_file(made, cases / f"{case}.outputs" / f"{reader}.safetensors")
    (cases / f"{reader}.json").write_text(json.dumps(digests))


if __name__ == "__main__":
    import transformers

    transformers.logging.disable_progress_bar()
    what, *rest = sys.argv[1:]
    {"write": write, "read": read}[what](Path(rest[0]), *rest[1:])
    print(transformers.__version__)
