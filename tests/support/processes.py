"""The command line in several processes: as a launcher starts it, or as forks of this process, which import nothing."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate.state import AcceleratorState, GradientState, PartialState

from hf_heads.cli import main


def in_fork(call: Callable[[], object]) -> int:
    """The exit code of a fork of this process that makes a call and ends; negative the number of what killed it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads, which pytest-xdist has and we do not use
        pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    code = 99
    try:
        torch.set_num_threads(1)  # a fork has no other threads
        call()
        code = 0
    finally:
        os._exit(code)


def launched(count: int, arguments: list[str]) -> str:
    """What `accelerate launch` prints to standard output."""
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(count)]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "-m", "hf_heads.cli"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    found = subprocess.run([*launch, *arguments], capture_output=True, text=True, env=environment)
    assert found.returncode == 0, "\n".join(line for line in found.stderr.splitlines() if "hf-heads" in line)
    return found.stdout


def forked(count: int, arguments: list[str], folder: Path) -> str:
    """What `count` forks with a launcher's environment print to standard output, in a folder for what they print."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    running = []
    for rank in range(count):
        if pid := os.fork():
            running.append(pid)
            continue
        _run(rank, count, port, arguments, folder)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in running]
    assert not any(codes), [(folder / f"err-{rank}").read_text()[-2000:] for rank in range(count)]
    return "".join((folder / f"out-{rank}").read_text() for rank in range(count))


def _run(rank: int, count: int, port: int, arguments: list[str], folder: Path) -> None:
    """The command line in this fork, which ends with it."""
    code = 99
    try:
        for name, descriptor in (("out", 1), ("err", 2)):
            os.dup2(os.open(folder / f"{name}-{rank}", os.O_WRONLY | os.O_CREAT), descriptor)
        sys.stdout, sys.stderr = (os.fdopen(descriptor, "w", closefd=False) for descriptor in (1, 2))
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # else accelerate warns
        torch.set_num_threads(1)  # a fork can start no threads, so that it gets none of the others' either
        places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": 1}
        address = {"MASTER_ADDR": "localhost", "MASTER_PORT": port}
        os.environ |= {name: str(value) for name, value in (places | address).items()}
        for state in (AcceleratorState, GradientState, PartialState):  # each is made once in a process
            state._shared_state.clear()
        code = main(arguments)
    except SystemExit as stop:
        code = int(stop.code or 0)
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)
