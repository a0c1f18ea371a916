"""The road to AutoModel, and what it rests on in transformers."""

from __future__ import annotations

import copy
import inspect
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertForSequenceClassification,
    BertModel,
    MarianMTModel,
    PreTrainedModel,
    ViTModel,
)

import hf_heads
from hf_heads import CollabSpec, HeadsError, LowRankSpec
from hf_heads.attention.hosts.blocks import find_blocks
from hf_heads.modeling.classes import model_class
from hf_heads.modeling.configuration import derived_config
from tests.support.files import save_checkpoint
from tests.support.twins import TWINS, bert_config, logits, marian_config, randomize, vit_config


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    converted, _ = hf_heads.convert(TWINS["bert"].model(), CollabSpec(rank=10), calibration="none")
    return save_checkpoint(converted, tmp_path / "converted")


IN_FORKS = """
import os, sys
for program in sys.argv[1:]:
    if pid := os.fork():
        assert not os.waitpid(pid, 0)[1]
    else:
        exec(program)
        os._exit(0)  # what was imported need not be taken down
"""


def python(folder: Path, program: str, *after: str) -> list[str]:
    """The lines that a fresh Python prints in a program, and in each of others that start where it ends."""
    hub = {"HF_MODULES_CACHE": str(folder.parent / "modules"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-u", "-c", program + IN_FORKS, *after]
    environment = {**os.environ, **hub, "OMP_NUM_THREADS": "1"}  # a process with threads should not fork
    found = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert found.returncode == 0, found.stderr[-2000:]
    return found.stdout.splitlines()


# Nothing of transformers is there when hf_heads comes first, as in tests/docs/test_python.py; the others are what may
# have been read before it, as below.
@pytest.mark.full
@pytest.mark.parametrize("before", [True, False], ids=["first", "second"])
@pytest.mark.parametrize("name", ["AutoConfig", "AutoModel", "BertConfig", "BertModel", "AutoTokenizer", "Trainer"])
def test_any_order_of_imports_works(folder: Path, before: bool, name: str):
    first = f"from transformers import {name}"
    lines = ["import hf_heads", first] if before else [first, "import hf_heads"]
    program = "\n".join([*lines, "from transformers import AutoConfig as A", f"c = A.from_pretrained({str(folder)!r})"])
    assert python(folder, program + "\nprint(type(c).__name__)") == ["HeadsBertConfig"]


def test_importing_hf_heads_imports_nothing_else(folder: Path):
    program = "import sys, hf_heads; print(*(n for n in ('torch', 'transformers', 'datasets') if n in sys.modules))"
    assert python(folder, program) == [""]


def test_where_transformers_was_read_first_a_checkpoint_loads_by_import_or_by_trust_and_else_fails_loudly(folder: Path):
    names = "AutoModel, AutoModelForSequenceClassification as C, BertModel, Trainer"
    read = f"from transformers import {names}\nat = {str(folder)!r}"
    without = """
try:
    AutoModel.from_pretrained(at, trust_remote_code=False)
except Exception as error:
    print("heads_bert" in str(error) or "trust_remote_code" in str(error))
"""
    imported = "import hf_heads; print(type(AutoModel.from_pretrained(at)).__name__)"
    trusted = "print(*(type(c.from_pretrained(at, trust_remote_code=True)).__name__ for c in (AutoModel, C)))"
    found = python(folder, read, without, imported, trusted)
    assert found[:2] == ["True", "HeadsBertModel"]
    assert found[-1] == "HeadsBertModel HeadsBertForSequenceClassification"


def test_native_classes_refuse(folder: Path):
    with pytest.raises(ValueError, match="import hf_heads"):
        BertModel.from_pretrained(folder)


def test_the_config_checks_types(folder: Path):
    config = AutoConfig.from_pretrained(folder)
    assert config.model_type == "heads_bert" and config.heads["format"] == 1
    assert not hasattr(config, "fusion_config")
    for wrong in (3, [1], "text"):
        with pytest.raises(Exception, match="heads"):
            type(config)(heads=wrong)


def test_saving_again_keeps_everything(folder: Path, tmp_path: Path):
    AutoModel.from_pretrained(folder).save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "modeling_heads_bert.py").is_file()
    with pytest.raises(ValueError, match="import hf_heads"):
        BertModel.from_pretrained(tmp_path / "again")
    wanted, found = (AutoModel.from_pretrained(path) for path in (folder, tmp_path / "again"))
    inputs = TWINS["bert"].inputs()
    assert torch.equal(logits(wanted, inputs), logits(found, inputs))


def test_sharded_and_in_bfloat16(folder: Path, tmp_path: Path):
    model = AutoModel.from_pretrained(folder)
    model.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    again = AutoModel.from_pretrained(tmp_path / "shards")
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert AutoModel.from_pretrained(folder, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_copies_and_pickles(folder: Path):
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    inputs = TWINS["bert"].inputs()
    wanted = logits(model.eval(), inputs)
    assert torch.equal(logits(copy.deepcopy(model), inputs), wanted)
    assert torch.equal(logits(pickle.loads(pickle.dumps(model)), inputs), wanted)


def test_classes_are_found_by_name():
    from hf_heads import models

    for name in ("HeadsMarianEncoder", "HeadsBertConfig", "CollabMarianAttention", "LowRankViTAttention"):
        assert getattr(models, name).__name__ == name
    with pytest.raises(AttributeError):
        _ = models.HeadsNonsense


@pytest.mark.parametrize("native", [BertModel, ViTModel, MarianMTModel])
def test_constructors_show_the_options_of_the_host(native: type[PreTrainedModel]):
    assert inspect.signature(model_class(native)) == inspect.signature(native)
    assert inspect.signature(model_class(native).__init__) == inspect.signature(native.__init__)


def test_an_option_of_the_hosts_constructor_is_taken_at_load(tmp_path: Path):
    converted, _ = hf_heads.convert(TWINS["vit"].model(), CollabSpec(rank=10), calibration="none")
    converted.save_pretrained(tmp_path)
    model = model_class(ViTModel).from_pretrained(tmp_path, use_mask_token=True)
    assert model.embeddings.mask_token is not None


def test_tokenizers_load_from_a_converted_folder(folder: Path):
    from transformers import AutoTokenizer

    assert AutoTokenizer.from_pretrained(folder)("word1 word2")["input_ids"] == [2, 6, 7, 3]


def test_resize_gradient_checkpointing_and_inner_classes(folder: Path):
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    assert type(model.bert) is model_class(BertModel)
    model.resize_token_embeddings(120)
    model.gradient_checkpointing_enable()
    model.train()
    model(**TWINS["bert"].inputs()).logits.sum().backward()
    assert all(block.module.mixing.grad is not None for block in find_blocks(model))


# The next three are on a loaded model what tests/test_ecosystem.py does on models that were converted in memory.


@pytest.mark.full
@pytest.mark.parametrize("wrap", [lambda m: torch.compile(m, backend="eager", fullgraph=True)], ids=["compile"])
def test_torch_compile_traces_the_whole_model(folder: Path, wrap: Callable):
    model = AutoModel.from_pretrained(folder).eval()
    inputs = TWINS["bert"].inputs()
    assert (logits(wrap(model), inputs) - logits(model, inputs)).abs().max() < 1e-5


@pytest.mark.full
def test_torch_export(folder: Path):
    model = AutoModel.from_pretrained(folder).eval()
    inputs = TWINS["bert"].inputs()
    exported = torch.export.export(model, (), kwargs=inputs, strict=False)
    with torch.no_grad():
        found = exported.module()(**inputs)[0]
    mask = inputs["attention_mask"].bool()
    assert (found[mask] - logits(model, inputs)).abs().max() < 1e-5


@pytest.mark.full
def test_lora_by_peft_on_the_documented_names(folder: Path):
    peft = pytest.importorskip("peft")
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    settings = peft.LoraConfig(target_modules=["shared_query", "shared_key", "value"], r=2)
    wrapped = peft.get_peft_model(model, settings)
    trainable = [name for name, parameter in wrapped.named_parameters() if parameter.requires_grad]
    assert any("shared_query" in name for name in trainable)
    wrapped(**TWINS["bert"].inputs()).logits.sum().backward()


def test_inplace_patches_the_model_at_hand():
    model = TWINS["marian"].model()
    wanted = logits(model, TWINS["marian"].inputs())
    converted, _ = hf_heads.convert(model, CollabSpec(rank=32), inplace=True, calibration="none")
    assert converted is model and type(model).__name__ == "HeadsMarianMTModel"
    assert type(model.model.encoder).__name__ == "HeadsMarianEncoder"
    assert (logits(model, TWINS["marian"].inputs()) - wanted).abs().max() < 1e-5


def test_blocks_of_one_kind_only():
    model = TWINS["marian"].model()
    _, report = hf_heads.convert(model, LowRankSpec(rank=12), blocks="*.encoder_attn", calibration="none")
    assert {block.kind for block in report.blocks} == {"cross"}
    _, report = hf_heads.convert(model, LowRankSpec(rank=12), blocks="!*.encoder_attn", calibration="none")
    assert {block.kind for block in report.blocks} == {"self", "causal"}
    mixed = {"encoder.*": LowRankSpec(rank=8), "*": LowRankSpec(rank=20)}
    assert {block.spec.rank for block in hf_heads.convert(model, mixed, calibration="none")[1].blocks} == {8, 20}


def test_a_section_that_names_no_block_is_refused():
    config = derived_config(bert_config(), {"encoder.layer.7.attention.self": CollabSpec(heads=4, rank=8)})
    with pytest.raises(HeadsError, match=r"encoder\.layer\.7"):
        AutoModel.from_config(config)


@pytest.mark.parametrize("make", [bert_config, vit_config, marian_config])
def test_an_empty_section_is_the_host(make: Callable):
    config = derived_config(make(), {})
    assert type(AutoModel.from_config(config)).__name__.startswith("Heads")


def test_other_packages_register_methods_by_entry_point(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    import dataclasses

    from hf_heads.methods import registry
    from hf_heads.methods.base import Method
    from hf_heads.methods.low_rank import METHOD, LowRankAttention, LowRankSpec

    @dataclasses.dataclass(frozen=True)
    class MineSpec(LowRankSpec):
        method = "mine"

    class MineAttention(LowRankAttention):
        pass

    class Point:
        name = "mine"

        def load(self) -> Method:
            return dataclasses.replace(METHOD, spec=MineSpec, attention=MineAttention)

    registry.registered.cache_clear()
    monkeypatch.setattr(registry, "entry_points", lambda group: [Point()])
    assert list(hf_heads.methods) == ["collab", "low-rank", "mgk", "mhe", "mine", "pruned"]
    assert hf_heads.methods["mine"].name == "mine" and "mine" in hf_heads.methods
    converted, _ = hf_heads.convert(TWINS["bert"].model(), MineSpec(rank=8), calibration="none")
    assert type(find_blocks(converted)[0].module).__name__ == "MineBertSelfAttention"
    converted.save_pretrained(tmp_path)  # their code is not ours to hand on: what is there reaches hf-heads
    assert [path.name for path in tmp_path.glob("*.py")] == ["heads_remote.py"]
    assert converted.config.to_dict()["auto_map"]["AutoModel"] == "heads_remote.HeadsBertModel"
    registry.load.cache_clear()
    registry.registered.cache_clear()


@pytest.mark.parametrize("spec", [CollabSpec(rank=8), hf_heads.MheSpec(), hf_heads.PrunedSpec(kept=(0, 3))])
def test_a_config_for_training_from_scratch(spec: hf_heads.HeadsSpec):
    config = TWINS["bert-decoder"].model().config
    made = hf_heads.heads_config(config, spec)
    assert config.model_type == "bert" and made.model_type == "heads_bert"
    assert {one.method for one in made.block_specs().values()} == {spec.method}
    assert len(made.block_specs()) == 4  # cross-attention as well
    model = AutoModelForCausalLM.from_config(made).train()
    loss = model(**TWINS["bert-decoder"].inputs(), labels=TWINS["bert-decoder"].inputs()["input_ids"]).loss
    loss.backward()
    assert torch.isfinite(loss)
    partly = hf_heads.heads_config(config, spec, blocks="*.0.attention.*")
    assert list(partly.block_specs()) == ["encoder.layer.0.attention.self"]


def test_a_config_refuses_settings_that_are_found_from_weights():
    config = TWINS["bert"].model().config
    for spec in (hf_heads.PrunedSpec(keep=0.5), CollabSpec(energy=0.9)):
        with pytest.raises(hf_heads.HeadsError, match="are found from weights"):
            hf_heads.heads_config(config, spec)


@pytest.mark.parametrize("settings", [{"num_labels": 42}, {"vocab_size": 50}])
def test_settings_that_do_not_fit_the_weights_are_answered_as_the_host_answers_them(tmp_path: Path, settings: dict):
    randomize(native := BertForSequenceClassification(bert_config()))
    native.save_pretrained(tmp_path / "native")
    converted, _ = hf_heads.convert(native, CollabSpec(rank=10), calibration="none")
    converted.save_pretrained(tmp_path / "converted")
    errors = []
    for name in ("native", "converted"):
        with pytest.raises(RuntimeError) as caught:
            AutoModelForSequenceClassification.from_pretrained(tmp_path / name, **settings)
        assert not isinstance(caught.value, HeadsError)
        errors.append(str(caught.value))
    assert errors[0] == errors[1]
    shapes = []
    for name in ("native", "converted"):
        load = partial(AutoModelForSequenceClassification.from_pretrained, tmp_path / name, output_loading_info=True)
        model, info = load(ignore_mismatched_sizes=True, **settings)
        shapes.append((model.classifier.weight.shape, model.get_input_embeddings().weight.shape, info))
    assert shapes[0] == shapes[1]
