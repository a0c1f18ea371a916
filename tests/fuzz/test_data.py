"""Damaged data files: calibration, labels, pairs and scores come out of them, or one line."""

from __future__ import annotations

import csv
import io
import json
import os
from functools import cache
from typing import Any

import pyarrow.parquet
import pytest
from hypothesis import strategies as st
from transformers import PreTrainedModel

from hf_heads.io.data.calibration import load_data
from hf_heads.io.data.choice import CalibrationChoice
from hf_heads.io.data.labelled import load_labelled
from hf_heads.io.data.reading import read_examples
from hf_heads.jobs.evaluation.scores import scored_pairs
from tests.support.fuzz import commanded, damaged, flipped, fuzz, put, refused
from tests.support.labelled import classifier, words
from tests.support.twins import TWINS
from tests.support.whole import whole

ROWS: list[dict[str, Any]] = [
    {"first": words(n, n + 1), "second": words(n + 2), "label": n % 3, "score": n / 4, "more": {"en": words(n)}}
    for n in range(6)
]
ENDINGS = (".jsonl", ".csv", ".tsv", ".parquet", ".txt", ".json")


def lines(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode("utf-8", "surrogatepass")


def separated(rows: list[Any], separator: str) -> bytes:
    found = io.StringIO()
    writer = csv.writer(found, delimiter=separator, escapechar="\\")
    whole_rows = [row for row in rows if isinstance(row, dict)]
    writer.writerow(dict.fromkeys(name for row in whole_rows for name in row))
    for row in whole_rows:
        writer.writerow(str(value) if not isinstance(value, int) else repr(value % 2**64) for value in row.values())
    return found.getvalue().encode("utf-8", "surrogatepass")


@cache
def parquet() -> bytes:
    found = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), found)
    return found.getvalue()


def contents(ending: str) -> st.SearchStrategy[bytes]:
    if ending == ".parquet":
        return flipped(parquet())
    separators = {".csv": ",", ".tsv": "\t"}

    def make(rows: list[Any]) -> bytes:
        if ending == ".json":
            return json.dumps(rows).encode("utf-8", "surrogatepass")
        return separated(rows, separators[ending]) if ending in separators else lines(rows)

    odd = st.sampled_from([b"", b"\n\n", b"\x00"])
    return st.one_of(damaged(ROWS).map(make), damaged(ROWS, 1).map(make), flipped(make(ROWS)), odd)


files = st.sampled_from(ENDINGS).flatmap(lambda ending: st.tuples(st.just(ending), contents(ending)))
columns = st.sampled_from([None, None, ("first",), ("first", "second"), ("more.en",), ("label",)])
labels = st.sampled_from([None, None, "label", "score", "first"])
cases = st.deferred(lambda: st.tuples(files, columns, labels))


@cache
def classes(number: int) -> PreTrainedModel:
    return classifier(number)


@cache
def language(name: str) -> PreTrainedModel:
    return TWINS[name].model()


def write(factory: pytest.TempPathFactory, file: tuple[str, bytes]) -> str:
    """A name of its own for every content: `datasets` keeps what it knows of a file by its path and time."""
    folder = factory.getbasetemp() / "data"
    folder.mkdir(exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    return str(put(folder, f"rows-{os.urandom(4).hex()}{file[0]}", file[1]))


@fuzz(
    0.04,
    ((".jsonl", b"null\n" + lines(ROWS)), None, None),  # Arrow ended the process
    ((".json", b"[null, " + json.dumps(ROWS).encode()[1:]), None, None),
    case=cases,
)
def test_labelled(tmp_path_factory: pytest.TempPathFactory, case: Any):
    (file, used, label), path = case, write(tmp_path_factory, case[0])
    model = classes(1 + 2 * (len(file[1]) % 2))
    refused(lambda: load_labelled(CalibrationChoice(path, used, label), model, whole("bert")))


@fuzz(0.02, case=cases)
def test_labelled_language(tmp_path_factory: pytest.TempPathFactory, case: Any):
    (file, used, _), path = case, write(tmp_path_factory, case[0])
    name = ("bert", "marian")[len(file[1]) % 2]
    refused(lambda: load_labelled(CalibrationChoice(path, used), language(name), whole(name)))


@fuzz(0.03, case=cases)
def test_calibration(tmp_path_factory: pytest.TempPathFactory, case: Any):
    (_, used, label), path = case, write(tmp_path_factory, case[0])
    refused(lambda: load_data(CalibrationChoice(path, used, label, samples=8), language("bert"), whole("bert")))


@fuzz(0.02, ((".tsv", b"first\tsecond\tscore\nword0\tword1\tword2\n"), None, "score"), case=cases)  # ValueError
def test_pairs(tmp_path_factory: pytest.TempPathFactory, case: Any):
    (_, used, label), path = case, write(tmp_path_factory, case[0])
    refused(lambda: scored_pairs(CalibrationChoice(path, used, label)))
    refused(lambda: read_examples(path, used, "text-to-text", 8, 0))


@fuzz(0.005, least=2, case=cases)
def test_commands(capsys: pytest.CaptureFixture[str], tmp_path_factory: pytest.TempPathFactory, case: Any):
    (_, used, label), path = case, write(tmp_path_factory, case[0])
    more = [*(["--columns", ",".join(used)] if used else []), *(["--label", label] if label else [])]
    output = tmp_path_factory.getbasetemp() / "from-data"
    settings = ("--to", "mhe", "--output", output, "--overwrite", "--calibration-samples", 8)
    commanded(capsys, "convert", whole("bert"), *settings, "--calibrate", path, *more)
