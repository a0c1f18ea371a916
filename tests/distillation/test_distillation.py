"""Healing: the losses against their formulas, the Trainer's run, resuming, several processes, the command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.test_cli import Run
from transformers import AutoModel, AutoModelForMaskedLM, BertForSequenceClassification

import hf_heads
from hf_heads import CollabSpec, MgkSpec, MheSpec, PrunedSpec
from hf_heads.checkpoints.sources import resolve_source
from hf_heads.conversion.checkpoint import convert_checkpoint
from hf_heads.conversion.request import ConversionRequest
from hf_heads.data.calibration import CalibrationChoice
from hf_heads.distillation.checkpoint import distill_checkpoint
from hf_heads.distillation.losses import Matching
from hf_heads.distillation.muon import Muon, orthogonalized
from hf_heads.distillation.schedule import LengthSampler
from hf_heads.distillation.settings import DistillSettings
from hf_heads.distillation.trainer import trained_parameters
from hf_heads.errors import HeadsError
from hf_heads.evaluation.verify import verify
from hf_heads.hosts.blocks import find_blocks
from hf_heads.vocabulary import RANDOM
from tests.conftest import WORDS, save_tokenizer
from tests.support.twins import TWINS, bert_config, randomize


def data_for(name: str, tmp_path: Path) -> CalibrationChoice:
    """Random inputs; pairs of texts for a text-to-text model, whose own continuations would take long."""
    if name != "marian":
        return MADE
    path = tmp_path / "pairs.jsonl"
    rows = [{"en": " ".join(WORDS[i : i + 4]), "de": " ".join(WORDS[i + 3 : i + 9])} for i in range(80)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return CalibrationChoice(str(path), ("en", "de"))


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


def twin_folder(name: str, folder: Path) -> Path:
    """A saved twin with what it needs to read data."""
    TWINS[name].model().save_pretrained(folder)
    save_tokenizer(folder)
    return folder


@pytest.fixture
def converted(tmp_path: Path) -> Callable[..., Path]:
    """Makes a converted checkpoint of a twin; the original is the folder of the twin's name."""

    def make(name: str, spec: Any) -> Path:
        source = twin_folder(name, tmp_path / name)
        output = tmp_path / f"{name}-{spec.method}"
        convert_checkpoint(ConversionRequest(str(source), spec, calibration=CalibrationChoice(samples=16)), output)
        return output

    return make


def mean_over_examples(values: torch.Tensor, mask: torch.Tensor) -> float:
    """Each example's mean over its tokens, one by one, then their mean."""
    return sum(float(row[keep.bool()].mean()) for row, keep in zip(values, mask, strict=True)) / len(values)


def variance(states: torch.Tensor, mask: torch.Tensor) -> float:
    rows = states[mask.bool()].double()
    return float((rows - rows.mean(0)).square().sum(-1).mean())


def test_losses_are_their_formulas():
    twin = TWINS["bert"]
    teacher, inputs = twin.model(), twin.inputs()
    student, _ = hf_heads.convert(teacher, CollabSpec(rank=4))
    mask = inputs["attention_mask"]
    with torch.no_grad():
        here, there = (
            model(**inputs, output_hidden_states=True, output_attentions=True) for model in (student, teacher)
        )
    wanted = {
        "output": mean_over_examples(
            (there.logits.softmax(-1) * (there.logits.log_softmax(-1) - here.logits.log_softmax(-1))).sum(-1), mask
        ),
        "hidden": sum(
            mean_over_examples((one - other).square().sum(-1), mask) / variance(other, mask)
            for one, other in zip(here.hidden_states[1:], there.hidden_states[1:], strict=True)
        )
        / 2,
        "attention": sum(
            mean_over_examples((other * (other / one).log()).nan_to_num(0).sum(-1).mean(1), mask)
            for one, other in zip(here.attentions, there.attentions, strict=True)
        )
        / 2,
    }
    for name, value in wanted.items():
        matching = Matching(student, teacher, {name: 2.0}, [inputs])
        loss, _ = matching(student, inputs)
        matching.close()
        assert loss.item() == pytest.approx(2 * value, rel=1e-4), name


def test_block_loss_compares_what_the_output_projections_give():
    twin = TWINS["marian"]
    teacher, inputs = twin.model(), twin.inputs()
    student, _ = hf_heads.convert(teacher, MheSpec())
    seen: dict[str, list[torch.Tensor]] = {}
    for model in (student, teacher):
        for block in find_blocks(model):
            block.output.register_forward_hook(
                lambda _, __, out, name=block.name: seen.setdefault(name, []).append(out)
            )
    with torch.no_grad():
        student(**inputs)
        teacher(**inputs)
    value = 0.0
    for name, (one, other) in seen.items():
        mask = inputs["attention_mask" if name.startswith("encoder") else "decoder_attention_mask"]
        value += mean_over_examples((one - other).square().sum(-1), mask) / variance(other, mask) / len(seen)
    matching = Matching(student, teacher, {"blocks": 1.0}, [inputs])
    assert matching(student, inputs)[0].item() == pytest.approx(value, rel=1e-4)


def test_pruned_maps_are_compared_with_the_heads_that_were_kept():
    twin = TWINS["vit"]
    teacher, inputs = twin.model(), twin.inputs()
    student, _ = hf_heads.convert(teacher, {"layers.0.*": PrunedSpec(kept=(1, 3)), "*": PrunedSpec(kept=(0, 1, 2, 3))})
    loss = Matching(student, teacher, {"attention": 1.0}, [inputs])(student, inputs)[0]
    # The first layer's inputs are the same, so its maps are; only later layers can differ.
    with torch.no_grad():
        here, there = (model(**inputs, output_attentions=True).attentions for model in (student, teacher))
    assert torch.allclose(here[0], there[0][:, [1, 3]], atol=1e-6)
    later = (there[1] * (there[1] / here[1]).log()).sum(-1).mean()
    assert loss.item() == pytest.approx(later.item() / 2, rel=1e-3)


def test_what_has_no_counterpart_is_refused():
    teacher = TWINS["bert"].model()
    inputs = TWINS["bert"].inputs()
    merged, _ = hf_heads.convert(teacher, MgkSpec(merge=2))
    with pytest.raises(HeadsError, match="none of the teacher's"):
        Matching(merged, teacher, {"attention": 1.0}, [inputs])
    with pytest.raises(HeadsError, match=r"no loss 'logits'\. Losses: output"):
        DistillSettings(losses={"logits": 1.0})
    with pytest.raises(HeadsError, match="optimizer is 'sgd', expected one of muon, adamw"):
        DistillSettings(optimizer="sgd")  # type: ignore[arg-type]
    with pytest.raises(HeadsError, match="models without a head"):
        Matching(merged, teacher, {"embedding": 1.0}, [inputs])


def test_only_converted_attention_is_trained_unless_all():
    student, _ = hf_heads.convert(TWINS["bert"].model(), MheSpec(), blocks="encoder.layer.1.*")
    names = {id(p): name for name, p in student.named_parameters()}
    chosen = {names[id(p)] for p in trained_parameters(student, "attention")}
    assert chosen and all(name.startswith("bert.encoder.layer.1.attention.") for name in chosen)
    assert any("output.dense.weight" in name for name in chosen)
    assert len(trained_parameters(student, "all")) == len(list(student.parameters()))


def test_what_is_trained_is_saved(tmp_path: Path):
    student, _ = hf_heads.convert(TWINS["marian"].model(), CollabSpec(rank=4))
    with torch.no_grad():
        for parameter in trained_parameters(student, "all"):
            parameter.add_(1)
    student.save_pretrained(tmp_path)
    loaded = type(student).from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in student.state_dict().items())


def test_order_depends_on_seed_and_epoch_alone_and_covers_all():
    lengths = [index % 7 + 1 for index in range(50)]
    sampler = LengthSampler(lengths, 8, seed=3)
    first = list(sampler)
    assert sorted(first) == list(range(50)) and first == list(sampler)
    sampler.set_epoch(1)
    assert list(sampler) != first
    spread = [
        max(lengths[i] for i in first[b : b + 8]) - min(lengths[i] for i in first[b : b + 8]) for b in range(0, 48, 8)
    ]
    assert sum(spread) / len(spread) < 2.5  # of 6


def test_orthogonalized_has_equal_singular_values_and_the_same_directions():
    matrix = torch.randn(6, 20, generator=torch.Generator().manual_seed(0)) @ torch.diag(torch.logspace(0, -1, 20))
    for one in (matrix, matrix.mT):
        values = torch.linalg.svdvals(orthogonalized(one))
        assert values.min() > 0.6 and values.max() < 1.3
        exact = torch.linalg.svd(one, full_matrices=False)
        assert torch.cosine_similarity(orthogonalized(one).flatten(), (exact[0] @ exact[2]).flatten(), 0) > 0.97


def test_adam_part_of_the_optimizer_is_torchs():
    start = torch.randn(5, generator=torch.Generator().manual_seed(0))
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    optimizers = Muon([ours], lr=0.01), torch.optim.Adam([theirs], lr=0.01, betas=(0.9, 0.98), eps=1e-6)
    for _ in range(5):
        for parameter, optimizer in zip((ours, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            (parameter**4).sum().backward()
            optimizer.step()
    assert torch.allclose(ours, theirs, atol=1e-7)


@pytest.mark.parametrize(
    ("name", "spec"),
    [
        ("bert", MheSpec()),
        ("vit", CollabSpec(rank=4)),
        ("marian", PrunedSpec(keep=0.5, score="weights")),
        ("bert", MgkSpec(merge=2)),
    ],
)
@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_healing_lowers_the_drift_and_leaves_the_rest_alone(
    name: str, spec: Any, optimizer: Any, converted: Callable[..., Path], tmp_path: Path
):
    source = converted(name, spec)
    settings = DistillSettings(steps=30, batch_size=8, evaluations=3, learning_rate=1e-3, optimizer=optimizer)
    healed = distill_checkpoint(
        resolve_source(str(source)), tmp_path / "out", settings, data_for(name, tmp_path), samples=64
    )
    run = healed.distillation
    assert run["after"]["drift"] < 0.99 * run["before"]["drift"]
    verdict = verify(tmp_path / "out")  # files outside of the attention are bit-identical, drift as recorded
    assert not verdict.failures
    assert not list(tmp_path.glob("*.training")) and not list(tmp_path.glob(".out*"))
    assert json.loads((tmp_path / "out" / "heads_report.json").read_text())["distillation"] == run


def test_healing_that_only_makes_it_worse_is_refused(run: Run, converted: Callable[..., Path], tmp_path: Path):
    source = converted("bert", MgkSpec(merge=2))
    found = run(
        "distill", source, "--data", "random", "--samples", 64, "--batch-size", 8, "--steps", 4, "--learning-rate", 3,
        "--output", tmp_path / "out",
    )  # fmt: skip
    assert found.code == 1 and "healing only made it worse: kl" in found.err
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob("out*"))


def interrupted(steps: int) -> Callable[[str, int, int], None]:
    """A progress callback by which the user interrupts a run after so many steps."""
    seen = []

    def progress(what: str, done: int, total: int) -> None:
        if what == "healing":
            seen.append(done)
        if len(seen) == steps:
            raise KeyboardInterrupt

    return progress


@pytest.mark.parametrize(("name", "spec"), [("bert", MheSpec()), ("vit", MheSpec()), ("marian", CollabSpec(rank=4))])
@pytest.mark.parametrize("train", ["attention", "all"])
def test_resumed_equals_uninterrupted_to_the_bit(
    name: str, spec: Any, train: Any, converted: Callable[..., Path], tmp_path: Path
):
    source = resolve_source(str(converted(name, spec)))
    settings = DistillSettings(steps=24, batch_size=8, evaluations=6, train=train)
    data = data_for(name, tmp_path)
    whole = distill_checkpoint(source, tmp_path / "whole", settings, data, samples=64)
    with pytest.raises(KeyboardInterrupt, match="--resume"):
        distill_checkpoint(source, tmp_path / "parts", settings, data, samples=64, progress=interrupted(14))
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
    folder, data = tmp_path / "classifier", tmp_path / "data.jsonl"
    model = BertForSequenceClassification(bert_config(num_labels=2))
    randomize(model, seed=1)
    model.save_pretrained(folder)
    save_tokenizer(folder)
    rows = [{"text": f"{WORDS[index % 2]} {WORDS[2 + index % 40]}", "label": index % 2} for index in range(120)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run("convert", folder, "--to", "mhe", "--output", tmp_path / "mhe", "--calibration-samples", 16).code == 0
    found = run(
        "distill", tmp_path / "mhe", "--data", data, "--label", "label", "--losses", "output=0.1,task=1", "--steps", 40,
        "--train", "all", "--batch-size", 16, "--learning-rate", 0.005, "--output", tmp_path / "out", "--json",
    )  # fmt: skip
    assert found.code == 0, found.err
    healed = found.json["distillation"]
    assert healed["losses"] == {"output": 0.1, "task": 1.0}
    assert healed["after"]["loss"] < 0.9 * healed["before"]["loss"]


def test_two_processes_equal_one_on_the_same_global_batch(
    converted: Callable[..., Path], sentences: Path, tmp_path: Path
):
    source = converted("bert", MheSpec())
    common = [
        "--data",
        str(sentences),
        "--steps",
        "6",
        "--learning-rate",
        "0.003",
        "--evaluations",
        "2",
        "--device",
        "cpu",
        "--json",
    ]
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    module = ["-m", "hf_heads.cli", "distill", str(source), *common]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    two = subprocess.run(
        [*launch, *module, "--batch-size", "4", "--output", str(tmp_path / "two")],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert two.returncode == 0, two.stderr[-2000:]
    one = subprocess.run(
        [sys.executable, *module, "--batch-size", "8", "--output", str(tmp_path / "one")],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert one.returncode == 0, one.stderr[-2000:]
    records = [json.loads(found.stdout)["distillation"] for found in (one, two)]
    assert [record["processes"] for record in records] == [1, 2]
    assert [record["batch_size"] for record in records] == [8, 8]
    here, there = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    before = load_file(source / "model.safetensors")
    for key, tensor in here.items():
        assert torch.allclose(tensor, there[key], atol=2e-5), key
    moved = max(float((here[key] - before[key]).abs().max()) for key in here)
    assert moved > 5e-4  # so that the tolerance says something


def test_time_budget_stops_a_run(converted: Callable[..., Path], tmp_path: Path):
    source = resolve_source(str(converted("bert", MheSpec())))
    settings = DistillSettings(minutes=0.05, epochs=1e6, batch_size=8, evaluations=3)
    run = distill_checkpoint(source, tmp_path / "out", settings, MADE, samples=64).distillation
    assert 3 <= run["seconds"] < 20
    assert len(run["curve"]) == 4


def test_teacher_writes_the_targets_that_data_lacks(converted: Callable[..., Path], sentences: Path, tmp_path: Path):
    source = resolve_source(str(converted("marian", MheSpec())))
    run = distill_checkpoint(source, tmp_path / "out", SHORT, CalibrationChoice(str(sentences))).distillation
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
        (["--data", "random", "--warmup", "-1"], "warmup -1 is negative"),
        (["--data", "random", "--optimizer", "sgd"], "invalid choice: 'sgd'"),
        (["--data", "random", "--teacher", "nowhere"], "neither a folder nor a model"),
        (["--data", "random", "--samples", "20", "--batch-size", "64"], "less than the 64 of one step"),
    ],
)
def test_wrong_calls_say_what_to_do(
    run: Run, converted: Callable[..., Path], tmp_path: Path, more: list[str], message: str
):
    found = run("distill", converted("bert", MheSpec()), *more, "--output", tmp_path / "out")
    assert found.code in (1, 2) and message in found.err and "Traceback" not in found.err
    assert len(found.err.strip().splitlines()) == 1 or found.code == 2
    assert not list(tmp_path.glob("out*"))


def test_students_without_conversion_and_strange_teachers_are_refused(run: Run, converted: Any, tmp_path: Path):
    source = converted("bert", MheSpec())
    plain = run(
        "distill", tmp_path / "bert", "--teacher", tmp_path / "bert", "--data", "random", "--output", tmp_path / "o"
    )
    assert plain.code == 1 and "no converted attention heads" in plain.err
    vit = twin_folder("vit", tmp_path / "vit")
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
