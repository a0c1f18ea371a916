"""Healing: the losses against their formulas, the Trainer's run, resuming, several processes, the command."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForMaskedLM, BertForSequenceClassification

import hf_heads
from hf_heads import CollabSpec, HeadsSpec, MgkSpec, MheSpec, PrunedSpec
from hf_heads.core import products
from hf_heads.core.errors import HeadsError, HeadsWarning
from hf_heads.core.vocabulary import NONE, RANDOM
from hf_heads.io.checkpoints.sources import resolve_source
from hf_heads.io.data.calibration import CalibrationChoice
from hf_heads.jobs.conversion.checkpoint import convert_checkpoint
from hf_heads.jobs.conversion.request import ConversionRequest
from hf_heads.jobs.distillation.checkpoint import distill_checkpoint
from hf_heads.jobs.distillation.settings import DistillSettings
from hf_heads.jobs.distillation.trainer import trained_parameters
from hf_heads.jobs.evaluation.verify import verify
from tests.support.cli import Run
from tests.support.files import save_checkpoint, write_rows
from tests.support.matrix import each, only
from tests.support.processes import forked, launched
from tests.support.tokenizers import WORDS
from tests.support.twins import TWINS, bert_config, randomize


def data_for(name: str, tmp_path: Path) -> CalibrationChoice:
    """Random inputs; pairs of texts for a text-to-text model, whose own continuations would take long."""
    if name != "marian":
        return MADE
    rows = [{"en": " ".join(WORDS[i : i + 4]), "de": " ".join(WORDS[i + 3 : i + 9])} for i in range(80)]
    return CalibrationChoice(str(write_rows(tmp_path / "pairs.jsonl", rows)), ("en", "de"))


SHORT = DistillSettings(steps=8, batch_size=4, evaluations=4, patience=None)
MADE = CalibrationChoice(RANDOM)


@pytest.fixture
def sentences(tmp_path: Path) -> Path:
    path = tmp_path / "texts.txt"
    generator = torch.Generator().manual_seed(0)
    lines = []
    for _ in range(80):
        count = int(torch.randint(3, 9, (), generator=generator))
        lines.append(" ".join(WORDS[number] for number in torch.randint(len(WORDS), (count,), generator=generator)))
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def conversions(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, HeadsSpec], Path]:
    """A folder with a twin and what it is converted into, each made once."""

    @cache
    def make(name: str, spec: HeadsSpec) -> Path:
        folder = tmp_path_factory.mktemp(name)
        source = save_checkpoint(TWINS[name].model(), folder / name)
        output = folder / f"{name}-{spec.method}"
        convert_checkpoint(ConversionRequest(str(source), spec, calibration=CalibrationChoice(NONE)), output)
        return folder

    return make


@pytest.fixture
def converted(conversions: Callable[[str, HeadsSpec], Path], tmp_path: Path) -> Callable[..., Path]:
    """Makes a converted checkpoint of a twin; the original is the folder of the twin's name."""

    def make(name: str, spec: HeadsSpec) -> Path:
        shutil.copytree(conversions(name, spec), tmp_path, dirs_exist_ok=True)
        return tmp_path / f"{name}-{spec.method}"

    return make


@each(
    student={
        "bert-mhe": ("bert", MheSpec()),
        "vit-collab": ("vit", CollabSpec(rank=4)),
        "marian-pruned": ("marian", PrunedSpec(keep=0.5, score="weights")),
        "bert-mgk": ("bert", MgkSpec(merge=2)),
    },
    optimizer=["muon", "adamw"],
)
def test_healing_lowers_the_drift_and_leaves_the_rest_alone(
    student: tuple[str, HeadsSpec], optimizer: Any, converted: Callable[..., Path], tmp_path: Path
):
    name, source = student[0], converted(*student)
    settings = DistillSettings(steps=20, batch_size=8, evaluations=2, learning_rate=1e-3, optimizer=optimizer)
    healed = distill_checkpoint(
        resolve_source(str(source)), tmp_path / "out", settings, data_for(name, tmp_path), samples=40
    )
    run = healed.distillation
    assert run["after"]["drift"] < 0.99 * run["before"]["drift"]
    verdict = verify(tmp_path / "out")  # files outside of the attention are bit-identical, drift as recorded
    assert not verdict.failures
    assert not list(tmp_path.glob(".out*"))
    assert json.loads((tmp_path / "out" / "heads_report.json").read_text())["distillation"] == run


def test_healing_that_only_makes_it_worse_is_refused(run: Run, converted: Callable[..., Path], tmp_path: Path):
    source = converted("bert", MgkSpec(merge=2))
    found = run(
        "distill", source, "--data", "random", "--samples", 64, "--batch-size", 8, "--steps", 2, "--learning-rate", 100,
        "--output", tmp_path / "out",
    )  # fmt: skip
    assert found.code == 1 and "healing only made it worse: kl" in found.err
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob("*out*"))


@pytest.mark.parametrize(("optimizer", "rate", "retreats"), [("muon", 0.2, 2), ("adamw", 0.02, 2), ("adamw", 0.015, 1)])
def test_a_run_that_is_led_astray_goes_back_and_on_at_a_lower_rate(
    optimizer: Any, rate: float, retreats: int, converted: Callable[..., Path], tmp_path: Path
):
    """The same bits whether it was interrupted on the way or not."""
    source = resolve_source(str(converted("bert", CollabSpec(rank=12))))
    settings = DistillSettings(optimizer=optimizer, steps=16, batch_size=8, evaluations=8, learning_rate=rate)
    data = data_for("bert", tmp_path)
    whole = distill_checkpoint(source, tmp_path / "whole", settings, data, samples=64).distillation
    start, *points = whole["curve"]
    assert whole["retreats"] == retreats and min(point["kl"] for point in points[:4]) > start["kl"]
    assert whole["after"]["kl"] < 0.99 * start["kl"]
    with pytest.raises(KeyboardInterrupt):
        distill_checkpoint(source, tmp_path / "parts", settings, data, samples=64, progress=interrupted(11))
    parts = distill_checkpoint(source, tmp_path / "parts", settings, data, samples=64, resume=True).distillation
    one, other = (load_file(tmp_path / kind / "model.safetensors") for kind in ("whole", "parts"))
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert parts["retreats"] == whole["retreats"]


def interrupted(steps: int) -> Callable[[str, int, int], None]:
    """A progress callback by which the user interrupts a run after so many steps."""
    seen = []

    def progress(what: str, done: int, total: int) -> None:
        if what == "healing":
            seen.append(done)
        if len(seen) == steps:
            raise KeyboardInterrupt

    return progress


@only(
    "bert-mhe-attention",
    student={
        "bert-mhe": ("bert", MheSpec()),
        "vit-mhe": ("vit", MheSpec()),
        "marian-collab": ("marian", CollabSpec(rank=4)),
    },
    train=["attention", "all"],
)
def test_resumed_equals_uninterrupted_to_the_bit(
    student: tuple[str, HeadsSpec], train: Any, converted: Callable[..., Path], tmp_path: Path
):
    name, source = student[0], resolve_source(str(converted(*student)))
    settings = DistillSettings(steps=12, batch_size=8, evaluations=3, train=train)
    data = data_for(name, tmp_path)
    whole = distill_checkpoint(source, tmp_path / "whole", settings, data, samples=64)
    with pytest.raises(KeyboardInterrupt, match="--resume"):
        distill_checkpoint(source, tmp_path / "parts", settings, data, samples=64, progress=interrupted(7))
    assert not (tmp_path / "parts").exists()
    with pytest.raises(HeadsError, match="holds an interrupted run: pass --resume"):
        distill_checkpoint(source, tmp_path / "parts", settings, data, samples=64)
    with pytest.raises(HeadsError, match="had seed 0, not 1: resume it with the options"):
        distill_checkpoint(source, tmp_path / "parts", replace(settings, seed=1), data, samples=64, resume=True)
    parts = distill_checkpoint(source, tmp_path / "parts", settings, data, samples=64, resume=True)
    one, other = (load_file(tmp_path / kind / "model.safetensors") for kind in ("whole", "parts"))
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    curves = [[(p["step"], p["drift"]) for p in found.distillation["curve"]] for found in (whole, parts)]
    assert curves[0] == curves[1]
    assert not verify(tmp_path / "whole").failures
    before = load_file(source.folder / "model.safetensors")
    assert any(not torch.equal(before[key], one[key]) for key in one)


def test_task_loss_learns_labels(run: Run, tmp_path: Path):
    model = BertForSequenceClassification(bert_config(num_labels=2))
    randomize(model, seed=1)
    folder = save_checkpoint(model, tmp_path / "classifier")
    rows = [{"text": f"{WORDS[index % 2]} {WORDS[2 + index % 40]}", "label": index % 2} for index in range(120)]
    data = write_rows(tmp_path / "data.jsonl", rows)
    assert run("convert", folder, "--to", "mhe", "--output", tmp_path / "mhe", "--calibrate", data).code == 0
    found = run(
        "distill", tmp_path / "mhe", "--data", data, "--label", "label", "--losses", "output=0.1,task=1", "--steps", 25,
        "--train", "all", "--batch-size", 16, "--learning-rate", 0.005, "--output", tmp_path / "out", "--json",
    )  # fmt: skip
    assert found.code == 0, found.err
    healed = found.json["distillation"]
    assert healed["losses"] == {"output": 0.1, "task": 1.0}
    assert healed["after"]["loss"] < 0.9 * healed["before"]["loss"]


@only("forked", start=["forked", "launched"])
def test_two_processes_equal_one_on_the_same_global_batch(
    run: Run, converted: Callable[..., Path], sentences: Path, tmp_path: Path, start: str
):
    source = converted("bert", MheSpec())
    common = ["--data", str(sentences), "--steps", "6", "--learning-rate", "0.003", "--warmup", "20"]
    common += ["--evaluations", "2", "--device", "cpu", "--json", "--no-pack"]
    words = ["distill", str(source), *common, "--batch-size", "4", "--output", str(tmp_path / "two")]
    two = launched(2, words) if start == "launched" else forked(2, words, tmp_path)
    one = run("distill", source, *common, "--batch-size", 8, "--output", tmp_path / "one")
    assert one.code == 0, one.err
    records = [json.loads(out)["distillation"] for out in (one.out, two)]
    assert [record["processes"] for record in records] == [1, 2]
    assert [record["batch_size"] for record in records] == [8, 8]
    here, there = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    before = load_file(source / "model.safetensors")
    for key, tensor in here.items():
        if not key.endswith("shared_key.bias"):  # softmax drops it: its gradient is rounding
            assert torch.allclose(tensor, there[key], atol=2e-5), key
    moved = max(float((here[key] - before[key]).abs().max()) for key in here)
    assert moved > 5e-4  # so that the tolerance says something


def test_half_precision_without_a_gpu(
    run: Run, converted: Callable[..., Path], sentences: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    source = converted("bert", MheSpec())
    words = ["distill", source, "--data", sentences, "--steps", 20, "--batch-size", 8, "--output", tmp_path / "out"]
    found = run(*words, "--device", "cpu", "--precision", "float16")
    assert found.code == 1 and "float16 needs a GPU: take --precision bfloat16, or float32" in found.err
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(products, "product_seconds", lambda dtype: {torch.bfloat16: 3, torch.float32: 1}[dtype])
    with pytest.warns(HeadsWarning, match="3 times as long as in float32: take float32"):
        found = run(*words, "--precision", "bfloat16")
    assert found.code == 0, found.err


def test_time_budget_stops_a_run(converted: Callable[..., Path], tmp_path: Path):
    source = resolve_source(str(converted("bert", MheSpec())))
    settings = DistillSettings(minutes=0.02, epochs=1e6, batch_size=8, evaluations=3, learning_rate=3e-3)
    run = distill_checkpoint(source, tmp_path / "out", settings, MADE, samples=64).distillation
    assert run["seconds"] >= 1.2
    assert len(run["curve"]) == 4


def test_teacher_writes_the_targets_that_data_lacks(converted: Callable[..., Path], sentences: Path, tmp_path: Path):
    source, gentle = resolve_source(str(converted("marian", MheSpec()))), replace(SHORT, warmup=20)
    run = distill_checkpoint(
        source, tmp_path / "out", gentle, CalibrationChoice(str(sentences)), samples=40
    ).distillation
    assert "targets by the original" in run["data"]


def test_gradient_checkpointing_changes_nothing(converted: Callable[..., Path], tmp_path: Path):
    source = resolve_source(str(converted("bert", PrunedSpec(keep=0.5, score="weights"))))
    outputs = []
    for checkpointing in (False, True):
        settings = DistillSettings(steps=4, batch_size=8, evaluations=1, gradient_checkpointing=checkpointing)
        output = tmp_path / f"out-{checkpointing}"
        distill_checkpoint(source, output, settings, MADE, samples=64)
        outputs.append(load_file(output / "model.safetensors"))
    assert all(torch.allclose(outputs[0][key], outputs[1][key], atol=1e-5) for key in outputs[0])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--data", "none"], "healing needs data"),
        (["--data", "random", "--losses", "logits=1"], "no loss 'logits'"),
        (["--data", "random", "--losses", "embedding=1"], "models without a head"),
        (["--data", "random", "--resume"], "nothing to resume"),
        (["--data", "random", "--label", "label"], "--label is for the loss 'task'"),
        (["--data", "random", "--warmup", "-1"], "'-1' is not a whole number from 0"),
        (["--data", "random", "--optimizer", "sgd"], "invalid choice: 'sgd'"),
        (["--data", "random", "--teacher", "nowhere"], "neither a folder nor a model"),
        (["--data", "random", "--samples", "20", "--batch-size", "64"], "less than the 64 of one step"),
    ],
)
def test_wrong_calls_say_what_to_do(
    run: Run,
    converted: Callable[..., Path],
    tmp_path: Path,
    more: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # nobody waits for a hub that is not there
    found = run("distill", converted("bert", MheSpec()), *more, "--output", tmp_path / "out")
    assert found.code in (1, 2) and message in found.err and "Traceback" not in found.err
    assert len(found.err.strip().splitlines()) == 1 or found.code == 2
    assert not list(tmp_path.glob("*out*"))


def test_students_without_conversion_and_strange_teachers_are_refused(run: Run, converted: Any, tmp_path: Path):
    source = converted("bert", MheSpec())
    plain = run(
        "distill", tmp_path / "bert", "--teacher", tmp_path / "bert", "--data", "random", "--output", tmp_path / "o"
    )
    assert plain.code == 1 and "no converted attention heads" in plain.err
    vit = save_checkpoint(TWINS["vit"].model(), tmp_path / "vit")
    strange = run("distill", source, "--teacher", vit, "--data", "random", "--output", tmp_path / "o")
    assert strange.code == 1 and "name the model that the student was made from" in strange.err


def test_healed_checkpoints_load_as_any_other(converted: Callable[..., Path], tmp_path: Path):
    source = converted("bert", PrunedSpec(keep=0.5, score="weights"))
    report = json.loads((source / "heads_report.json").read_text())
    score = {"task": "fill-mask", "dataset": "dev", "metric": "perplexity", "value": 1234.5}
    (source / "heads_report.json").write_text(json.dumps({**report, "scores": [score], "measured": "# 1234.5"}))
    distill_checkpoint(resolve_source(str(source)), tmp_path / "out", SHORT, MADE, samples=40)
    assert "1234.5" not in (tmp_path / "out" / "README.md").read_text()  # of other weights
    for cls in (AutoModel, AutoModelForMaskedLM):
        _, info = cls.from_pretrained(tmp_path / "out", output_loading_info=True)
        assert not info["unexpected_keys"] or cls is AutoModel
        assert not info["mismatched_keys"]


def test_what_is_trained_is_saved(tmp_path: Path):
    student, _ = hf_heads.convert(TWINS["marian"].model(), CollabSpec(rank=4), calibration="none")
    with torch.no_grad():
        for parameter in trained_parameters(student, "all"):
            parameter.add_(1)
    student.save_pretrained(tmp_path)
    loaded = type(student).from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in student.state_dict().items())
