"""Records of comparisons that are read: of earlier versions, of compare itself, and those that are refused."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hf_heads.core.errors import HeadsError
from hf_heads.jobs.evaluation.record import (
    BlockRow,
    Comparison,
    Generation,
    Latency,
    Memory,
    Metric,
    ModelRow,
    Score,
    read_comparison,
)
from hf_heads.jobs.reporting.page import write_report
from tests.support.cli import Run, check_refused, leftovers
from tests.support.records import comparison, model, rich, scores

RESULTS = Path(__file__).parents[3] / "scripts" / "results"


def save(folder: Path, name: str, record: object) -> Path:
    path = folder / name
    path.write_text(json.dumps(record))
    return path


def test_what_compare_records_can_be_read(tmp_path: Path):
    small = ModelRow(
        name="small",
        source="out/small",
        role="converted",
        attention_parameters=60,
        model_parameters=960,
        cache_per_token=40,
        methods=("collab",),
        settings="collab rank 8, 4 heads",
        calibration="8 texts",
        healed={"seconds": 60.5, "curve": [{"step": 0, "seconds": 0.0, "cosine": 0.5, "drift": 0.5}]},
        multiply_adds={32: 9},
        latency=(Latency(1, 32, 5.0, 6400.0, 1.25),),
        generation=(Generation(8, 100.0, 1.5),),
        peak_memory=(Memory(1, 32, 2**20),),
        drift={"cosine": 0.9},
        score=Score(80.0, 79.0, 81.0, -1.0, -2.0, 0.5),
        blocks=(BlockRow("layers.0.attention", "self", "collab rank 8, 4 heads", 4, 60, 100, 40, 64, 0.1),),
    )
    made = Comparison(
        original="hub/base",
        data="8 texts",
        metric=Metric("accuracy", "hits", examples=8),
        lengths=(32,),
        models=(ModelRow(name="base", role="original", attention_parameters=100, healed=None), small),
    )
    assert read_comparison(save(tmp_path, "c.json", made.to_dict())) == made
    assert replace(small, generation=()).speed == pytest.approx(1.25)
    assert (small.speed, small.curve[0]["cosine"], small.score and small.score.clear) == (1.5, 0.5, False)
    assert [row.setting for row in small.timings] == ["batch 1, length 32", "generation, batch 8"]


def test_figures_that_are_not_finite_are_written_as_null():
    broken = ModelRow(name="x", role="converted", attention_parameters=1, drift={"cosine": math.nan, "kl": math.inf})
    written = Comparison(original="x", models=(broken,)).to_dict()
    assert written["models"][0]["drift"] == {"cosine": None, "kl": None}
    json.dumps(written, allow_nan=False)


@pytest.mark.parametrize("path", sorted(RESULTS.glob("heal_*.json")), ids=lambda path: path.stem)
def test_records_of_earlier_versions_are_read_whole(path: Path):
    written = json.loads(path.read_text(encoding="utf-8"))
    again = json.loads(json.dumps(read_comparison(path).to_dict()))
    found, stored = known(again), known(written)  # with what was measured beside
    assert found == {name: stored[name] for name in found}


def known(record: Any) -> Any:
    """A record without what is null or empty: what fields that came later are in records of earlier versions."""
    if isinstance(record, dict):
        return {name: known(value) for name, value in record.items() if value not in (None, {})}
    return [known(one) for one in record] if isinstance(record, list) else record


def changed(change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    record = rich()
    change(record)
    return record


REFUSED: dict[str, tuple[object, str]] = {
    "other kind": ({"format": 1, "kind": "ablation"}, "is not a comparison (its kind is 'ablation')"),
    "no kind": ({}, "is not a comparison (its kind is None)"),
    "a list": ([1], "is not a JSON object"),
    "format": (comparison([]) | {"format": 2}, "has format 2, this hf-heads reads 1"),
    "no list": ({"format": 1, "kind": "comparison", "original": "x"}, "models is missing"),
    "no models": (comparison([]), "holds 0 originals"),
    "no original": (comparison([model("a", "collab", 0.5, 0.9)]), "holds 0 originals instead of one"),
    "no converted": (comparison([model("a", None, 1, 1)]), "holds no converted models"),
    "role": (changed(lambda r: r["models"][1].update(role="x")), "models[1].role: expected one of original, converted"),
    "size": (
        changed(lambda r: r["models"][2].pop("attention_parameters")),
        "models[2].attention_parameters is missing",
    ),
    "text": (
        changed(lambda r: r["models"][2].update(cache_per_token="many")),
        'models[2].cache_per_token: expected a whole number, found "many"',
    ),
    "true": (
        changed(lambda r: r["models"][2]["drift"].update(cosine=True)),
        "models[2].drift.cosine: expected a number, found true",
    ),
    "nan": (
        changed(lambda r: r["models"][2]["latency"][1].update(ratio=math.nan)),
        "models[2].latency[1].ratio: expected a number, found NaN",
    ),
    "length": (
        changed(lambda r: r["models"][2].update(multiply_adds={"long": 1})),
        'models[2].multiply_adds: expected whole numbers as names, found "long"',
    ),
    "blocks": (changed(lambda r: r["models"][2].update(blocks={})), "models[2].blocks: expected a list, found {}"),
    "block": (
        changed(lambda r: r["models"][2]["blocks"].append(3)),
        "models[2].blocks[6]: expected an object, found 3",
    ),
    "score": (changed(lambda r: r["models"][3].update(score={"low": 1})), "models[3].score.value is missing"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_records_that_cannot_be_used_are_refused(run: Run, tmp_path: Path, case: str):
    record, words = REFUSED[case]
    path = save(tmp_path, "bad.json", record)
    check_refused(run("report", path, "--output", tmp_path / "out"), "bad.json", words)
    assert leftovers(tmp_path) == ["bad.json"]


def test_what_else_is_refused(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    record = save(tmp_path, "c.json", rich())
    (tmp_path / "text.json").write_text("no json")
    other = scores()
    other["importance"] = {"decoder.layers.0.self_attn": [1.0]}
    save(tmp_path, "other.json", other)
    save(tmp_path, "empty.json", {"importance": {}, "rule": "x"})
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("")
    before, out = leftovers(tmp_path), tmp_path / "out"
    for arguments, words in (
        ((tmp_path / "no.json", "--output", out), ("cannot read the comparison", "no.json")),
        ((tmp_path / "text.json", "--output", out), ("text.json", "is not valid JSON")),
        ((record, "--importance", tmp_path / "no.json", "--output", out), ("cannot read the scores", "no.json")),
        ((record, "--importance", record, "--output", out), ("does not hold scores of heads",)),
        ((record, "--importance", tmp_path / "empty.json", "--output", out), ("does not hold scores of heads",)),
        ((record, "--importance", tmp_path / "other.json", "--output", out), ("decoder.layers.0.self_attn",)),
        ((record, "--output", mine, "--overwrite"), ("thesis.tex", "did not write")),
        ((record, "--output", record, "--overwrite"), ("is not a folder",)),
    ):
        check_refused(run("report", *arguments), *words)
    for arguments in ((), (record,), ("--output", out)):
        assert run("report", *arguments).code == 2
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    check_refused(run("report", record, "--output", out), "figures need matplotlib")
    assert leftovers(tmp_path) == before
    with pytest.raises(HeadsError):
        write_report([record], out)
