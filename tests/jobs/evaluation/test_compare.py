"""The command compare, and the drift that it measures."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from torch.nn.functional import cosine_similarity
from transformers import BertForMaskedLM, BertModel

import hf_heads
from hf_heads import CollabSpec, MgkSpec, PrunedSpec
from hf_heads.attention.hosts.blocks import find_blocks
from hf_heads.jobs.evaluation import compare
from hf_heads.jobs.evaluation.drift import measure_closely, measure_drift, neighbour_overlap
from hf_heads.jobs.evaluation.record import FORMAT, read_comparison
from tests.support.cli import Run, check_refused, leftovers
from tests.support.files import save_checkpoint, write_rows
from tests.support.tokenizers import save_image_processor, save_marian_tokenizer
from tests.support.twins import HEADS, LAYERS, TWINS, WIDTH, bert_config, randomize

FAST = ("--lengths", 8, "--batches", 2, "--seconds", 0, "--resamples", 50)


@pytest.fixture
def embedder(tmp_path: Path) -> Path:
    model = BertModel(bert_config())
    randomize(model, seed=1)
    return save_checkpoint(model, tmp_path / "embedder")


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    rows = [
        {"a": f"word{i} word{2 * i}", "b": f"word{2 * i} word{i // 3} word7", "score": (i * 7) % 11} for i in range(30)
    ]
    return write_rows(tmp_path / "pairs.jsonl", rows)


def converted(run: Run, source: Path, name: str, *arguments: object) -> Path:
    folder = source.parent / name
    found = run(
        "convert", source, "--to", *arguments, "--calibration-samples", 16, "--output", folder, "--overwrite"
    )  # fmt: skip
    assert found.code == 0, found.err
    return folder


# Drift.


@pytest.mark.parametrize("name", list(TWINS))
def test_a_lossless_model_has_no_drift_in_any_block(name: str):
    model, inputs = TWINS[name].model("sdpa"), TWINS[name].inputs()
    same, _ = hf_heads.convert(model, CollabSpec(rank=WIDTH), calibration="none")
    drift, errors = measure_closely(same, model, [inputs])
    assert list(errors) == [block.name for block in find_blocks(model)]
    assert max(errors.values()) < 1e-8 and drift.attention_distance < 1e-4
    assert drift.cosine == pytest.approx(1) and drift.neighbours is None
    assert model.config._attn_implementation == same.config._attn_implementation == "sdpa"


def test_block_errors_and_maps_are_those_of_plain_loops():
    model, inputs = TWINS["bert"].model(), TWINS["bert"].inputs()
    pruned, _ = hf_heads.convert(
        model, {"*layer.0*": PrunedSpec(kept=(1, 3)), "*layer.1*": PrunedSpec(kept=())}, calibration="none"
    )
    drift, errors = measure_closely(pruned, model, [inputs])
    plain = measure_drift(pruned, model, [inputs])
    assert (plain.cosine, plain.kl, plain.agreement) == (drift.cosine, drift.kl, drift.agreement)
    with torch.no_grad():
        here, there = (one(**inputs, output_attentions=True).attentions[0] for one in (pruned, model))
    rows = [(i, j) for i, j in inputs["attention_mask"].nonzero().tolist()]
    distances = [float((here[i, :, j].mean(0) - there[i, :, j].mean(0)).abs().sum()) / 2 for i, j in rows]
    assert drift.attention_distance == pytest.approx(sum(distances) / len(rows), rel=1e-5)  # the other has no heads
    outputs: list[torch.Tensor] = []
    for one in (pruned, model):
        find_blocks(one)[1].output.register_forward_hook(lambda _, inputs, output: outputs.append(output))
        with torch.no_grad():
            one(**inputs)
    wanted = sum(float((outputs[0][i, j] - outputs[1][i, j]).square().sum()) for i, j in rows)
    wanted /= sum(float(outputs[1][i, j].square().sum()) for i, j in rows)
    assert errors[find_blocks(model)[1].name] == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("spec", [MgkSpec(merge=2), MgkSpec(kernel="linear"), MgkSpec(assignment="hard")], ids=str)
def test_maps_of_mixtures_are_compared_too(spec: MgkSpec):
    model = TWINS["vit"].model()
    other, _ = hf_heads.convert(model, spec, calibration="none")
    drift, errors = measure_closely(other, model, [TWINS["vit"].inputs()])
    assert 0 <= drift.attention_distance <= 1 and len(errors) == LAYERS


def test_neighbours_are_those_of_sorted_cosines():
    generator = torch.Generator().manual_seed(0)
    here, there = torch.randn(9, 4, generator=generator), torch.randn(9, 6, generator=generator)
    common = 0
    for i in range(9):
        near = []
        for one in (here, there):
            others = [j for j in range(9) if j != i]
            near.append(set(sorted(others, key=lambda j: -float(cosine_similarity(one[i], one[j], dim=0)))[:3]))
        common += len(near[0] & near[1])
    assert neighbour_overlap(here, there, 3) == pytest.approx(common / 27)
    assert neighbour_overlap(here, here, 7) == 1 and neighbour_overlap(here, there, 8) is None


# The command.


def test_compare_an_embedder(run: Run, embedder: Path, pairs: Path, tmp_path: Path):
    half = converted(run, embedder, "half", "pruned", "--keep", 0.5)
    whole = converted(run, embedder, "whole", "collab", "--rank", WIDTH)
    output = tmp_path / "found.json"
    found = run("compare", embedder, half, whole, "--data", pairs, *FAST, "--output", output, "--json")
    assert found.code == 0, found.err
    record = found.json
    assert json.loads(output.read_text()) == record
    assert (record["format"], record["kind"], record["original"]) == (FORMAT, "comparison", "./embedder")
    assert record["metric"]["name"] == "spearman" and record["metric"]["examples"] == 30
    assert (record["lengths"], record["batches"], record["device"]) == ([8], [2], "cpu")
    original, pruned, same, control = record["models"]
    assert [one["role"] for one in record["models"]] == ["original", "converted", "converted", "control"]
    assert [one["name"] for one in record["models"][:3]] == ["embedder", "half", "whole"]
    assert (original["methods"], pruned["methods"], same["methods"]) == ([], ["pruned"], ["collab"])
    assert same["settings"] == f"collab rank {WIDTH} cp, {HEADS} heads" and "pruned" in pruned["settings"]
    assert "random tokens" in pruned["calibration"] and pruned["healed"] is None
    assert original["drift"] is None and original["blocks"][0]["drift"] is None
    assert same["drift"]["cosine"] == pytest.approx(1) and same["drift"]["neighbours"] == 1
    assert "kl" not in same["drift"] and same["drift"]["attention_distance"] < 1e-4
    assert same["score"]["difference"] == pytest.approx(0, abs=1e-6)
    assert pruned["score"]["difference"] == pytest.approx(pruned["score"]["value"] - original["score"]["value"])
    assert pruned["multiply_adds"]["8"] < original["multiply_adds"]["8"]
    assert [(cell["batch"], cell["length"]) for cell in pruned["latency"]] == [(2, 8)]
    assert original["latency"][0]["ratio"] == 1 and original["peak_memory"][0]["bytes"] > 0
    assert not original["generation"] and not control["latency"]
    values = LAYERS * (2 * WIDTH * WIDTH + 2 * WIDTH)
    assert control["attention_parameters"] == sum(block["parameters"] for block in control["blocks"]) == values
    assert control["multiply_adds"]["8"] < pruned["multiply_adds"]["8"] + 1 and control["drift"]["cosine"] < 1
    assert [block["heads"] for block in original["blocks"]] == [HEADS] * LAYERS
    assert read_comparison(output).reference.name == "embedder"


def test_a_model_that_overflows_is_refused_by_name_before_it_is_timed(
    run: Run, embedder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    half = converted(run, embedder, "half", "pruned", "--keep", 0.5)
    weights = load_file(half / "model.safetensors")
    save_file({name: value * 1e30 for name, value in weights.items()}, half / "model.safetensors", {"format": "pt"})
    output = tmp_path / "found.json"
    for name in ("count_multiply_adds", "measure_memory", "measure_latency"):
        monkeypatch.setattr(f"hf_heads.jobs.evaluation.compare.{name}", lambda *_: pytest.fail("too late"))
    quick = ("compare", embedder, half, *FAST, "--no-control", "--drift-samples", 8)
    check_refused(run(*quick, "--output", output), "the outputs of 'half'", "NaN or Inf")
    assert not output.exists()
    check_refused(run("convert", half, "--to", "pruned", "--keep", 1, "--output", tmp_path / "again"), "NaN or Inf")
    check_refused(run("ablate", half, "--calibration-samples", 8), "is not finite")


@pytest.mark.parametrize(("load", "busy"), [(1e6, True), (0.0, False), (None, False)])
def test_speeds_of_a_busy_machine_carry_a_warning(
    run: Run, embedder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, load: float | None, busy: bool
):
    monkeypatch.setattr(compare, "machine_load", lambda: load)
    half = converted(run, embedder, "half", "pruned", "--keep", 0.5, "--score", "weights")
    output = tmp_path / "found.json"
    found = run("compare", embedder, half, *FAST, "--no-control", "--drift-samples", 8, "--output", output)
    assert found.code == 0, found.err
    assert ("the machine was busy" in found.err) == ("the machine was busy" in found.out) == busy
    read = read_comparison(output)
    assert read.load == load and bool(read.busy) == busy
    entries = json.loads(output.read_text())  # files of earlier versions have neither spread nor load
    del entries["load"], entries["cores"]
    for model in entries["models"]:
        for row in model["latency"]:
            del row["ratio_low"], row["ratio_high"]
    output.write_text(json.dumps(entries))
    assert read_comparison(output).models[1].latency[0].ratio_low is None and not read_comparison(output).busy


def test_models_of_one_program_share_its_time(run: Run, embedder: Path, tmp_path: Path):
    """A healed model and the one that it was made from differ in numbers alone."""
    half = converted(run, embedder, "half", "pruned", "--keep", 0.5, "--score", "weights")
    twin, other = tmp_path / "twin", converted(run, embedder, "other", "low-rank", "--rank", 8)
    shutil.copytree(half, twin)
    output = tmp_path / "found.json"
    with patch.object(compare, "measure_latency", wraps=compare.measure_latency) as measured:
        found = run(
            "compare", embedder, half, twin, other, *FAST, "--no-control", "--drift-samples", 8, "--output", output
        )
    assert found.code == 0, found.err
    assert {len(call.args[0]) for call in measured.call_args_list} == {3}
    original, one, same, unlike = read_comparison(output).models
    assert one.latency == same.latency and one.latency != unlike.latency and original.latency[0].ratio == 1


def test_formats_and_what_is_left_out(run: Run, embedder: Path, pairs: Path, tmp_path: Path):
    half = converted(run, embedder, "half", "pruned", "--keep", 0.5)
    quick = ("compare", embedder, half, *FAST, "--no-latency", "--no-control", "--drift-samples", 8)
    shown = run(*quick)  # random data, no score
    assert shown.code == 0, shown.err
    assert "Quality" in shown.out and "ms, " not in shown.out and "no task score" in shown.out
    assert "uniform" not in shown.out
    text = run(*quick, "--data", pairs, "--format", "csv").out
    first, second = csv.DictReader(io.StringIO(text))
    assert (first["name"], second["role"]) == ("embedder", "converted")
    assert float(second["score_difference"]) == pytest.approx(
        float(second["score_value"]) - float(first["score_value"])
    )
    page = tmp_path / "found.md"
    assert run(*quick, "--format", "markdown", "--output", page).out == page.read_text()
    assert "| half | pruned" in page.read_text()


def test_compare_translations_and_images(run: Run, tmp_path: Path):
    marian = save_checkpoint(TWINS["marian"].model(), tmp_path / "marian", save_marian_tokenizer)
    pairs = write_rows(tmp_path / "pairs.jsonl", ({"a": f"word{i} word3", "b": f"word{i}"} for i in range(6)))
    half = converted(run, marian, "half", "pruned", "--keep", 0.5, "--score", "weights")
    found = run("compare", marian, half, "--data", pairs, *FAST, "--drift-samples", 8, "--json")
    assert found.code == 0, found.err
    assert found.json["metric"]["name"] == "bleu" and "sacrebleu" in found.json["versions"]
    assert [cell["batch"] for cell in found.json["models"][1]["generation"]] == [2]
    assert {block["kind"] for block in found.json["models"][0]["blocks"]} == {"self", "causal", "cross"}
    vit = save_checkpoint(TWINS["vit"].model(), tmp_path / "vit", save_image_processor)
    merged = converted(run, vit, "merged", "mgk", "--merge", 2)
    found = run("compare", vit, merged, "--batches", 1, "--seconds", 0, "--drift-samples", 8, "--json")
    assert found.code == 0, found.err
    record = found.json
    assert record["lengths"] == [17] and record["metric"] is None and record["models"][1]["score"] is None
    assert record["models"][1]["latency"][0]["images_per_second"] > 0
    assert {block["kind"] for block in record["models"][1]["blocks"]} == {"self"}
    assert 0 <= record["models"][1]["drift"]["agreement"] <= 1


def test_what_compare_refuses(run: Run, embedder: Path, pairs: Path, tmp_path: Path):
    half = converted(run, embedder, "half", "pruned", "--keep", 0.5)
    config = bert_config()
    config.hidden_size = 16
    narrow = save_checkpoint(BertModel(config), tmp_path / "narrow")
    headed = save_checkpoint(BertForMaskedLM(bert_config()), tmp_path / "headed")
    vit = save_checkpoint(TWINS["vit"].model(), tmp_path / "vit")
    plain = write_rows(tmp_path / "plain.jsonl", [{"text": "word1 word2"}] * 4)
    exists = tmp_path / "there.json"
    exists.write_text("{}")
    before = leftovers(tmp_path)
    for arguments, words, code in (
        ((vit,), ("is a vit, but", "is a bert"), 1),
        ((narrow,), ("has hidden_size 16, but", "has 32"), 1),
        ((headed,), ("holds a BertForMaskedLM, but", "a BertModel"), 1),
        ((tmp_path / "no",), ("neither a folder nor",), 1),
        ((half, "--lengths", "8,41"), ("length 41 exceeds the 40 positions", "--lengths"), 1),
        ((half, "--data", "none"), ("needs inputs",), 1),
        ((half, "--metric", "bleu", "--data", pairs), ("BertModel has no bleu",), 1),
        ((half, "--metric", "spearman"), ("name it with --data",), 1),
        ((half, "--metric", "spearman", "--data", plain), ("two columns of texts",), 1),
        ((half, "--output", exists), ("exists; choose another name or pass --overwrite",), 1),
        ((half, "--output", tmp_path / "x.txt"), ("end it in .json, .md, .csv",), 1),
        ((half, "--metric", "best"), ("invalid choice",), 2),
        ((half, "--lengths", "0"), ("--lengths",), 2),
        ((), ("CONVERTED",), 2),
    ):
        check_refused(run("compare", embedder, *arguments), *words, code=code)
    check_refused(run("compare", half, half), "is converted: leave the control out with --no-control")
    assert leftovers(tmp_path) == before


def test_cards_carry_the_comparisons_numbers(run: Run, embedder: Path, pairs: Path, tmp_path: Path):
    folder = converted(run, embedder, "made", "collab", "--rank", 4)
    for _ in range(2):  # a second time replaces what the first wrote
        found = run("compare", embedder, folder, "--data", pairs, *FAST, "--no-control", "--write-cards", "--json")
        assert found.code == 0, found.err
    card = ModelCard.load(folder / "README.md")
    (score,) = [one for one in card.data.eval_results if one.metric_type == "spearman"]
    assert score.metric_value == found.json["models"][1]["score"]["value"]
    assert score.dataset_name == "pairs.jsonl"
    report = json.loads((folder / "heads_report.json").read_text())
    assert len(report["scores"]) == 1 and report["scores"][0]["original"] == found.json["models"][0]["score"]["value"]
    adds = found.json["models"][1]["multiply_adds"]["8"] / 1e6
    assert card.text.count("## Measured") == 1 and f"{adds:,.1f} (" in card.text
    assert not [name for name in leftovers(folder) if name.endswith(".partial")]


def test_cards_of_others_are_not_written(run: Run, embedder: Path, tmp_path: Path):
    other = tmp_path / "other"
    shutil.copytree(embedder, other)
    found = run("compare", embedder, other, *FAST, "--write-cards")
    check_refused(found, "hf-heads did not make its card")
    assert not (other / "README.md").exists()
