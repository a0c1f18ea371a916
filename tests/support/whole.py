"""Whole checkpoints, native and converted, to damage: made once by each process, in a folder that goes with it."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from hf_heads.cli.program import main
from tests.support.files import save_checkpoint
from tests.support.tokenizers import save_image_processor, save_marian_tokenizer, save_tokenizer
from tests.support.twins import TWINS

_SAVE = {"bert": save_tokenizer, "marian": save_marian_tokenizer, "vit": save_image_processor}
_METHODS = {
    "bert-mhe": ["bert", "--to", "mhe"],
    "marian-collab": ["marian", "--to", "collab", "--rank", "12"],
    "vit-pruned": ["vit", "--to", "pruned", "--keep", "0.5", "--score", "weights"],
    "bert-mgk": ["bert", "--to", "mgk", "--merge", "2"],
}
NAMES = (*_SAVE, *_METHODS)
_MORE = {"bert-collab": ["bert", "--to", "collab", "--rank", "8"]}


@cache
def _root() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="hf-heads-whole-")  # removed when the process ends


@cache
def whole(name: str) -> Path:
    """A checkpoint that nobody changes, by its name in `NAMES` or `bert-collab`."""
    folder = Path(_root().name) / name
    if name in _SAVE:
        return save_checkpoint(TWINS[name].model(), folder, _SAVE[name])
    original, *settings = (_METHODS | _MORE)[name]
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = main(["convert", str(whole(original)), *settings, "--calibrate", "none", "--output", str(folder)])
    assert code == 0, said.getvalue()
    return folder


@cache
def spare(name: str) -> Path:
    """A copy of a checkpoint, in which one file at a time is replaced by a damaged one and put back."""
    return Path(shutil.copytree(whole(name), Path(_root().name) / f"spare-{name}"))


@contextlib.contextmanager
def replaced(name: str, file: str, content: bytes) -> Any:
    """The copy of a checkpoint with another content of one file, within a `with` block."""
    path = spare(name) / file
    path.write_bytes(content)
    try:
        yield spare(name)
    finally:
        original = whole(name) / file
        if original.exists():
            shutil.copyfile(original, path)
        else:
            path.unlink()


def entries(name: str, file: str) -> Any:
    """What a JSON file of a checkpoint holds."""
    return json.loads((whole(name) / file).read_text())
