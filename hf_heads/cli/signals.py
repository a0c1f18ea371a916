"""Requests to end (SIGTERM) and lost terminals (SIGHUP) stop a command as Ctrl-C does, with all of its cleaning up."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn


class Stopped(KeyboardInterrupt):
    """A signal asked this process to end.

    Attributes:
        number: the signal's.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


@contextmanager
def signals_stop() -> Iterator[None]:
    """Raise `Stopped` where SIGTERM or SIGHUP would end the process at once; not where the caller handles them."""
    names = [name for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    main = threading.current_thread() is threading.main_thread()
    ours = [
        number
        for number in (getattr(signal, name) for name in names)
        if main and signal.getsignal(number) is signal.SIG_DFL  # nohup ignores SIGHUP, and means it
    ]
    for number in ours:
        signal.signal(number, _stop)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    raise Stopped(number)
