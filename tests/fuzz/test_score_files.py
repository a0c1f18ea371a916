"""Damaged files of scores: refused in a line."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from hypothesis import strategies as st
from transformers import PreTrainedModel

from hf_heads.attention.hosts.blocks import find_blocks
from hf_heads.jobs.reporting.importance import read_scores
from hf_heads.jobs.scoring.scores import HeadScores, fingerprint, load_scores
from tests.support.fuzz import commanded, fuzz, json_files, put, refused
from tests.support.twins import HEADS, TWINS
from tests.support.whole import whole


@cache
def model() -> PreTrainedModel:
    return TWINS["bert"].model()


@cache
def scores() -> dict[str, Any]:
    names = [block.name for block in find_blocks(model())]
    importance = {name: tuple(0.5 * head for head in range(HEADS)) for name in names}
    order = tuple((name, head) for name in names for head in range(HEADS))
    return HeadScores("gauss-newton", importance, order, 2, False, fingerprint(model()), "data").to_dict()


files = st.deferred(lambda: json_files(scores()))


@fuzz(0.08, b'{"format": "' + b"x" * 5000 + b'"}', content=files)  # a line of 5,000 characters
def test_loading(tmp_path_factory: pytest.TempPathFactory, content: bytes):
    path = put(tmp_path_factory.getbasetemp(), "scores.json", content)
    found = refused(lambda: load_scores(path, model()))
    assert found is None or len(found.order) == 2 * HEADS


@fuzz(0.03, content=files)
def test_pages(tmp_path_factory: pytest.TempPathFactory, content: bytes):
    path = put(tmp_path_factory.getbasetemp(), "scores.json", content)
    refused(lambda: read_scores(path))


@fuzz(0.005, least=2, content=files)
def test_commands(capsys: pytest.CaptureFixture[str], tmp_path_factory: pytest.TempPathFactory, content: bytes):
    base = tmp_path_factory.getbasetemp()
    path = put(base, "scores.json", content)
    settings = ("--to", "pruned", "--keep", "0.5", "--scores", path, "--calibrate", "none")
    commanded(capsys, "convert", whole("bert"), *settings, "--output", base / "from-scores", "--overwrite")
