"""A checkpoint is loaded whole, or refused by the name of what is wrong with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, BertForMaskedLM, BertForSequenceClassification, BertModel, MarianModel

import hf_heads
from hf_heads.core.errors import HeadsError, HeadsWarning
from hf_heads.io.checkpoints.loading import load_source
from hf_heads.io.checkpoints.sources import Source
from tests.support.cli import Run, check_refused
from tests.support.twins import TWINS, bert_config, logits, marian_config, randomize

Change = Callable[[dict[str, torch.Tensor], str], None]


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def drop(tensors: dict[str, torch.Tensor], name: str) -> None:
    del tensors[name]


def add(tensors: dict[str, torch.Tensor], name: str) -> None:
    tensors[name.replace(".0.", ".7.") if ".0." in name else name + "_more"] = tensors[name].clone()


def cut(tensors: dict[str, torch.Tensor], name: str) -> None:
    tensors[name] = tensors[name][1:].clone()


CHANGES = {"missing": (drop, "missing"), "unexpected": (add, "no place"), "mis-shaped": (cut, "makes it")}
OUTSIDE = {
    "bert": ("bert.embeddings.word_embeddings.weight", "bert.encoder.layer.0.intermediate.dense.weight"),
    "vit": ("vit.embeddings.patch_embeddings.projection.weight", "vit.layernorm.weight"),
    "marian": ("model.encoder.layers.0.final_layer_norm.weight", "model.decoder.layers.0.fc1.bias"),
}


@pytest.mark.parametrize("converted", [False, True], ids=["native", "converted"])
@pytest.mark.parametrize("kind", CHANGES)
@pytest.mark.parametrize("host", OUTSIDE)
def test_a_tensor_outside_of_the_attention_is_as_the_config_says_or_named(
    tmp_path: Path, host: str, kind: str, converted: bool
):
    model = TWINS[host].model()
    if converted:
        model, _ = hf_heads.convert(model, hf_heads.LowRankSpec(rank=16), calibration="none")
    change, word = CHANGES[kind]
    for number, name in enumerate(OUTSIDE[host]):
        folder = tmp_path / str(number)
        model.save_pretrained(folder)
        change_weights(folder, lambda tensors, name=name: change(tensors, name))
        with pytest.raises(HeadsError, match=word) as caught:
            load_source(Source("it", folder))
        assert name.removesuffix("weight").removesuffix("bias").split(".0.")[0] in str(caught.value)


def test_every_command_refuses_a_checkpoint_without_its_embeddings(run: Run, bert_folder: Path, tmp_path: Path):
    to = ("--to", "collab", "--rank", 10, "--calibrate", "none")
    assert run("convert", bert_folder, *to, "--output", tmp_path / "whole").code == 0
    name = "bert.embeddings.word_embeddings.weight"
    change_weights(bert_folder, lambda tensors: drop(tensors, name))
    for command in (
        ("convert", bert_folder, *to, "--output", tmp_path / "out"),
        ("verify", tmp_path / "whole", "--against", bert_folder),
        ("distill", tmp_path / "whole", "--teacher", bert_folder, "--output", tmp_path / "out", "--data", "random"),
        ("importance", bert_folder, "--output", tmp_path / "scores.json"),
        ("compare", bert_folder, tmp_path / "whole", "--output", tmp_path / "found.json"),
    ):
        check_refused(run(*command), f"'{name}' is missing")


def test_a_head_of_a_task_that_is_missing_is_said_and_always_the_same(tmp_path: Path):
    randomize(model := BertModel(bert_config()))
    model.config.architectures = ["BertForSequenceClassification"]
    model.save_pretrained(tmp_path)
    change_weights(tmp_path, lambda tensors: [tensors.pop(name) for name in list(tensors) if "pooler" in name])
    (tmp_path / "config.json").write_text(
        (tmp_path / "config.json").read_text().replace('"BertModel"', '"BertForSequenceClassification"')
    )
    found = []
    for seed in range(2):
        torch.manual_seed(seed)
        with pytest.warns(HeadsWarning, match=r"'it' lacks 'bert\.pooler\.dense\.bias' and 3 more"):
            found.append(load_source(Source("it", tmp_path)))
    assert isinstance(found[0], BertForSequenceClassification)
    inputs = TWINS["bert"].inputs()
    assert torch.equal(logits(found[0], inputs), logits(found[1], inputs))


def test_a_head_of_a_task_that_is_left_over_is_said(run: Run, bert_folder: Path, tmp_path: Path):
    (bert_folder / "config.json").write_text(
        (bert_folder / "config.json").read_text().replace('"BertForMaskedLM"', '"BertModel"')
    )
    options = ("--to", "collab", "--rank", 10, "--calibrate", "none", "--output", tmp_path / "out")
    with pytest.warns(HeadsWarning, match=r"holds 'cls\.predictions\.bias' and 4 more, which BertModel does not use"):
        assert run("convert", bert_folder, *options).code == 0
    kept = load_file(tmp_path / "out" / "model.safetensors")
    assert "cls.predictions.bias" in kept and isinstance(AutoModel.from_pretrained(tmp_path / "out"), BertModel)


def test_what_the_host_computes_or_ties_or_once_wrote_is_no_news(tmp_path: Path, recwarn: pytest.WarningsRecorder):
    TWINS["marian"].model().save_pretrained(tmp_path / "marian")
    TWINS["bert"].model().save_pretrained(tmp_path / "bert")
    ids = {"bert.embeddings.position_ids": torch.arange(40)[None]}
    change_weights(tmp_path / "bert", lambda tensors: tensors.update(ids))
    MarianModel(marian_config()).save_pretrained(tmp_path / "base")
    change_weights(tmp_path / "base", lambda tensors: [drop(tensors, n) for n in list(tensors) if "positions" in n])
    for name in ("marian", "bert", "base"):
        load_source(Source("it", tmp_path / name))
    assert not [one for one in recwarn if issubclass(one.category, HeadsWarning)]
    assert BertForMaskedLM.from_pretrained(tmp_path / "bert")
