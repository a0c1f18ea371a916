"""The hidden folder in which a run keeps its checkpoints until it has ended well."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_heads.core.errors import HeadsError
from hf_heads.io.checkpoints.files import write_file
from hf_heads.io.checkpoints.hidden import hidden_name, hold, release, remove
from hf_heads.io.checkpoints.json_files import read_json

_ASKED = "asked.json"  # what a run was asked for; also the mark by which the folder is ours


@dataclass(frozen=True)
class Work:
    """Where a run keeps its checkpoints: `.NAME.training` beside the output `NAME`.

    Attributes:
        output: the folder that the run is to make, absolute.
        asked: what the run is asked for, as values for JSON.
    """

    output: Path
    asked: dict[str, Any]

    @property
    def path(self) -> Path:
        """The folder."""
        return self.output.with_name(f".{self.output.name}.training")

    def check_unused(self, overwrite: bool) -> None:
        """Refuse to throw an interrupted run away unasked.

        Raises:
            HeadsError: there is one and `overwrite` is not set, or the folder is somebody else's.
        """
        if self.path.is_symlink() or (self.path.exists() and not self.path.is_dir()):
            raise HeadsError(f"'{self.path}' is in the way: remove it, or choose another --output")
        if self.path.is_dir() and any(self.path.iterdir()) and not (self.path / _ASKED).is_file():
            name = min(path.name for path in self.path.iterdir())
            raise HeadsError(
                f"'{self.path}' holds '{name}', which hf-heads did not write: move it, or choose another --output"
            )
        if not overwrite and self.checkpoints():
            raise HeadsError(
                f"'{self.path}' holds an interrupted run: pass --resume to go on with it, or --overwrite to start anew"
            )

    def checkpoints(self) -> list[Path]:
        """The checkpoints that are complete, in order of their steps."""
        found = [path for path in self.path.glob("checkpoint-*") if path.name.rpartition("-")[2].isdecimal()]
        return sorted(filter(_complete, found), key=lambda path: int(path.name.rpartition("-")[2]))

    def resumed(self) -> Path:
        """The latest checkpoint of an interrupted run that was asked for the same.

        Raises:
            HeadsError: there is none, or it was asked for something else.
        """
        found = self.checkpoints()
        if not found or not (self.path / _ASKED).is_file():
            raise HeadsError(f"nothing to resume: no checkpoint in '{self.path}'; leave out --resume")
        before = _flat(read_json(self.path / _ASKED, "interrupted run"))
        now = _flat(json.loads(json.dumps(self.asked, default=str)))
        if changed := [name for name, value in now.items() if value != before.get(name)]:
            name = changed[0]
            raise HeadsError(
                f"the run in '{self.path}' had {name.replace('_', '-')} {before.get(name)}, not {now[name]}: resume it "
                "with the options that it was started with"
            )
        return found[-1]

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other runs out; in the end the folder is removed, but for a run that can be resumed.

        Raises:
            HeadsError: another run is at work here.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            lock = hold(self.path)
        except BlockingIOError:
            raise HeadsError(f"another run is at work on '{self.output}'; choose another --output") from None
        try:
            yield
        except BaseException as error:
            if not self.checkpoints():
                self._remove()
            elif isinstance(error, KeyboardInterrupt):
                error.args = ("go on with the same command and --resume",)
            raise
        else:
            self._remove()
        finally:
            release(lock)

    def start(self) -> None:
        """Empty the folder for a new run."""
        for path in self.path.iterdir():
            remove(path)
        write_file(self.path / _ASKED, json.dumps(self.asked, default=str) + "\n")

    def _remove(self) -> None:
        """Remove the folder under a name that the next run clears, lest a kill leaves a checkpoint that lacks files."""
        gone = hidden_name(self.output, "partial")
        if self.path.exists():
            self.path.rename(gone)
        remove(gone)


def _complete(checkpoint: Path) -> bool:
    """Whether a checkpoint was written to its end: its weights, and last the Trainer's state."""
    try:
        read_json(checkpoint / "trainer_state.json", "state")
    except HeadsError:
        return False
    return any((checkpoint / f"model.safetensors{ending}").is_file() for ending in ("", ".index.json"))


def _flat(asked: dict[str, Any]) -> dict[str, Any]:
    """One level of names instead of two."""
    rest = {name: value for name, value in asked.items() if name not in ("settings", "data")}
    return {**rest, **asked["settings"], **{f"data_{name}": value for name, value in asked["data"].items()}}
