"""Random kills of commands that write, and what is left of them: `python -m tests.support.kills N` makes N of each.

Everything is imported once; each trial is a fork of this process, killed at a random time, and a second fork that runs
the same command to its end. With `--fresh` both are processes of their own, whose imports take seconds and can be hit.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import importlib
import os
import random
import select
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from hf_heads.cli import main
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
    "matplotlib.figure",
):
    importlib.import_module(module)
torch.set_num_threads(1)  # a fork has no other threads than the one that made it
_LONGEST = 300  # seconds of a run, many times more than any takes
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


@dataclass(frozen=True)
class Command:
    """A command that writes `output`.

    Attributes:
        arguments: all but the name of the output.
        output: what it writes, a folder or a file.
        check: raises where what it wrote cannot be read.
        resumes: whether it takes --resume.
        fresh: run it in a process of its own, not in a fork.
    """

    arguments: tuple[str, ...]
    output: Path
    check: Callable[[Path], object]
    resumes: bool = False
    fresh: bool = False

    def start(self, *more: str) -> int:
        """Run it in another process; returns its id."""
        arguments = [*self.arguments, "--output", str(self.output), "--overwrite", *more]
        log = os.open(self.output.parent / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC)
        try:
            if self.fresh:
                line = [sys.executable, "-m", "hf_heads.cli", *arguments]
                return subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log).pid
            return self._fork(arguments, log)
        finally:
            os.close(log)

    def _fork(self, arguments: list[str], log: int) -> int:
        gc.freeze()  # or every fork would look through, and copy, all that was imported
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS[1:])  # a fork must not go on with what is ours to do
        if pid := os.fork():
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS[1:])
            return pid
        try:
            for number in (signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, 0)
            os.dup2(null, 1)
            os.dup2(log, 2)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS[1:])
            code = main(arguments)
        except KeyboardInterrupt:  # before the command line began, or after it ended
            code = 128 + signal.SIGINT
        except BaseException:
            code = 99
        os._exit(code)

    def finish(self, *more: str) -> int:
        """Run it to its end; returns its exit code."""
        return ended(self.start(*more))


def ended(pid: int) -> int:
    """Wait for the end of a process, but not for ever; returns its exit code, -9 where it had to be killed."""
    watched = os.pidfd_open(pid)
    try:
        if not select.select([watched], [], [], _LONGEST)[0]:
            os.kill(pid, signal.SIGKILL)
    finally:
        os.close(watched)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


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
    """Kill a command at random times; every second time there is an output from before.

    The times lie within what the last complete runs took; half of them in the last part, where outputs are written.
    """
    found = Found()
    folder = command.output.parent
    durations = deque[float](maxlen=9)
    for _ in range(3):
        began = time.monotonic()
        if code := command.finish():
            raise RuntimeError(f"{command.arguments[0]} ends with {code}: {(folder / 'log').read_text()}")
        durations.append(time.monotonic() - began)
    for trial in range(kills):
        with_old = trial % 2 == 1
        if not with_old:
            _remove(command.output)
        old = digest(command.output)
        number = generator.choice(SIGNALS)
        after = statistics.median(durations) * generator.uniform(*((0.6, 1.0) if trial % 4 > 1 else (0, 1)))
        pid = command.start()
        time.sleep(after)
        os.kill(pid, number)
        code = ended(pid)
        where = f"{command.arguments[0]}, trial {trial}, {number.name} after {after:.3f} s, exit code {code}"
        now = digest(command.output)
        state = "nothing there" if now is None else "the old" if now == old else "the new"
        if code == 0:
            found.counts["ended before"] += 1
        else:
            found.counts[f"killed by {number.name}, {state}"] += 1
        found.faults += [f"{where}: {fault}" for fault in _faults(command, old, now)]
        if code not in (0, -number, 128 + number):
            found.faults.append(f"{where}: {(folder / 'log').read_text()}")
        began = time.monotonic()
        code = command.finish("--resume") if command.resumes else command.finish()
        if not command.resumes:
            durations.append(time.monotonic() - began)
        if command.resumes and code == 1 and "nothing to resume" in (folder / "log").read_text():
            found.counts["started anew"] += 1
            code = command.finish()
        if code:
            found.faults.append(f"{where}: the next run ended with {code}: {(folder / 'log').read_text()}")
        elif fault := _unusable(command):
            found.faults.append(f"{where}: of the next run, {fault}")
        left = sorted(path.name for path in folder.iterdir() if path not in (command.output, folder / "log"))
        found.faults += [f"{where}: the next run left {name}" for name in left]
        for name in left:
            _remove(folder / name)
    return found


def _faults(command: Command, old: str | None, now: str | None) -> list[str]:
    """What is wrong with the state that a kill left."""
    if now is None:
        return [] if old is None else ["the old output is lost"]
    if fault := _unusable(command):
        return [fault]
    shown = [path.name for path in command.output.parent.iterdir() if not path.name.startswith(".")]
    strange = set(shown) - {command.output.name, "log"}
    return [f"beside the output there is {name}" for name in sorted(strange)]


def _unusable(command: Command) -> str | None:
    try:
        command.check(command.output)
    except (HeadsError, OSError, KeyError, ValueError) as error:
        return f"what is there cannot be used: {error}"
    return None


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


def commands(folder: Path, fresh: bool = False) -> dict[str, Command]:
    """The commands by name, on tiny checkpoints; each has a folder of its own for its output."""
    bert = save_checkpoint(TWINS["bert"].model(), folder / "bert")
    poor, found = folder / "poor", folder / "found.json"
    convert = ("convert", str(bert), "--to", "low-rank", "--rank", "16", "--calibration-samples", "16")
    weaken = ("convert", str(bert), "--to", "collab", "--rank", "4", "--no-refit", "--calibrate", "none")
    compare = ("compare", str(bert), str(poor), "--no-latency", "--drift-samples", "16", "--metric", "none")
    for arguments, output in ((weaken, poor), (compare, found)):
        if code := Command(arguments, output, digest).finish():
            raise RuntimeError(f"{arguments[0]} ends with {code}: {(folder / 'log').read_text()}")

    def checkpoint(path: Path) -> None:
        model = load_source(resolve_source(str(path)))
        files = {file.name for file in path.iterdir()}
        if not read_record(path) or not {"README.md", "tokenizer.json"} <= files or model.config.heads is None:
            raise HeadsError(f"files are missing; there are {files}")

    def page(path: Path) -> None:
        if not (path / "index.html").read_text().rstrip().endswith("</html>") or not list(path.glob("*.png")):
            raise HeadsError("half a page")

    healing = ("--samples", "64", "--steps", "8", "--batch-size", "8", "--evaluations", "4", "--device", "cpu")
    model = load_source(resolve_source(str(bert)))
    made = {
        "convert": (convert, "out", checkpoint),
        "distill": (("distill", str(poor), "--teacher", str(bert), "--data", "random", *healing), "out", checkpoint),
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
        name: Command(arguments, folder / name / output, check, name == "distill", fresh)
        for name, (arguments, output, check) in made.items()
    }


def run(kills: int, folder: Path, names: Sequence[str] = (), seed: int = 0, fresh: bool = False) -> dict[str, Found]:
    """Kill every command so many times; prints the counts."""
    found = {}
    for name, command in commands(folder, fresh).items():
        if names and name not in names:
            continue
        began = time.monotonic()
        one = found[name] = try_kills(command, kills, random.Random(f"{name} {seed}"))
        hit = kills - one.counts["ended before"]
        counts = ", ".join(f"{state}: {count}" for state, count in sorted(one.counts.items()))
        seconds = time.monotonic() - began
        print(f"{name}: {kills} kills, {hit} before the end, seed {seed}, {seconds:.0f} s; {counts}; ", end="")
        print(f"faults: {len(one.faults)}", flush=True)
        for fault in one.faults:
            print(f"  {fault}", flush=True)
    return found


def parse() -> argparse.Namespace:
    """What the command line of this file says."""
    parser = argparse.ArgumentParser(prog="python -m tests.support.kills")
    parser.add_argument("kills", type=int)
    parser.add_argument("commands", nargs="*", help="all five when left out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fresh", action="store_true", help="a Python of its own for every run: slow")
    return parser.parse_args()


if __name__ == "__main__":
    given = parse()
    with tempfile.TemporaryDirectory() as place:
        results = run(given.kills, Path(place), given.commands, given.seed, given.fresh)
    sys.exit(any(one.faults for one in results.values()))
