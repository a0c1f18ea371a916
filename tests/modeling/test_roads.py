"""All roads of loading: the same outputs as the model that was saved, or an error.

A class of another task may lack weights that are no attention: those that it lacks in the host's own checkpoint, too.
Classes x roads, with methods and forms of files (one, or shards) so dealt out that all pairs are seen.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache, partial
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, dynamic_module_utils, pipeline

import hf_heads
from hf_heads import models
from hf_heads.attention.hosts.blocks import find_blocks
from hf_heads.attention.hosts.table import architectures
from hf_heads.modeling.auto_classes import auto_classes
from tests.modeling.test_parts import SPECS, inputs_of
from tests.support.files import save_checkpoint
from tests.support.tokenizers import save_image_processor
from tests.support.twins import TWINS, bert_config, marian_config, randomize, vit_config

CONFIGS = {"bert": bert_config, "vit": vit_config, "marian": marian_config}
FORMS = {"one file": "50GB", "shards": "20KB"}
Road = Callable[[Path], Any]


@pytest.fixture(autouse=True)
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Code that comes with a checkpoint is copied into a folder of the test's own."""
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "transformers_modules"]:
        del sys.modules[name]


def classes(host: str) -> list[str]:
    """The native classes of a host: all that an Auto class makes, and its parts."""
    adapter = architectures()[host]
    return list(dict.fromkeys([*auto_classes(adapter).values(), *(name for name, _ in adapter.parts)]))


def made(host: str, name: str, method: str) -> PreTrainedModel:
    causal = {"is_decoder": True} if name == "BertLMHeadModel" else {}
    randomize(model := getattr(architectures()[host].modeling, name)(CONFIGS[host](**causal)))
    return hf_heads.convert(model.eval(), SPECS[method], calibration="none")[0].eval()


def inputs(model: PreTrainedModel, host: str) -> dict[str, Any]:
    name = type(model).__name__.removeprefix("Heads")
    part = {"MarianEncoder": "model.encoder", "MarianDecoder": "model.decoder", "MarianForCausalLM": "model.decoder"}
    found = inputs_of(part.get(name, "")) if host == "marian" else TWINS[host].inputs()
    return {key: value[:, None] for key, value in found.items()} if "MultipleChoice" in name else found


def named(folder: Path) -> Any:
    """The class that config.json names."""
    return getattr(models, AutoConfig.from_pretrained(folder).architectures[0])


def native(folder: Path) -> Any:
    config = AutoConfig.from_pretrained(folder)
    return getattr(architectures()[config.model_type.removeprefix("heads_")].modeling, config.architectures[0][5:])


def subclass(folder: Path) -> Any:
    return type("Mine", (native(folder),), {})


def from_folder(make: Callable[[Path], Any], folder: Path) -> PreTrainedModel:
    return make(folder).from_pretrained(folder)


def with_config(make: Callable[[Path], Any], folder: Path) -> PreTrainedModel:
    return make(folder).from_pretrained(folder, config=AutoConfig.from_pretrained(folder))


def with_state(make: Callable[[Path], Any], folder: Path) -> PreTrainedModel:
    state = {key: tensor for file in folder.glob("*.safetensors") for key, tensor in load_file(file).items()}
    return make(folder).from_pretrained(None, config=AutoConfig.from_pretrained(folder), state_dict=state)


def by_class() -> dict[str, Road]:
    makes = {"the class that config.json names": named, "native": native, "a user's subclass": subclass}
    ways = {"": from_folder, " with a config": with_config, " with a state dict": with_state}
    return {name + how: partial(way, make) for name, make in makes.items() for how, way in ways.items()}


def by_auto_class(host: str) -> dict[str, Road]:
    """Every Auto class that serves the host, each with the code beside the checkpoint and without."""
    trusts: dict[str, dict[str, bool]] = {
        "": {},
        ", trust_remote_code": {"trust_remote_code": True},
        ", trust_remote_code=False": {"trust_remote_code": False},
    }
    return {
        name + how: partial(getattr(transformers, name).from_pretrained, **trust)
        for name in auto_classes(architectures()[host])
        for how, trust in trusts.items()
    }


def shared(found: PreTrainedModel, wanted: PreTrainedModel) -> tuple[Any, Any] | None:
    """The largest models of one class, with converted blocks, in both; an Auto class may make another task's model."""
    inside = {type(one): one for one in reversed(list(wanted.modules())) if isinstance(one, PreTrainedModel)}
    pairs = ((one, inside[type(one)]) for one in found.modules() if type(one) in inside)
    return next(((one, other) for one, other in pairs if one.config.block_specs() and find_blocks(one)), None)


def tensors(output: Any) -> list[Tensor]:
    return [value for value in output.to_tuple() if isinstance(value, Tensor)]


def outcome(road: Road, folder: Path, wanted: PreTrainedModel, host: str) -> str:
    try:
        found = road(folder)
    except (ValueError, RuntimeError, OSError):
        return "error"
    found.eval().set_attn_implementation("eager")
    pair = shared(found, wanted)
    if pair is None:
        return f"nothing alike in a {type(found).__name__}"
    with torch.no_grad():
        ours, theirs = (tensors(one(**inputs(one, host))) for one in pair)
    if pair[0] is not found or pair[1] is not wanted:
        ours, theirs = ours[:1], theirs[:1]  # a pooler is another task's head, and new where the file has none
    same = len(ours) == len(theirs) > 0 and all(
        (one - two).abs().max() < 1e-6 for one, two in zip(ours, theirs, strict=True)
    )
    same &= all(torch.equal(*two) for two in zip(*(attention(one) for one in pair), strict=True))
    return "same" if same else "different"


def attention(model: PreTrainedModel) -> list[Tensor]:
    """The weights of the converted blocks: these are the same bits, outputs but for rounding, as memory lies."""
    return [tensor for block in find_blocks(model) for tensor in block.module.state_dict().values()]


def new_weights(auto_class: str, folder: Path) -> set[str] | None:
    """What an Auto class does not find in a folder, and fills with random numbers; None where it refuses the folder."""
    load = getattr(transformers, auto_class).from_pretrained
    try:
        return set(load(folder, output_loading_info=True)[1]["missing_keys"])
    except (ValueError, RuntimeError, OSError):
        return None


def as_the_host(host: str, name: str, auto_class: str, folder: Path) -> bool:
    """Whether a class of another task finds as much in our checkpoint as it does in the host's own."""
    native_folder = folder.parent.parent / "native"
    if not native_folder.exists():
        getattr(architectures()[host].modeling, name)(CONFIGS[host]()).save_pretrained(native_folder)
    return new_weights(auto_class, folder) == new_weights(auto_class, native_folder)


def must_load(host: str, name: str, road: str) -> bool:
    """Whether a road has to lead to the outputs: to the class that was saved."""
    if road.startswith(("native", "a user")):
        return False
    return auto_classes(architectures()[host]).get(road.partition(",")[0], name) == name


@pytest.mark.full
@pytest.mark.parametrize("host", CONFIGS)
def test_every_road_leads_to_the_same_outputs_or_an_error(tmp_path: Path, host: str):
    @cache
    def saved(name: str, method: str, form: str) -> tuple[PreTrainedModel, Path]:
        model, folder = made(host, name, method), tmp_path / name / method / form
        model.save_pretrained(folder, max_shard_size=FORMS[form])
        model.set_attn_implementation("eager")
        assert (len(list(folder.glob("*.safetensors"))) > 1) == (form == "shards")
        return model, folder

    roads, names = {**by_class(), **by_auto_class(host)}, classes(host)
    counts, pairs = Counter[str](), set[Any]()
    for number, name in enumerate(names):
        for step, (label, road) in enumerate(roads.items()):
            for turn in range(0, len(SPECS), len(names)):
                method = list(SPECS)[(number + step + turn) % len(SPECS)]
                form = list(FORMS)[(number + turn + step // len(SPECS)) % len(FORMS)]
                wanted, folder = saved(name, method, form)
                found = outcome(road, folder, wanted, host)
                assert found == "same" or not must_load(host, name, label), (method, name, form, label, found)
                if found != "same" and label.startswith("AutoModel"):  # of another task
                    like_host = as_the_host(host, name, label.partition(",")[0], folder)
                    # A part of a Marian is refused where the rest would be attention with random numbers.
                    assert like_host or (found, host) == ("error", "marian"), (method, name, form, label, found)
                    found = "as the host" if like_host else found
                assert found in ("same", "error", "as the host"), (method, name, form, label, found)
                counts[found] += 1
                pairs.update(combinations((name, label, method, form), 2))
    sizes = [len(one) for one in (names, roads, SPECS, FORMS)]
    assert len(pairs) == sum(one * other for one, other in combinations(sizes, 2))  # none is left out
    print(f"{host}: {dict(counts)}, {counts.total()} loads")


PIPELINES = {
    "feature-extraction": ("bert", "BertModel"),
    "fill-mask": ("bert", "BertForMaskedLM"),
    "text-classification": ("bert", "BertForSequenceClassification"),
    "token-classification": ("bert", "BertForTokenClassification"),
    "text-generation": ("bert", "BertLMHeadModel"),
    "zero-shot-classification": ("bert", "BertForSequenceClassification"),
    "image-feature-extraction": ("vit", "ViTModel"),
    "image-classification": ("vit", "ViTForImageClassification"),
}
QUESTIONS = {"fill-mask": "word1 [MASK] word3", "zero-shot-classification": "word1 word2"}
SETTINGS: dict[str, dict[str, Any]] = {
    "text-generation": {"max_new_tokens": 3, "do_sample": False},
    "zero-shot-classification": {"candidate_labels": ["word3", "word4"], "hypothesis_template": "word5 {}"},
}


def alike(found: Any, wanted: Any) -> bool:
    """Whether two results are the same; numbers but for rounding, since memory may lie otherwise."""
    if isinstance(wanted, dict):
        return found.keys() == wanted.keys() and all(alike(found[key], wanted[key]) for key in wanted)
    if isinstance(wanted, list):
        return len(found) == len(wanted) and all(alike(*two) for two in zip(found, wanted, strict=True))
    return found == pytest.approx(wanted, abs=1e-5) if isinstance(wanted, float) else found == wanted


@pytest.mark.full
@pytest.mark.filterwarnings("ignore:.*max_new_tokens")
@pytest.mark.parametrize("task", PIPELINES)
@pytest.mark.parametrize("method", SPECS)
def test_pipelines_of_a_folder_give_what_they_give_for_the_model_that_was_saved(tmp_path: Path, task: str, method: str):
    image = pytest.importorskip("PIL.Image", reason="pipelines read images with pillow")
    host, name = PIPELINES[task]
    model = made(host, name, method)
    model.set_attn_implementation("sdpa")  # as a folder's is
    save = {"save_processor": save_image_processor} if host == "vit" else {}
    save_checkpoint(model, tmp_path / "saved", **save)
    question = QUESTIONS.get(task, "word1 word2 word3")
    if host == "vit":
        question = image.effect_noise((16, 16), 64).convert("RGB")
        tools = {"image_processor": transformers.AutoImageProcessor.from_pretrained(tmp_path / "saved")}
    else:
        tools = {"tokenizer": AutoTokenizer.from_pretrained(tmp_path / "saved")}
    wanted = pipeline(task, model=model, **tools)(question, **SETTINGS.get(task, {}))
    for trust in ({}, {"trust_remote_code": True}, {"trust_remote_code": False}):
        found = pipeline(task, str(tmp_path / "saved"), **trust)
        assert type(found.model) is type(model)
        assert alike(found(question, **SETTINGS.get(task, {})), wanted), trust
    with pytest.raises((ValueError, RuntimeError, OSError)):  # a native class, named by hand
        pipeline(task, model=native(tmp_path / "saved").from_pretrained(tmp_path / "saved"))
