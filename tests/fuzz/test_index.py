"""Damaged model.safetensors.index.json: refused in a line; nothing outside of the folder is read."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from hf_heads.core.errors import HeadsError
from hf_heads.io.checkpoints.contents import INDEX, WHOLE
from hf_heads.io.checkpoints.loading import load_source
from hf_heads.io.checkpoints.sources import resolve_source
from hf_heads.io.checkpoints.weights import Weights
from tests.support.fuzz import commanded, fuzz, json_files, refused
from tests.support.whole import spare


@cache
def sharded() -> tuple[Path, dict[str, Any]]:
    """A checkpoint in two files, and its index."""
    folder = spare("bert-mhe")
    tensors = load_file(folder / WHOLE)
    names = sorted(tensors)
    index: dict[str, Any] = {"metadata": {"total_size": 1}, "weight_map": {}}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = f"model-{number:05d}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file, metadata={"format": "pt"})
        index["weight_map"].update(dict.fromkeys(part, file))
    (folder / WHOLE).unlink()
    return folder, index


indices = st.deferred(lambda: json_files(sharded()[1]))


@fuzz(0.13, content=indices)
def test_tensors(content: bytes):
    folder, _ = sharded()
    (folder / INDEX).write_bytes(content)
    found = refused(lambda: Weights(resolve_source(str(folder)).folder))
    assert found is None or all(file.parent == folder for file in found.file_of.values())


@fuzz(0.02, content=indices)
def test_loading(content: bytes):
    folder, _ = sharded()
    (folder / INDEX).write_bytes(content)
    refused(lambda: load_source(resolve_source(str(folder))))


@fuzz(0.005, least=2, content=indices)
def test_commands(capsys: pytest.CaptureFixture[str], content: bytes):
    folder, _ = sharded()
    (folder / INDEX).write_bytes(content)
    commanded(capsys, "inspect", folder)


ENTRIES = [5, None, ["model.safetensors"], {"a": 1}, True, "", "..", "../x", "a/b", "a\x00b", "x" * 300]


@pytest.mark.parametrize("entry", ENTRIES)
def test_an_entry_that_is_no_file_of_the_folder_is_named(entry: object):
    folder, index = sharded()
    changed = {**index, "weight_map": {**index["weight_map"], "some.tensor": entry}}
    (folder / INDEX).write_text(json.dumps(changed))
    words = r"^the index '.*' places 'some.tensor' in .*, which is not a file of the folder$"
    with pytest.raises(HeadsError, match=words):
        resolve_source(str(folder))
