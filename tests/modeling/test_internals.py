"""What is not public in transformers and we rest on: each wrapper does what the rest of the package counts on."""

from __future__ import annotations

import copy
import inspect
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import (
    AutoModelForMaskedLM,
    BertConfig,
    BertForMaskedLM,
    BertModel,
    PreTrainedModel,
    ViTConfig,
    ViTModel,
)
from transformers.models.auto.configuration_auto import _LazyConfigMapping

import hf_heads
from hf_heads import CollabSpec
from hf_heads.modeling import internals
from tests.support.twins import TWINS, bert_config


def test_the_auto_classes_and_what_they_serve():
    mappings = internals.mappings_of_auto_classes()
    assert mappings["AutoModelForMaskedLM"] is AutoModelForMaskedLM and len(mappings) > 20
    assert internals.served_classes(AutoModelForMaskedLM, "bert") == ("BertForMaskedLM",)
    assert internals.served_classes(AutoModelForMaskedLM, "vit") == ()
    several = internals.served_classes(mappings["AutoModelForImageClassification"], "deit")
    assert several == ("DeiTForImageClassification", "DeiTForImageClassificationWithTeacher")


def test_configs_that_are_made_when_they_are_asked_for():
    mapping, asked = _LazyConfigMapping({}), []
    mapping.register("first", BertConfig)

    def make(model_type: str) -> type:
        asked.append(model_type)
        return ViTConfig

    for _ in range(2):
        internals.register_config(mapping, "later", make)
    internals.register_config(mapping, "first", make)  # it is known by then
    assert "later" in mapping and list(mapping.keys()) == ["first", "later"] and not asked
    assert next(iter(mapping._extra_content.items())) == ("first", BertConfig) and not asked
    assert mapping["later"] is ViTConfig and mapping["later"] is ViTConfig and asked == ["later"]
    assert dict(mapping.items()) == {"first": BertConfig, "later": ViTConfig} and asked == ["later"]
    assert pickle.loads(pickle.dumps(mapping))["later"] is ViTConfig


def test_a_model_that_becomes_another_class_records_that_classes_outputs():
    class Other(nn.Linear):
        pass

    class Mine(BertModel):
        _can_record_outputs = {"hidden_states": Other}

    model = TWINS["bert"].model().bert
    internals.become(model, Mine)
    assert type(model) is Mine
    inputs = {name: value[:1, :4] for name, value in TWINS["bert"].inputs().items()}
    output = model(**inputs, output_hidden_states=True)
    # Of `Other` there is none in the model; 5.20 says what the model ends with all the same.
    assert all(one is output.last_hidden_state for one in output.hidden_states or ())


def test_outputs_that_were_recorded_before_a_conversion_are_recorded_after_it():
    model, inputs = TWINS["bert"].model(), {name: value[:1, :4] for name, value in TWINS["bert"].inputs().items()}
    before = model(**inputs, output_attentions=True, output_hidden_states=True)
    after = hf_heads.convert(model, CollabSpec(rank=8), calibration="none")[0]
    for one in (after, model, model):
        found = one(**inputs, output_attentions=True, output_hidden_states=True)
        assert [len(found.attentions), len(found.hidden_states)] == [len(before.attentions), len(before.hidden_states)]


def test_a_module_is_initialized_again():
    model = BertModel(bert_config())
    layer = model.encoder.layer[0].attention.self.query
    with torch.no_grad():
        layer.weight.fill_(3.0)
        layer.bias.fill_(3.0)
    internals.initialize(model, layer)
    assert 0 < layer.weight.std() < 0.1 and not layer.bias.any()


def test_a_model_with_an_adapter_is_known():
    # What `add_adapter` sets, and `save_pretrained` then looks at; calling it takes a PEFT of transformers' choice.
    model = TWINS["bert"].model()
    assert not internals.saves_an_adapter(model) and model._hf_peft_config_loaded is False
    model._hf_peft_config_loaded = True
    assert internals.saves_an_adapter(model)
    assert "_hf_peft_config_loaded" in inspect.getsource(PreTrainedModel.save_pretrained)


def test_the_attention_implementation_and_the_origin_travel():
    model = TWINS["bert"].model("sdpa")
    assert internals.attention_implementation(model.config) == "sdpa"
    config = BertConfig()
    model.config._name_or_path = "somewhere"
    internals.copy_choices(model.config, config)
    assert internals.attention_implementation(config) == "sdpa" and config._name_or_path == "somewhere"


def test_positions_that_are_computed_are_never_saved(tmp_path: Path):
    model = TWINS["marian"].make()
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    keys = internals.unsaved_keys(model)
    assert keys and not any(name in stored for name in model.state_dict() if any(key in name for key in keys))
    assert internals.unsaved_keys(TWINS["vit"].make()) == ()


def test_a_guarded_config_stops_every_native_class(tmp_path: Path):
    model = TWINS["bert"].model()
    model.save_pretrained(tmp_path)
    config = BertConfig.from_dict(internals.guarded(model.config.to_dict(), "the message"))
    config.save_pretrained(tmp_path)
    for native in (BertModel, BertForMaskedLM, AutoModelForMaskedLM):
        with pytest.raises(ValueError, match="the message"):
            native.from_pretrained(tmp_path)
    free = internals.without_guard(config.to_dict())
    BertConfig.from_dict(free).save_pretrained(tmp_path)
    BertModel.from_pretrained(tmp_path)


def test_keys_are_renamed_like_the_hosts():
    class Mine(ViTModel):
        pass

    internals.rename_keys_like("Mine", "ViTModel")
    own, host = (internals.KeyNames.of(cls(copy.deepcopy(TWINS["vit"].make().config))) for cls in (Mine, ViTModel))
    name = "encoder.layer.0.attention.attention.query.weight"
    assert own.in_model(name) == host.in_model(name) != name
    assert own.in_file(own.in_model(name)) == host.in_file(host.in_model(name))


def test_renamings_spare_names_of_ours_that_start_like_the_hosts():
    # transformers 5.20 applies every renaming that matches; newer ones happen not to, so each is asked alone.
    class Mine(ViTModel):
        pass

    internals.rename_keys_like("Mine", "ViTModel")
    renamings, _ = internals.KeyNames.of(Mine(copy.deepcopy(TWINS["vit"].make().config))).forth
    for word in ("query", "key", "value"):
        name = f"layers.0.attention.{word}_embedding"
        assert all(one.rename_source_key(name)[0] == name for one in renamings)


@pytest.mark.parametrize("kind", TWINS)
def test_names_in_files_are_those_that_transformers_writes(kind: str, tmp_path: Path):
    model: PreTrainedModel = TWINS[kind].model()
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    keys = internals.KeyNames.of(model)
    state = model.state_dict()
    for name, tensor in stored.items():
        inner = keys.in_model(name)
        assert torch.equal(state[inner], tensor)
        assert keys.in_file(inner) == name
