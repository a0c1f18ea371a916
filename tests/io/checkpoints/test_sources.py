"""What is let in: files of the folder itself, never pickle or code, and nothing large before the config is read."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import huggingface_hub
import pytest
from huggingface_hub.errors import RemoteEntryNotFoundError
from transformers import AutoModel

from hf_heads.core.errors import HeadsError
from hf_heads.io.checkpoints.loading import load_source
from hf_heads.io.checkpoints.sources import resolve_source
from hf_heads.io.checkpoints.writing import copy_companions
from tests.support.cli import Run, check_refused, leftovers

WEIGHTS = "model.safetensors"


def refused(folder: Path, words: str) -> None:
    with pytest.raises(HeadsError, match=words):
        resolve_source(str(folder))


class Trap:
    """An object whose pickle makes a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.ckpt"])
@pytest.mark.parametrize("beside", [None, "other.safetensors"])
def test_pickle_is_refused_with_the_fix_and_never_read(
    name: str, beside: str | None, bert_folder: Path, tmp_path: Path
):
    (bert_folder / WEIGHTS).rename(bert_folder / beside) if beside else (bert_folder / WEIGHTS).unlink()
    (bert_folder / name).write_bytes(pickle.dumps(Trap(tmp_path / "trapped")))
    refused(bert_folder, rf"only as pickle \({name}\).*save_pretrained")
    assert not (tmp_path / "trapped").exists()


def test_a_pickle_beside_the_weights_is_not_read(bert_folder: Path, tmp_path: Path):
    (bert_folder / "pytorch_model.bin").write_bytes(pickle.dumps(Trap(tmp_path / "trapped")))
    load_source(resolve_source(str(bert_folder)))
    assert not (tmp_path / "trapped").exists()


def test_code_that_comes_with_a_checkpoint_is_not_run(run: Run, bert_folder: Path, tmp_path: Path):
    code = f"open({str(tmp_path / 'trapped')!r}, 'w')\nfrom transformers import BertConfig as Odd\n"
    (bert_folder / "odd.py").write_text(code)
    config = json.loads((bert_folder / "config.json").read_text())
    entries = {**config, "model_type": "odd", "auto_map": {"AutoConfig": "odd.Odd"}}
    (bert_folder / "config.json").write_text(json.dumps(entries))
    options = ("--to", "collab", "--rank", 8, "--output", tmp_path / "out")
    check_refused(run("convert", bert_folder, *options), "running Python code that comes with it", "never")
    assert not (tmp_path / "trapped").exists()


def test_code_of_a_tokenizer_is_not_run(run: Run, bert_folder: Path, tmp_path: Path):
    (bert_folder / "odd.py").write_text(f"open({str(tmp_path / 'trapped')!r}, 'w')\n")
    settings = {"tokenizer_class": "Odd", "auto_map": {"AutoTokenizer": ["odd.Odd", None]}}
    (bert_folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "data.txt").write_text("word1 word2\n" * 20)
    options = ("--to", "collab", "--rank", 8, "--calibrate", tmp_path / "data.txt", "--output", tmp_path / "out")
    run("convert", bert_folder, *options)  # with the tokenizer of the library, if any
    assert not (tmp_path / "trapped").exists()


@pytest.mark.parametrize("entry", ["../other/model.safetensors", "/etc/passwd", "a/b.safetensors", "..", 3])
def test_entries_of_an_index_stay_in_the_folder(entry: object, bert_folder: Path):
    index = {"weight_map": {"some.tensor": entry}}
    (bert_folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(bert_folder, "places 'some.tensor' in .*, which is not a file of the folder")


@pytest.mark.parametrize("name", ["config.json", WEIGHTS, "tokenizer.json", "heads_report.json", "1_Pooling"])
def test_links_out_of_the_folder_are_not_followed(name: str, bert_folder: Path, tmp_path: Path):
    outside = tmp_path / "outside"
    if name == "1_Pooling":
        outside.mkdir()
        (outside / "config.json").write_text("{}")
    elif (bert_folder / name).exists():
        (bert_folder / name).rename(outside)
    else:
        outside.write_text("{}")
    (bert_folder / name).symlink_to(outside)
    refused(bert_folder, f"'{name}.*' of .* is a link out of the folder")


def as_in_the_cache(folder: Path, hub: Path) -> Path:
    """The files of a folder as the hub's cache keeps them: blobs, and a snapshot of links to them."""
    blobs, snapshot = hub / "models--a--b" / "blobs", hub / "models--a--b" / "snapshots" / ("0" * 40)
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, path in enumerate(sorted(folder.iterdir())):
        shutil.copyfile(path, blobs / str(number))
        (snapshot / path.name).symlink_to(Path("../../blobs") / str(number))
    return snapshot


def test_the_links_of_the_hubs_cache_are_followed(run: Run, bert_folder: Path, tmp_path: Path):
    snapshot = as_in_the_cache(bert_folder, tmp_path / "hub")
    (tmp_path / "short").symlink_to(snapshot)
    for folder in (snapshot, tmp_path / "short"):
        load_source(resolve_source(str(folder)))
    options = ("--to", "collab", "--rank", 8, "--calibrate", "none", "--output", tmp_path / "out")
    assert run("convert", tmp_path / "short", *options).code == 0
    assert not any(path.is_symlink() for path in (tmp_path / "out").iterdir())
    AutoModel.from_pretrained(tmp_path / "out")


@pytest.mark.parametrize("name", ["config.json", WEIGHTS, "tokenizer.json", "heads_report.json"])
def test_pipes_are_refused_and_not_waited_for(name: str, bert_folder: Path):
    (bert_folder / name).unlink(missing_ok=True)
    os.mkfifo(bert_folder / name)
    refused(bert_folder, f"'{name}' of .* is not a regular file")


def test_pipes_and_devices_are_no_data_recipes_or_records(run: Run, bert_folder: Path, tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "texts").mkdir()
    os.mkfifo(tmp_path / "texts" / "data.txt")
    convert = ("convert", bert_folder, "--output", tmp_path / "out")
    for odd in (tmp_path / "pipe", "/dev/zero"):
        check_refused(run(*convert, "--recipe", odd), "not a regular file")
        check_refused(run(*convert, "--to", "pruned", "--scores", odd, "--keep", 0.5), "not a regular file")
        check_refused(run(*convert, "--to", "collab", "--rank", 8, "--calibrate", odd), "not a regular file")
        check_refused(run("report", odd, "--output", tmp_path / "page"), "not a regular file")
    check_refused(
        run(*convert, "--to", "collab", "--rank", 8, "--calibrate", tmp_path / "texts"), "texts/data.txt", "regular"
    )


def test_only_what_belongs_to_a_checkpoint_goes_along(bert_folder: Path, tmp_path: Path):
    ours = {
        "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt", "merges.txt", "source.spm",
        "sentencepiece.bpe.model", "target_vocab.json", "generation_config.json", "preprocessor_config.json",
        "chat_template.jinja", "modules.json", "sentence_bert_config.json", "config_sentence_transformers.json",
        "LICENSE", "NOTICE.txt", "LICENSE-APACHE.md", "1_Pooling/config.json", "2_Dense/config.json",
        "2_Dense/model.safetensors", "additional_chat_templates/tool.jinja",
    }  # fmt: skip
    others = {
        ".env", ".gitattributes", "notes.txt", "train.py", "modeling_odd.py", "secrets.json", "results.csv",
        "LICENSE.py", "pytorch_model.bin", "2_Dense/pytorch_model.bin", "1_Pooling/.env", "runs/events.1",
        "onnx/model.onnx", "onnx/config.json", "data/rows.jsonl", "training_args.bin", "README.md", "heads_report.json",
        "my_texts.txt",
    }  # fmt: skip
    source, target = tmp_path / "source", tmp_path / "target"
    for name in ours | others:
        (source / name).parent.mkdir(exist_ok=True, parents=True)
        (source / name).write_text("x")
    target.mkdir()
    copy_companions(source, target)
    assert {str(path.relative_to(target)) for path in target.rglob("*") if path.is_file()} == ours


class Hub:
    """Stands for the hub: counts what is asked for."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.asked = folder, []
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", self.file)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", self.snapshot)

    def file(self, repo: str, name: str, revision: str | None = None) -> str:
        self.asked.append((name, revision))
        if not (self.folder / name).exists():
            raise RemoteEntryNotFoundError("404", response=MagicMock())
        return str(self.folder / name)

    def snapshot(self, repo: str, revision: str | None = None, allow_patterns: Any = None) -> str:
        self.asked.append(("all", revision))
        return str(self.folder)


def test_a_model_that_cannot_be_converted_costs_its_config_alone(
    bert_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    snapshot = as_in_the_cache(bert_folder, tmp_path / "hub")
    hub = Hub(snapshot, monkeypatch)
    found = resolve_source("a/b", "main")
    assert hub.asked == [("config.json", "main"), ("all", "0" * 40)]  # both of one commit
    assert found.revision == "0" * 40 and found.base_model == "a/b"
    config = json.loads((bert_folder / "config.json").read_text())
    (snapshot / "config.json").unlink()
    for entries, words in (
        ({"model_type": "deberta"}, "cannot convert 'deberta'"),
        ({"model_type": "odd"}, "no adapter for 'odd'"),
        ({"model_type": ["bert"]}, "names no model_type"),
        ({}, "names no model_type"),
        ({**config, "position_embedding_type": "relative_key"}, "cannot convert 'bert'"),
    ):
        (snapshot / "config.json").write_text(json.dumps(entries))
        hub.asked.clear()
        refused(Path("a/b"), words)
        assert hub.asked == [("config.json", None)]
    (snapshot / "config.json").unlink()
    refused(Path("a/b"), "has no config.json")
    assert "all" not in [name for name, _ in hub.asked]


def test_an_output_holds_no_code_but_our_own(run: Run, bert_folder: Path, tmp_path: Path):
    (bert_folder / "modeling_odd.py").write_text("")
    (bert_folder / ".env").write_text("HF_TOKEN=secret")
    options = ("--to", "collab", "--rank", 8, "--calibrate", "none", "--output", tmp_path / "out")
    assert run("convert", bert_folder, *options).code == 0
    assert [name for name in leftovers(tmp_path / "out") if name.endswith(".py")] == ["modeling_heads_bert.py"]
    assert ".env" not in leftovers(tmp_path / "out")
