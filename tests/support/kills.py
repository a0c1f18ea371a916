"""Random kills of commands that write, and what is left of them: `python -m tests.support.kills N` makes N of each.

Everything is imported once; each trial is a fork of this process, killed at a random time, and a second fork that runs
the same command to its end.
"""

from __future__ import annotations

import gc
import hashlib
import importlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from hf_heads.cli.program import main
from hf_heads.core.errors import HeadsError
from hf_heads.io.checkpoints.loading import load_source
from hf_heads.io.checkpoints.record import read_record
from hf_heads.io.checkpoints.sources import resolve_source
from hf_heads.jobs.evaluation.record import read_comparison
from hf_heads.jobs.scoring.scores import load_scores
from tests.support.files import save_checkpoint
from tests.support.twins import TWINS

# What the commands would import in every fork.
for module in (
    "hf_heads.cli.console",
    "hf_heads.jobs.conversion.checkpoint",
    "hf_heads.jobs.distillation.checkpoint",
    "hf_heads.jobs.evaluation.compare",
    "hf_heads.jobs.reporting.cards",
    "hf_heads.jobs.reporting.page",
    "hf_heads.jobs.scoring.checkpoint",
    "matplotlib.backends.backend_agg",
):
    importlib.import_module(module)
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


@dataclass(frozen=True)
class Command:
    """A command that writes `output`.

    Attributes:
        arguments: all but the name of the output.
        output: what it writes, a folder or a file.
        check: raises where what it wrote cannot be read.
        resumes: whether it takes --resume.
    """

    arguments: tuple[str, ...]
    output: Path
    check: Callable[[Path], object]
    resumes: bool = False

    def start(self, *more: str) -> int:
        """Run it in a fork; returns its process id."""
        gc.collect()
        if pid := os.fork():
            return pid
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 1)
        os.dup2(os.open(self.output.parent / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        try:
            code = main([*self.arguments, "--output", str(self.output), "--overwrite", *more])
        except BaseException:
            code = 99  # such as an interrupt before the command line could catch it
        os._exit(code)

    def finish(self, *more: str) -> int:
        """Run it to its end; returns its exit code."""
        return os.waitstatus_to_exitcode(os.waitpid(self.start(*more), 0)[1])


@dataclass
class Found:
    """What kills left.

    Attributes:
        counts: of trials, by what was at the output's place.
        faults: one line for everything that must not be.
    """

    counts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)


def try_kills(command: Command, kills: int, generator: random.Random) -> Found:
    """Kill a command at random times; every second time there is an output from before."""
    found = Found()
    folder = command.output.parent
    for _ in range(2):  # the first run may fill caches on the disk
        began = time.monotonic()
        if code := command.finish():
            raise RuntimeError(f"{command.arguments[0]} ends with {code}: {(folder / 'log').read_text()}")
        duration = time.monotonic() - began
    for trial in range(kills):
        with_old = trial % 2 == 1
        if not with_old:
            _remove(command.output)
        old = digest(command.output)
        number = generator.choice(SIGNALS)
        pid = command.start()
        time.sleep(duration * generator.uniform(*((0.6, 1.1) if trial % 4 > 1 else (0, 1))))
        os.kill(pid, number)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        where = f"{command.arguments[0]}, trial {trial}, {number.name}, exit code {code}"
        now = digest(command.output)
        state = "nothing there" if now is None else "the old" if now == old else "the new"
        found.counts[f"{'ended before' if code == 0 else 'killed'}, {state}"] += 1
        found.faults += [f"{where}: {fault}" for fault in _faults(command, old, now)]
        code = command.finish("--resume") if command.resumes else command.finish()
        if command.resumes and code == 1 and "nothing to resume" in (folder / "log").read_text():
            found.counts["started anew"] += 1
            code = command.finish()
        if code:
            found.faults.append(f"{where}: the next run ended with {code}: {(folder / 'log').read_text()}")
        left = sorted(path.name for path in folder.iterdir() if path not in (command.output, folder / "log"))
        found.faults += [f"{where}: the next run left {name}" for name in left]
        for name in left:
            _remove(folder / name)
    return found


def _faults(command: Command, old: str | None, now: str | None) -> list[str]:
    """What is wrong with the state that a kill left."""
    if now is None:
        return [] if old is None else ["the old output is lost"]
    try:
        command.check(command.output)
    except (HeadsError, OSError, KeyError, ValueError) as error:
        return [f"what is there cannot be used: {error}"]
    shown = [path.name for path in command.output.parent.iterdir() if not path.name.startswith(".")]
    strange = set(shown) - {command.output.name, "log"}
    return [f"beside the output there is {name}" for name in sorted(strange)]


def digest(path: Path) -> str | None:
    """A hash of all that is under a path; None where nothing is."""
    if not path.exists():
        return None
    made = hashlib.sha256()
    for file in [path] if path.is_file() else sorted(path.rglob("*")):
        made.update(str(file).encode())
        if file.is_file():
            made.update(file.read_bytes())
    return made.hexdigest()


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def commands(folder: Path) -> dict[str, Command]:
    """The commands by name, on tiny checkpoints; each has a folder of its own for its output."""
    bert = save_checkpoint(TWINS["bert"].model(), folder / "bert")
    mhe, found = folder / "mhe", folder / "found.json"
    convert = ("convert", str(bert), "--to", "mhe", "--calibration-samples", "16")
    compare = ("compare", str(bert), str(mhe), "--no-latency", "--drift-samples", "16", "--metric", "none")
    for arguments, output in ((convert, mhe), (compare, found)):
        if code := Command(arguments, output, digest).finish():
            raise RuntimeError(f"{arguments[0]} ends with {code}")

    def checkpoint(path: Path) -> None:
        model = load_source(resolve_source(str(path)))
        files = {file.name for file in path.iterdir()}
        if not read_record(path) or not {"README.md", "tokenizer.json"} <= files or model.config.heads is None:
            raise HeadsError(f"files are missing; there are {files}")

    def page(path: Path) -> None:
        if not (path / "index.html").read_text().rstrip().endswith("</html>") or not list(path.glob("*.png")):
            raise HeadsError("half a page")

    healing = ("--samples", "64", "--steps", "12", "--batch-size", "8", "--evaluations", "4", "--device", "cpu")
    model = load_source(resolve_source(str(bert)))
    made = {
        "convert": (convert, "out", checkpoint),
        "distill": (("distill", str(mhe), "--teacher", str(bert), "--data", "random", *healing), "out", checkpoint),
        "compare": (compare, "out.json", read_comparison),
        "importance": (
            ("importance", str(bert), "--calibration-samples", "16"),
            "out.json",
            lambda p: load_scores(p, model),
        ),
        "report": (("report", str(found)), "out", page),
    }
    for name in made:
        (folder / name).mkdir()
    return {
        name: Command(arguments, folder / name / output, check, name == "distill")
        for name, (arguments, output, check) in made.items()
    }


def run(kills: int, folder: Path, names: tuple[str, ...] = (), seed: int = 0) -> dict[str, Found]:
    """Kill every command so many times; prints the counts."""
    found = {}
    for name, command in commands(folder).items():
        if names and name not in names:
            continue
        found[name] = try_kills(command, kills, random.Random(f"{name} {seed}"))
        counts = ", ".join(f"{state}: {count}" for state, count in sorted(found[name].counts.items()))
        print(f"{name}: {kills} kills; {counts}; faults: {len(found[name].faults)}", flush=True)
        for fault in found[name].faults:
            print(f"  {fault}", flush=True)
    return found


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        results = run(int(sys.argv[1]), Path(place), tuple(sys.argv[2:]))
    sys.exit(any(one.faults for one in results.values()))
