"""The command recommend: what it tries, what it promises, and when it says that nothing helps."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from transformers import BertForSequenceClassification, BertModel

import hf_heads
from hf_heads import CalibrationChoice, HeadsError, PrunedSpec
from hf_heads.jobs.conversion.command import options_of
from hf_heads.jobs.recommendation import recommend as room
from hf_heads.jobs.recommendation.candidates import candidates
from hf_heads.jobs.recommendation.record import Point, Recommendation, chosen
from hf_heads.modeling.blocks import block_shape
from tests.support.cli import Run, check_refused
from tests.support.files import save_checkpoint, write_rows
from tests.support.twins import TWINS, bert_config, randomize


def point(promised: float, gain: float, method: str = "pruned") -> Point:
    return Point(method, {}, "", {}, promised, gain, gain, gain, gain, 0.0)


def test_the_frontier_is_what_no_other_beats():
    points = [point(0.3, 4.0), point(0.1, 3.0), point(0.2, 2.5), point(0.05, 2.0), point(0.05, 1.5)]
    frontier, best = chosen(points, "balanced", True, 0.15)
    assert frontier == (0, 1, 3)
    assert best == 1


@pytest.mark.parametrize("points", [[point(0.3, 4.0)], [point(0.001, 1.01)], []])
def test_nothing_is_recommended_where_nothing_helps(points: list[Point]):
    assert chosen(points, "balanced", True, 0.02)[1] is None


def test_a_share_that_was_never_seen_is_not_promised_to_be_zero():
    assert 0.03 < room.at_most(0.0, 64) < 0.1
    assert room.at_most(0.2, 100) == pytest.approx(0.29, abs=0.01)
    assert room.at_most(0.2, 10**6) == pytest.approx(0.2, abs=1e-3)


def test_what_is_uncertain_counts_at_its_lower_end():
    fast = Point("pruned", {}, "", {}, 0.01, 1.0, 1.0, speed=2.0, speed_low=0.9, seconds=0.0)
    assert fast.gain("speed", False) == 0.9
    assert fast.gain("balanced", False) == pytest.approx(0.9**0.5)
    assert fast.gain("balanced", True) == pytest.approx(0.9 ** (1 / 3))
    assert chosen([fast], "speed", False, 0.02)[1] is None


@pytest.mark.parametrize("name", list(TWINS))
def test_candidates_are_of_every_method_and_mild_to_strong(name: str):
    shapes = [block_shape(block) for block in hf_heads.find_blocks(TWINS[name].model())]
    found = candidates(shapes)
    assert {spec.method for spec in found} >= {"collab", "low-rank", "mgk", "mhe", "pruned"}
    assert len(found) == len({str(spec) for spec in found})
    assert options_of(PrunedSpec(keep=0.75)) == {"keep": 0.75}


@pytest.fixture
def embedder(tmp_path: Path) -> Path:
    model = BertModel(bert_config())
    randomize(model, seed=1)
    return save_checkpoint(model, tmp_path / "embedder")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_SECONDS", 0.0)
    monkeypatch.setattr(room, "_TEXTS", {8: 2})
    few = [PrunedSpec(keep=0.5), hf_heads.LowRankSpec(rank=32), hf_heads.CollabSpec(rank=8)]
    monkeypatch.setattr(room, "candidates", lambda shapes: few)


def check(found: Recommendation) -> None:
    assert len(found.points) == 3
    for one in found.points:
        assert one.promised >= max(one.lost.values()) >= 0
        assert shlex.split(one.command)[:2] == ["hf-heads", "convert"]
    by_method = {one.method: one for one in found.points}
    assert max(by_method["low-rank"].lost.values()) < 1e-4  # lossless at this rank
    assert by_method["pruned"].parameters == pytest.approx(2, rel=0.2)
    gains = [one.gain(found.goal, found.caches) for one in found.points]
    assert gains == sorted(gains, reverse=True)


def test_a_recommendation_of_an_encoder(embedder: Path):
    found = hf_heads.recommend(str(embedder), CalibrationChoice(samples=16), goal="parameters", max_drop=0.9)
    check(found)
    assert not found.caches
    assert found.measure == "1 - cosine of the outputs"
    assert found.best is not None and found.best is found.points[0]
    small = hf_heads.recommend(str(embedder), CalibrationChoice(samples=16), goal="parameters", max_drop=1e-6)
    assert small.best is None and small.reason.startswith("nothing")


def test_a_classifier_is_judged_by_its_predictions_on_data_that_is_held_out(tmp_path: Path):
    model = BertForSequenceClassification(bert_config())
    randomize(model, seed=2)
    folder = save_checkpoint(model, tmp_path / "classifier")
    data = write_rows(tmp_path / "texts.jsonl", [{"text": f"word{i} word{2 * i % 90} word7"} for i in range(60)])
    choice = CalibrationChoice(str(data), samples=24, seed=3, max_length=8, pack=False)
    found = hf_heads.recommend(str(folder), choice)
    check(found)
    assert found.measure == "share of predictions that change"
    assert all(name.startswith("held-out") for name in found.points[0].lost)
    for words in (f"--calibrate {data}", "--seed 3", "--max-length 8", "--no-pack"):
        assert all(words in one.command for one in found.points), words


def test_the_command_prints_and_draws(run: Run, embedder: Path, tmp_path: Path):
    pytest.importorskip("matplotlib")
    figure = tmp_path / "frontier.png"
    asked = ("recommend", embedder, "--calibration-samples", 16, "--goal", "parameters", "--max-drop", 0.9)
    found = run(*asked, "--figure", figure)
    assert found.code == 0, found.err
    assert "recommended" in found.out and f"hf-heads convert {embedder}" in found.out
    assert figure.read_bytes().startswith(b"\x89PNG")
    check_refused(run("recommend", embedder, "--figure", figure), "exists", "--overwrite")
    record = run("recommend", embedder, "--calibration-samples", 16, "--goal", "cache", "--json").json
    assert record["goal"] == "cache"
    assert {"points", "frontier", "recommended", "reason", "timed"} <= set(record)


def test_what_cannot_be_is_refused(run: Run, embedder: Path, tmp_path: Path):
    check_refused(run("recommend", embedder, "--calibrate", "none"), "needs inputs")
    check_refused(run("recommend", tmp_path / "nowhere"), "nowhere")
    check_refused(run("recommend", embedder, "--max-drop", 0), "is not", code=2)
    check_refused(run("recommend", embedder, "--goal", "fame"), "fame", code=2)
    converted = tmp_path / "converted"
    made = run("convert", embedder, "--to", "collab", "--rank", 8, "--calibrate", "none", "--output", converted)
    assert made.code == 0, made.err
    check_refused(run("recommend", converted), "converted already", "compare")
    with pytest.raises(HeadsError, match="goal is 'fame'"):
        hf_heads.recommend(str(embedder), goal="fame")  # type: ignore[arg-type]
