"""Damaged safetensors files: refused in a line, however large the header says that anything is."""

from __future__ import annotations

import json
import struct
from typing import Any

import pytest
from hypothesis import strategies as st

from hf_heads.io.checkpoints.contents import WHOLE
from hf_heads.io.checkpoints.inspection import inspect
from hf_heads.io.checkpoints.loading import load_source
from hf_heads.io.checkpoints.sources import resolve_source
from hf_heads.io.checkpoints.weights import Weights
from tests.support.fuzz import commanded, damaged, flipped, fuzz, refused
from tests.support.whole import replaced, whole

NAMES = ("bert", "marian-collab", "vit-pruned")


def parts(name: str) -> tuple[Any, bytes]:
    """The header of a checkpoint's file, and what comes behind it."""
    content = (whole(name) / WHOLE).read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def with_header(header: Any, body: bytes, length: int | None = None) -> bytes:
    text = json.dumps(header).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def files_of(name: str) -> st.SearchStrategy[bytes]:
    header, body = parts(name)
    text = json.dumps(header).encode()
    lengths = st.one_of(st.sampled_from([0, 1, 2**31, 2**62, 2**63, 2**64 - 1]), st.integers(0, 2**64 - 1))
    return st.one_of(
        damaged(header).map(lambda one: with_header(one, body)),
        damaged(header, 1).map(lambda one: with_header(one, body)),
        lengths.map(lambda length: with_header(header, body, length)),
        flipped(text).map(lambda one: struct.pack("<Q", len(one)) + one + body),
        flipped(text[:400]).map(lambda one: struct.pack("<Q", len(text)) + (one + text[400:])[: len(text)] + body),
        st.integers(0, len(body)).map(lambda size: with_header(header, body[:size])),
        st.binary(max_size=40).map(lambda more: with_header(header, body + more)),
        st.binary(max_size=64),
    )


files = st.deferred(lambda: st.sampled_from(NAMES).flatmap(lambda name: st.tuples(st.just(name), files_of(name))))


def read_all(folder: str) -> int:
    weights = Weights(resolve_source(folder).folder)
    return sum(tensor.numel() + len(weights.shape(name)) + len(weights.kind(name)) for name, tensor in weights.items())


@fuzz(0.08, file=files)
def test_tensors(file: tuple[str, bytes]):
    with replaced(file[0], WHOLE, file[1]) as folder:
        refused(lambda: read_all(str(folder)))


@fuzz(0.03, file=files)
def test_inspecting(file: tuple[str, bytes]):
    with replaced(file[0], WHOLE, file[1]) as folder:
        refused(lambda: inspect(resolve_source(str(folder))))


@fuzz(0.03, file=files)
def test_loading(file: tuple[str, bytes]):
    with replaced(file[0], WHOLE, file[1]) as folder:
        refused(lambda: load_source(resolve_source(str(folder))))


@fuzz(0.005, least=2, file=files)
def test_commands(capsys: pytest.CaptureFixture[str], file: tuple[str, bytes]):
    with replaced(file[0], WHOLE, file[1]) as folder:
        command = (
            ("inspect", folder) if len(file[1]) % 2 else ("verify", folder, "--against", whole("bert"))
        )  # of another architecture mostly
        commanded(capsys, *command)
