"""Damaged config.json of native and converted checkpoints: refused in a line, by every way of reading it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import strategies as st

from hf_heads.io.checkpoints.inspection import inspect
from hf_heads.io.checkpoints.loading import load_source, read_config
from hf_heads.io.checkpoints.sources import resolve_source
from tests.support.fuzz import commanded, fuzz, json_files, refused
from tests.support.whole import NAMES, entries, replaced, whole

configs = st.sampled_from(NAMES).flatmap(
    lambda name: st.tuples(st.just(name), json_files(entries(name, "config.json")))
)


@fuzz(0.14, config=st.deferred(lambda: configs))
def test_reading(config: tuple[str, bytes]):
    name, content = config
    with replaced(name, "config.json", content) as folder:
        refused(lambda: read_config(resolve_source(str(folder))))


@fuzz(0.09, config=st.deferred(lambda: configs))
def test_inspecting(config: tuple[str, bytes]):
    name, content = config
    with replaced(name, "config.json", content) as folder:
        refused(lambda: inspect(resolve_source(str(folder))))


@fuzz(0.09, config=st.deferred(lambda: configs))
def test_loading(config: tuple[str, bytes]):
    name, content = config
    with replaced(name, "config.json", content) as folder:
        refused(lambda: load_source(resolve_source(str(folder))))


@fuzz(0.01, least=2, config=st.deferred(lambda: configs))
def test_commands(capsys: pytest.CaptureFixture[str], config: tuple[str, bytes]):
    name, content = config
    with replaced(name, "config.json", content) as folder:
        commands: list[list[Any]] = [
            ["inspect", folder],
            ["inspect", folder, "--json"],
            ["verify", folder, "--against", whole(name.partition("-")[0])],
            ["convert", folder, "--to", "mhe", "--calibrate", "none", "--output", folder.parent / "out", "--overwrite"],
        ]
        commanded(capsys, *commands[len(content) % len(commands)])
