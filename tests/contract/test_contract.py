"""The contract that every method keeps on every architecture; the points are those of the design.

By default every method meets every architecture, and every variant of a method some architecture; `make test-all` runs
the full matrix.
"""

from __future__ import annotations

import copy
import filecmp
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForSeq2SeqLM, PreTrainedModel

import hf_heads
from hf_heads import CollabSpec, HeadsSpec, LowRankSpec, MgkSpec, MheSpec, PrunedSpec
from hf_heads.attention.hosts.blocks import find_blocks
from hf_heads.attention.hosts.reading import read_host
from hf_heads.attention.hosts.table import ADAPTERS
from hf_heads.attention.module import HeadsAttention
from hf_heads.io.data.calibration import CalibrationChoice
from hf_heads.jobs.conversion.checkpoint import convert_checkpoint
from hf_heads.jobs.conversion.request import ConversionRequest
from hf_heads.modeling.auto_classes import auto_classes, auto_mappings
from hf_heads.modeling.classes import model_class
from tests.support.matrix import each, pairwise
from tests.support.twins import HEADS, TWINS, WIDTH, Twin, logits, randomize

# Every method with settings that lose nothing and settings that do.
Specs = HeadsSpec | dict[str, HeadsSpec]
LOSSLESS: dict[str, Specs] = {
    "collab-cp": CollabSpec(rank=WIDTH),
    "collab-tucker": CollabSpec(rank=WIDTH, form="tucker"),
    "low-rank": LowRankSpec(rank=WIDTH),
    "mhe-mul-1": MheSpec(groups=HEADS),
    "mhe-mul-2": MheSpec(groups=HEADS),
    "mhe-add-1": MheSpec(variant="add", groups=HEADS),
    "mhe-add-2": MheSpec(variant="add", groups=HEADS),
    "mgk": MgkSpec(shift=0),
    "smgk": MgkSpec(mixture="smgk", components=3, priors="fixed"),
    "mgk-hard": MgkSpec(assignment="hard", shift=0),
    "pruned": PrunedSpec(keep=1.0),
    "pruned-empty": PrunedSpec(kept=tuple(range(HEADS))),
}
LOSSY: dict[str, Specs] = {
    "collab-cp": CollabSpec(rank=10),
    "collab-tucker": CollabSpec(rank=10, form="tucker"),
    "low-rank": LowRankSpec(rank=3 * HEADS),
    "mhe-mul-1": MheSpec(),
    "mhe-mul-2": MheSpec(groups=2),
    "mhe-add-1": MheSpec(variant="add"),
    "mhe-add-2": MheSpec(variant="add", groups_qk=2, groups_v=4),
    "mgk": MgkSpec(merge=2),
    "mgk-shared": MgkSpec(merge=2, queries="shared", values="shared", priors="fixed"),
    "smgk": MgkSpec(mixture="smgk", shift=0.5, components=3, norm=1.0),
    "mgk-hard": MgkSpec(assignment="hard", shift=0.5),
    "smgk-paper": MgkSpec(mixture="smgk", sigma="fixed", priors="em", positions=64),
    "mgk-linear": MgkSpec(kernel="linear", shift=0.5),
    "smgk-linear": MgkSpec(kernel="linear", mixture="smgk", shift=0.5, priors="fixed"),
    "pruned": PrunedSpec(keep=0.6, score="weights", repair=True),
    "pruned-empty": {"*.0.*": PrunedSpec(kept=()), "*": PrunedSpec(kept=(2,))},
}


# One of every kind of parameters; the others of a method are the same tensors in other sizes.
KINDS = ("collab-cp", "collab-tucker", "low-rank", "mhe-mul-1", "mgk", "smgk", "mgk-hard", "pruned", "pruned-empty")


IMPLEMENTATIONS = ("eager", "sdpa")


def method_of(specs: Specs) -> str:
    """The method of settings; where they differ from block to block, of any."""
    return (specs if isinstance(specs, HeadsSpec) else next(iter(specs.values()))).method


KIND = {"method": lambda name: method_of(LOSSY[name]), "lossless": lambda name: method_of(LOSSLESS[name])}
every_method = pairwise(KIND, name=TWINS.keys(), method=LOSSY.keys())
every_method_and_implementation = pairwise(KIND, name=TWINS.keys(), method=LOSSY.keys(), implementation=IMPLEMENTATIONS)


@pytest.fixture
def twin(name: str) -> Twin:
    return TWINS[name]


@cache
def _converted(name: str, method: str) -> PreTrainedModel:
    twin = TWINS[name]
    return hf_heads.convert(twin.model(), LOSSY[method], calibration=[twin.inputs()])[0]


def convert(name: str, method: str, implementation: str = "eager") -> PreTrainedModel:
    """A copy of a converted model, which costs less than to convert it again."""
    model = copy.deepcopy(_converted(name, method))
    model.set_attn_implementation(implementation)
    return model


def heads_blocks(model: PreTrainedModel) -> list[HeadsAttention]:
    return [block.module for block in find_blocks(model)]


@pairwise(
    KIND,
    name=TWINS.keys(),
    lossless=LOSSLESS.keys(),
    implementation=IMPLEMENTATIONS,
    calibrated=[False, True],
)
def test_01_lossless_settings_give_the_hosts_logits(twin: Twin, lossless: str, implementation: str, calibrated: bool):
    model = twin.model(implementation)
    batches = [twin.inputs()] if calibrated else None
    converted, report = hf_heads.convert(model, LOSSLESS[lossless], calibration=batches)
    assert all(isinstance(module, HeadsAttention) for module in heads_blocks(converted))
    assert converted.config._attn_implementation == implementation
    assert (logits(converted, twin.inputs()) - logits(model, twin.inputs())).abs().max() < 1e-5
    assert all(block.error < 1e-5 for block in report.blocks)


@every_method
def test_01_lossy_settings_change_the_logits_and_eager_agrees_with_sdpa(twin: Twin, method: str):
    converted = convert(twin.name, method)
    eager = logits(converted, twin.inputs())
    converted.set_attn_implementation("sdpa")
    assert (logits(converted, twin.inputs()) - eager).abs().max() < 1e-5
    assert (eager - logits(twin.model(), twin.inputs())).abs().max() > 1e-3


@pairwise(
    {"place": lambda place: place[0]},
    place={
        f"{name}-{auto_name}": (name, auto_name)
        for name, adapter in ((name, ADAPTERS[name]) for name in ("bert", "vit", "marian"))
        for auto_name in auto_classes(adapter)
    },
    method=KINDS,
)
def test_02_every_auto_class_loads_to_the_bit(place: tuple[str, str], method: str, tmp_path: Path):
    model_type, auto_name = place
    twin = TWINS[model_type]
    native = getattr(ADAPTERS[model_type].modeling, auto_classes(ADAPTERS[model_type])[auto_name])
    model = native(copy.deepcopy(twin.model().config))
    randomize(model)
    converted = hf_heads.convert(model.eval(), LOSSY[method], calibration="none")[0]
    converted.save_pretrained(tmp_path)
    loaded, info = auto_mappings()[auto_name].from_pretrained(
        tmp_path, output_loading_info=True, attn_implementation="eager"
    )
    assert type(loaded) is model_class(native)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    inputs = twin.inputs()
    if auto_name == "AutoModelForMultipleChoice":
        inputs = {name: value[:, None] for name, value in inputs.items()}
    if auto_name == "AutoModelForMaskedImageModeling":
        inputs["bool_masked_pos"] = torch.arange(16).expand(3, -1) % 2 == 0
    if model_type == "marian" and auto_name == "AutoModelForCausalLM":
        inputs = {"input_ids": inputs["input_ids"]}
    with torch.no_grad():
        wanted, found = (one(**inputs, return_dict=True).to_tuple() for one in (converted, loaded))
    tensors = [(a, b) for a, b in zip(wanted, found, strict=True) if isinstance(a, torch.Tensor)]
    assert tensors
    # The same bits in other places of memory may take another path through a matrix product.
    assert all((a - b).abs().max() < 1e-6 for a, b in tensors)
    state = loaded.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in converted.state_dict().items())


@every_method
def test_02_a_task_class_loads_the_base_models_attention(name: str, method: str, tmp_path: Path):
    converted = convert(name, method)
    converted.save_pretrained(tmp_path)
    base = AutoModel.from_pretrained(tmp_path)
    for ours, theirs in zip(heads_blocks(base), heads_blocks(converted), strict=True):
        for (key, tensor), (_, wanted) in zip(ours.state_dict().items(), theirs.state_dict().items(), strict=True):
            assert torch.equal(tensor, wanted), key


@every_method
def test_03_attentions_come_out_and_sum_to_one(twin: Twin, method: str):
    converted = convert(twin.name, method)
    with torch.no_grad():
        outputs = converted(**twin.inputs(), output_attentions=True)
    kinds = {name: value for name, value in outputs.items() if "attentions" in name}
    assert sum(len(value) for value in kinds.values()) == len(find_blocks(converted))
    heads = [module.shape.heads for module in heads_blocks(converted)]
    assert sorted(weights.shape[1] for value in kinds.values() for weights in value) == sorted(heads)
    for weights in (one for value in kinds.values() for one in value):
        assert not weights.numel() or (weights.sum(-1) - 1).abs().max() < 1e-5


@pairwise(KIND, method=LOSSY.keys(), implementation=IMPLEMENTATIONS, beams=[1, 3])
def test_04_generation_is_the_same_with_every_cache(method: str, implementation: str, beams: int, tmp_path: Path):
    convert("marian", method).save_pretrained(tmp_path)
    model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path, attn_implementation=implementation)
    inputs = {name: value for name, value in TWINS["marian"].inputs().items() if not name.startswith("decoder")}
    settings = dict(num_beams=beams, do_sample=False, max_new_tokens=5)
    without = model.generate(**inputs, **settings, use_cache=False)
    assert without.shape[1] > 3
    assert torch.equal(model.generate(**inputs, **settings), without)
    static = model.generate(**inputs, **settings, cache_implementation="static", disable_compile=True)
    assert torch.equal(static, without)


@pairwise(KIND, method=LOSSY.keys(), implementation=IMPLEMENTATIONS)
def test_04_a_causal_decoder_generates_the_same_with_a_cache(method: str, implementation: str):
    model = convert("bert-decoder", method, implementation)
    inputs = {"input_ids": TWINS["bert-decoder"].inputs()["input_ids"][:, :4]}
    settings = dict(do_sample=False, max_new_tokens=6, pad_token_id=0)
    assert torch.equal(model.generate(**inputs, **settings), model.generate(**inputs, **settings, use_cache=False))


@every_method_and_implementation
def test_05_every_parameter_gets_a_finite_gradient(twin: Twin, method: str, implementation: str):
    converted = convert(twin.name, method, implementation).train()
    converted(**twin.inputs())[0].square().mean().backward()
    for module in heads_blocks(converted):
        for name, parameter in module.named_parameters():
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name
            dropped = name.endswith(("k_proj.bias", "key.bias", "shared_key.bias", "key_embedding"))  # by the softmax
            assert not parameter.numel() or dropped or parameter.grad.abs().max() > 0, name


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("contract")


def checkpoint(twin: Twin, method: str, folder: Path) -> tuple[Path, Path]:
    """The folders of a saved twin and of what it is converted into, each made when it is first asked for."""
    source, output = folder / twin.name, folder / f"{twin.name}-{method}"
    if not source.exists():
        twin.model().save_pretrained(source)
    if not output.exists():
        # Made data; a decoder that nobody feeds has none for its cross-attention, and that Marian writes its targets by
        # itself, which takes seconds, is shown with one method.
        made = twin.name in ("bert", "vit") or (twin.name, method) == ("marian", "mgk")
        data = CalibrationChoice(samples=24) if made else CalibrationChoice("none")
        convert_checkpoint(ConversionRequest(str(source), LOSSY[method], calibration=data), output)
    return source, output


@each(name=TWINS.keys(), method=LOSSY.keys())
def test_06_converting_twice_gives_identical_bytes(twin: Twin, method: str, folders: Path, tmp_path: Path):
    (_, one), (_, two) = (checkpoint(twin, method, folder) for folder in (folders, tmp_path))
    for file in ("model.safetensors", "config.json"):
        assert filecmp.cmp(one / file, two / file, shallow=False)


@every_method
def test_07_the_parameter_count_is_the_specs_formula(twin: Twin, method: str):
    converted, report = hf_heads.convert(twin.model(), LOSSY[method], calibration="none")
    for block, row in zip(find_blocks(converted), report.blocks, strict=True):
        owned = {id(p): p.numel() for part in (block.module, block.output) for p in part.parameters()}
        grows = method == "collab-tucker" or "mgk" in method
        assert grows or row.parameters < row.parameters_before
        assert sum(owned.values()) == row.parameters
    assert report.model_parameters == sum(parameter.numel() for parameter in converted.parameters())


@pairwise(KIND, name=TWINS.keys(), method=LOSSY.keys(), calibrated=[False, True])
def test_08_the_source_model_is_unchanged(twin: Twin, method: str, calibrated: bool):
    model = twin.model().train()
    before = copy.deepcopy(model.state_dict())
    classes = [type(module) for module in model.modules()]
    converted, _ = hf_heads.convert(model, LOSSY[method], calibration=[twin.inputs()] if calibrated else None)
    assert [type(module) for module in model.modules()] == classes
    assert model.training and converted.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    mine = {parameter.data_ptr() for parameter in converted.parameters()}
    assert not mine & {parameter.data_ptr() for parameter in model.parameters()}


@every_method_and_implementation
def test_09_bfloat16_is_finite(twin: Twin, method: str, implementation: str):
    converted = convert(twin.name, method, implementation).to(torch.bfloat16)
    inputs = {
        name: value.to(torch.bfloat16) if value.is_floating_point() else value for name, value in twin.inputs().items()
    }
    assert torch.isfinite(logits(converted, inputs)).all()


@every_method
def test_10_training_from_scratch_starts_finite_and_not_constant(twin: Twin, method: str):
    converted = convert(twin.name, method)
    fresh = type(converted)._from_config(copy.deepcopy(converted.config)).eval()
    found = logits(fresh, twin.inputs())
    assert torch.isfinite(found).all()
    assert found.std(0).max() > 1e-4
    for block in find_blocks(fresh):
        for name, parameter in block.module.named_parameters():
            assert torch.isfinite(parameter).all(), name
            starts_at_zero = name == "content_bias.weight"
            if parameter.numel() and not starts_at_zero and (name.endswith("weight") or name == "mixing"):
                assert 0 < parameter.std() < 2, name


@every_method
def test_11_every_tensor_outside_the_attention_is_the_originals(twin: Twin, method: str, folders: Path):
    before, after = (load_file(folder / "model.safetensors") for folder in checkpoint(twin, method, folders))
    attention = ("query", "key", "value", "q_proj", "k_proj", "v_proj", "o_proj", "out_proj", "attention.output.dense")
    outside = {name for name in before if not any(f"{part}." in name for part in attention)}
    assert len(outside) > 10
    assert outside <= set(after)
    assert all(torch.equal(before[name], after[name]) for name in outside)
    new = (
        "shared_",
        "_embedding",
        "component_",
        "shifts",
        "prior",
        "log_precision",
        "norm_coefficient",
        "mixing",
        "content_bias",
        "narrow_query",
        "narrow_key",
    )
    rest = {name for name in set(after) - outside if not any(part in name for part in new)}
    assert rest <= set(before)  # what stays of the attention kept its names


@pytest.mark.parametrize("name", TWINS)
def test_the_record_computes_what_the_host_computes(twin: Twin):
    """The formula of `DenseAttention`, written out, against the host's own attention module."""
    model = twin.model()
    generator = torch.Generator().manual_seed(7)
    x, y = (torch.randn(2, length, WIDTH, generator=generator) for length in (5, 6))
    for block in find_blocks(model):
        if block.kind == "causal":
            continue
        dense = read_host(block.module, block.site, block.output)
        memory = y if block.kind == "cross" else x
        with torch.no_grad():
            weights = dense.scores(x, memory).softmax(-1)
            context = weights @ dense.values(memory)
            wanted = torch.einsum("bhte,hed->btd", context, dense.output) + dense.output_bias
            inputs = {block.site.memory: memory} if block.kind == "cross" else {}
            found = block.module(x, **inputs)[0]
            if not block.site.output_inside:
                found = block.output(found)
        assert (found - wanted).abs().max() < 1e-5
