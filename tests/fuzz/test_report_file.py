"""Damaged heads_report.json: refused in a line, before anything that would write a card from it has worked for long."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import strategies as st

from hf_heads.core.errors import HeadsError
from hf_heads.core.vocabulary import REPORT
from hf_heads.io.checkpoints.card import model_card
from hf_heads.io.checkpoints.record import read_record, recorded_source
from hf_heads.io.checkpoints.sources import Source
from hf_heads.jobs.evaluation.record import read_comparison
from tests.support import records
from tests.support.fuzz import commanded, fuzz, json_files, put, refused
from tests.support.whole import entries, replaced, whole

NAMES = ("bert-mhe", "marian-collab", "vit-pruned")
HEALED = {
    "teacher": "./bert",
    "data": "64 examples",
    "train": "attention",
    "losses": {"output": 1.0},
    "optimizer": "adamw",
    "learning_rate": 1e-3,
    "batch_size": 8,
    "steps": 8,
    "seconds": 1.0,
    "curve": [{"step": 0, "seconds": 0.0, "drift": 0.2}],
    "before": {"step": 0, "drift": 0.2, "cosine": 0.99},
    "after": {"step": 8, "drift": 0.1, "cosine": 0.995},
}
BLOCK = {"name": "a", "kind": "self", "method": "mhe", "heads": 4, "parameters": 1, "parameters_before": 2}
JOB = {"job": "previous token", "block": "a", "head": 1, "before": 0.9, "after": 0.8}
SCORED = {"task": "x", "dataset": "y", "metric": "accuracy", "value": 0.5, "low": 0.4, "high": None, "original": 0.6}


def report(name: str, more: bool) -> object:
    found = entries(name, REPORT)
    all_of_it = {**found, "distillation": HEALED, "jobs": [JOB], "scores": [SCORED], "measured": "# x"}
    return all_of_it if more else found


reports = st.deferred(
    lambda: st.tuples(st.sampled_from(NAMES), st.booleans()).flatmap(
        lambda one: st.tuples(st.just(one[0]), json_files(report(*one)))
    )
)


def read(source: Source) -> None:
    record = read_record(source.folder)
    recorded_source(source.folder, record, "--against")


def card(source: Source) -> str:
    record = read_record(source.folder)
    return model_card(source, record, record.get("recipe"))


@fuzz(0.05, content=reports)
def test_reading(content: tuple[str, bytes]):
    with replaced(content[0], REPORT, content[1]) as folder:
        refused(lambda: read(Source(str(folder), folder)))


@fuzz(0.06, content=reports)
def test_cards(content: tuple[str, bytes]):
    with replaced(content[0], REPORT, content[1]) as folder:
        refused(lambda: card(Source(str(folder), folder)))


FOUND: list[dict[str, Any]] = [
    {"recipe": ["a"]},
    {"calibration": None},
    {"blocks": [{**BLOCK, "refit_gain": []}]},
    {"blocks": [{**BLOCK, "parameters": {}}]},
    {"blocks": [{**BLOCK, "parameters": None}]},
    {"blocks": [{name: value for name, value in BLOCK.items() if name != "name"}]},
    {"blocks": [{name: value for name, value in BLOCK.items() if name != "method"}]},
    {"blocks": [BLOCK, {**BLOCK, "method": True}]},
    {"distillation": {"teacher": "x"}},
    {"distillation": {**HEALED, "steps": {}}},
    {"calibration_choice": [1]},
    {"jobs": [[]]},
    {"model_parameters": 10**400},
    {"drift": None},
]


@pytest.mark.parametrize("change", FOUND, ids=lambda one: str(one)[:60])
def test_what_cards_once_stumbled_over(change: dict[str, Any]):
    content = json.dumps({**entries("bert-mhe", REPORT), **change}).encode()
    with (
        replaced("bert-mhe", REPORT, content) as folder,
        pytest.raises(HeadsError, match=r"the report '.*' is damaged: "),
    ):
        card(Source(str(folder), folder))


def test_a_report_that_lacks_what_a_card_needs():
    with replaced("bert-mhe", REPORT, b"{}") as folder, pytest.raises(HeadsError, match="says nothing of blocks"):
        card(Source(str(folder), folder))


@fuzz(0.005, least=2, content=reports)
def test_commands(capsys: pytest.CaptureFixture[str], content: tuple[str, bytes]):
    with replaced(content[0], REPORT, content[1]) as folder:
        against = whole(content[0].partition("-")[0])
        commands = [
            ["verify", folder, "--against", against],
            ["inspect", folder],
            ["compare", against, folder, "--no-latency", "--no-control", "--drift-samples", "2", "--metric", "none"],
        ]
        commanded(capsys, *commands[len(content[1]) % len(commands)])


comparisons = st.deferred(lambda: st.sampled_from([records.rich(), records.unmeasured()]).flatmap(json_files))


@fuzz(0.03, content=comparisons)
def test_comparisons(tmp_path_factory: pytest.TempPathFactory, content: bytes):
    path = put(tmp_path_factory.getbasetemp(), "found.json", content)
    refused(lambda: read_comparison(path))


@fuzz(0.002, least=2, content=comparisons)
def test_pages(capsys: pytest.CaptureFixture[str], tmp_path_factory: pytest.TempPathFactory, content: bytes):
    pytest.importorskip("matplotlib")
    base = tmp_path_factory.getbasetemp()
    path = put(base, "found.json", content)
    commanded(capsys, "report", path, "--output", base / "page", "--overwrite")
