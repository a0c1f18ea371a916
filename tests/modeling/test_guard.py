"""No road leads a native class to our checkpoint's weights with random attention, but those that the documents name."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, BertForSequenceClassification, BertModel, PreTrainedModel

import hf_heads
from hf_heads import CollabSpec, models
from hf_heads.modeling.configuration import derived_config
from tests.support.twins import TWINS, bert_config, logits


class Custom(BertForSequenceClassification):
    """A user's own class on a native one."""


class Wrapper(PreTrainedModel):
    """A user's own model around one of any architecture."""

    config_class = models.HeadsBertConfig
    base_model_prefix = "inner"

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.inner = AutoModel.from_config(config)
        self.post_init()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    converted, _ = hf_heads.convert(TWINS["bert"].model(), CollabSpec(rank=10), calibration="none")
    converted.save_pretrained(tmp_path)
    return tmp_path


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


ROADS: dict[str, Callable[[Path], Any]] = {
    "plain": BertModel.from_pretrained,
    "config": lambda folder: BertModel.from_pretrained(folder, config=AutoConfig.from_pretrained(folder)),
    "subclass": Custom.from_pretrained,
    "subclass with config": lambda folder: Custom.from_pretrained(folder, config=AutoConfig.from_pretrained(folder)),
    "state_dict": lambda folder: BertModel.from_pretrained(
        None, config=AutoConfig.from_pretrained(folder), state_dict=weights(folder)
    ),
    "constructor": lambda folder: BertModel(AutoConfig.from_pretrained(folder)),
    "constructor, copied config": lambda folder: Custom(copy.deepcopy(AutoConfig.from_pretrained(folder))),
    "_from_config": lambda folder: BertModel._from_config(AutoConfig.from_pretrained(folder)),
}


@pytest.mark.parametrize("road", ROADS)
def test_a_native_class_refuses(folder: Path, road: str):
    with pytest.raises(ValueError, match="import hf_heads"):
        ROADS[road](folder)


def test_our_classes_and_models_around_them_do_not(folder: Path):
    config = AutoConfig.from_pretrained(folder)
    inputs = TWINS["bert"].inputs()
    wanted = logits(AutoModel.from_pretrained(folder), inputs)
    state = {name.removeprefix("bert."): tensor for name, tensor in weights(folder).items()}
    found = models.HeadsBertModel.from_pretrained(None, config=config, state_dict=state)
    assert torch.equal(logits(found, inputs), wanted)
    assert torch.equal(logits(AutoModel.from_pretrained(folder, config=config), inputs), wanted)
    assert type(Wrapper(config).inner) is models.HeadsBertModel
    assert config.name_or_path == str(folder)


def test_a_config_without_blocks_is_the_hosts(folder: Path):
    assert type(BertModel(derived_config(bert_config(), {}))) is BertModel
