"""Queries and keys in groups of their own, and attention without embeddings: the baselines of arXiv 2310.07911."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM

import hf_heads
from hf_heads import HeadsError, MheSpec
from hf_heads.attention.hosts.blocks import find_blocks
from hf_heads.core.dense import AttentionShape, Biases
from hf_heads.methods.attention.mhe import MheAttention
from tests.contract.test_hosts import HOSTS
from tests.support.attention import block_inputs
from tests.support.twins import HEADS, TWINS, WIDTH, logits, randomize

DIM = WIDTH // HEADS
SHA, MQA = MheSpec(variant="none"), MheSpec(variant="none", groups_q=HEADS)
SETTINGS = {
    "SHA": SHA,
    "MQA": MQA,
    "GQA": MheSpec(variant="none", groups_q=HEADS, groups_k=2, groups_v=2),
    "mul, own queries": MheSpec(groups_q=HEADS),
    "mul, own keys": MheSpec(groups_q=2, groups_k=4),
    "add, 2 and 1": MheSpec(variant="add", groups_q=2, groups_k=1, groups_v=4),
    "SKV": MheSpec(variant="none", memory="skv"),
    "EL": MheSpec(variant="none", memory="el"),
}


def naive(module: MheAttention, x: Tensor, y: Tensor, allowed: Tensor) -> Tensor:
    """(batch, heads, target, head_dim), one head at a time."""
    spec = module.spec
    groups = {"query": spec.groups_q or spec.groups_qk, "key": spec.groups_qk, "value": spec.groups_v}

    def side(name: str, inputs: Tensor, head: int) -> Tensor:
        first = head // (HEADS // groups[name]) * DIM
        if spec.memory == "el" and name != "query":
            return inputs[..., first : first + DIM]
        linear = getattr(module, "shared_key" if (spec.memory, name) == ("skv", "value") else f"shared_{name}")
        shared = inputs @ linear.weight[first : first + DIM].T + linear.bias[first : first + DIM]
        if spec.variant == "none":
            return shared
        own = getattr(module, f"{name}_embedding")[head]
        return shared * (1 + own) if spec.variant == "mul" else shared + own

    contexts = []
    for head in range(HEADS):
        scores = side("query", x, head) @ side("key", y, head).mT / DIM**0.5
        contexts.append(scores.masked_fill(~allowed, -torch.inf).softmax(-1) @ side("value", y, head))
    return torch.stack(contexts, 1)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", SETTINGS)
@torch.no_grad()
def test_what_is_computed_is_the_formula_written_out(kind: str, implementation: str):
    for name in ("bert", "marian"):
        config = hf_heads.heads_config(copy.deepcopy(TWINS[name].model().config), SETTINGS[kind])
        model = AutoModel.from_config(config, attn_implementation=implementation).double().eval()
        randomize(model, seed=3)
        for given in block_inputs(model, torch.float64):
            wanted = given.expected(naive(given.block.module, given.x, given.memory, given.allowed))
            assert (given.output(given.additive) - wanted).abs().max() < 1e-12
            module = given.block.module
            owned = sum(p.numel() for p in {*module.parameters(), *given.block.output.parameters()})
            assert owned == module.spec.parameters(module.shape)


def test_the_baselines_have_the_papers_parameters():
    """Millions in the attention of a BERT-base, without biases."""
    shape = AttentionShape(12, 768, 768, 64, 64, 768, Biases(False, False, False, False))
    specs = {"SHA": SHA, "MQA": MheSpec(variant="none", groups_q=12), "MHE": MheSpec()}
    specs |= {"SKV": SETTINGS["SKV"], "EL": SETTINGS["EL"]}
    found = {name: 12 * spec.resolve(shape).parameters(shape) / 1e6 for name, spec in specs.items()}
    found["MHA"] = 12 * shape.parameters / 1e6
    assert {name: round(value, 2) for name, value in found.items()} == {
        "SHA": 8.85,
        "MQA": 15.34,
        "MHE": 8.88,
        "SKV": 21.23,
        "EL": 14.16,
        "MHA": 28.31,
    }
    assert found["MHE"] - found["SHA"] == pytest.approx(12 * 3 * 12 * 64 / 1e6)  # 3nd a layer


@pytest.mark.parametrize("kind", ["SKV", "EL"])
@torch.no_grad()
def test_a_cache_holds_what_is_key_and_value_once(kind: str):
    config = hf_heads.heads_config(copy.deepcopy(HOSTS["gpt2"].model().config), SETTINGS[kind])
    model = AutoModelForCausalLM.from_config(config).eval()
    randomize(model, seed=3)
    ids = torch.arange(6).view(2, 3) + 5
    settings = dict(max_new_tokens=5, do_sample=False, eos_token_id=None, pad_token_id=0, return_dict_in_generate=True)
    cached, anew = (model.generate(ids, use_cache=use, **settings) for use in (True, False))
    assert torch.equal(cached.sequences, anew.sequences)
    block = find_blocks(model)[0].module
    layer = cached.past_key_values.layers[0]
    assert (layer.keys.shape[-1] * HEADS, layer.values.numel()) == (block.spec.cache_per_token(block.shape), 0)


@pytest.mark.parametrize("kind", ["SKV", "EL"])
@torch.no_grad()
def test_what_has_no_values_of_its_own_is_a_standard_block_written_out(kind: str):
    config = hf_heads.heads_config(copy.deepcopy(TWINS["bert"].model().config), SETTINGS[kind])
    model, inputs = AutoModel.from_config(config).eval(), TWINS["bert"].inputs()
    randomize(model, seed=3)
    again, _ = hf_heads.convert(model, hf_heads.CollabSpec(rank=WIDTH), calibration="none")
    assert (logits(again, inputs) - logits(model, inputs)).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("host", "settings", "text"),
    [
        ("bert", {"memory": "skv"}, "memory skv is one of all heads, without embeddings: variant none, no groups"),
        ("bert", {"memory": "el", "variant": "none", "groups": 2}, "variant none, no groups"),
        ("llama", {"memory": "skv", "variant": "none"}, "memory skv needs keys that can be values"),
        ("bert", {"memory": "skv", "variant": "none"}, "memory skv is for training from scratch"),
    ],
)
def test_what_has_no_values_of_its_own_is_for_training_from_scratch(host: str, settings: dict[str, Any], text: str):
    with pytest.raises(HeadsError, match=re.escape(text)):
        hf_heads.convert({**TWINS, **HOSTS}[host].model(), MheSpec(**settings), calibration="none")
    with pytest.raises(HeadsError, match="memory el gives 2 heads 4 inputs each, of the block there are 12"):
        MheSpec(variant="none", memory="el").resolve(AttentionShape(2, 12, 12, 4, 4, 12))


@pytest.mark.parametrize("variant", ["mul", "add", "none"])
def test_queries_of_their_own_lose_what_one_key_cannot_say_and_no_more(variant: str):
    """The best key for given heads is the first singular vectors of their scores, stacked."""
    model, inputs = TWINS["bert"].model(), TWINS["bert"].inputs()
    with torch.no_grad():  # all keys of a block from one head's width: nothing is lost
        for block in find_blocks(model):
            mixing = torch.randn(HEADS, DIM, DIM, generator=torch.Generator().manual_seed(0))
            one = block.module.key.weight[:DIM]
            block.module.key.weight.copy_((mixing @ one).flatten(0, 1))
    spec = MheSpec(variant=variant, groups_q=HEADS, groups_k=1, groups_v=HEADS)
    for calibration in ("none", [inputs]):
        converted, report = hf_heads.convert(model, spec, calibration=calibration)
        assert max(block.error for block in report.blocks) < 1e-4
        assert (logits(converted, inputs) - logits(model, inputs)).abs().max() < 1e-3
        module = find_blocks(converted)[0].module
        assert module.shared_key.out_features == DIM and module.shared_query.out_features == WIDTH
        assert module.shared == () if variant == "none" else "key_embedding" in module.shared
    again, _ = hf_heads.convert(converted, MheSpec(groups=HEADS), calibration="none")  # a standard block still
    assert (logits(again, inputs) - logits(converted, inputs)).abs().max() < 1e-4


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_grouped_queries_are_one_form_whatever_the_host(name: str):
    twin = {**TWINS, **HOSTS}[name]
    spec = MheSpec(variant="none", groups_q=HEADS, groups_k=2, groups_v=1)
    model, _ = hf_heads.convert(twin.model(), spec, calibration="none")
    (entry, *others) = model.config.heads["blocks"].values()
    assert not others or entry.keys() == others[0].keys()
    found = {"method", "heads", "variant", "groups_qk", "groups_q", "groups_v", "order"}
    assert entry.keys() == found and (entry["variant"], entry["groups_q"]) == ("none", HEADS)
    module = find_blocks(model)[0].module
    assert module.shape.memory_heads == 2 and module.inertia == 1


@torch.no_grad()
def test_old_records_of_grouped_queries_load_and_are_saved(tmp_path: Path):
    """Which said it by `own_queries`, and called the tensor `own_query`."""
    twin = HOSTS["llama"]
    model, _ = hf_heads.convert(twin.model(), MheSpec(groups=1), calibration="none")
    model.save_pretrained(tmp_path / "new")
    state = load_file(tmp_path / "new" / "model.safetensors")
    (tmp_path / "old").mkdir()
    old = {name.replace("shared_query", "own_query"): one for name, one in state.items()}
    assert old.keys() != state.keys()
    save_file(old, tmp_path / "old" / "model.safetensors", {"format": "pt"})
    config = json.loads((tmp_path / "new" / "config.json").read_text())
    for entry in config["heads"]["blocks"].values():
        del entry["groups_q"]
        entry |= {"variant": "mul", "own_queries": True}
    (tmp_path / "old" / "config.json").write_text(json.dumps(config))
    wanted = logits(model, twin.inputs())
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "old")
    assert torch.equal(logits(loaded, twin.inputs()), wanted)
    loaded.save_pretrained(tmp_path / "again")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again")
    assert torch.equal(logits(again, twin.inputs()), wanted)
    converted, _ = hf_heads.convert(again, MheSpec(groups=1), calibration="none")
    assert "own_queries" not in str(converted.config.heads)
    assert (logits(converted, twin.inputs()) - wanted).abs().max() < 1e-3


def test_the_error_of_queries_of_their_own_is_below_that_of_shared_ones():
    model = TWINS["bert"].model()
    errors = []
    for spec in (MheSpec(groups_v=HEADS), MheSpec(groups_q=HEADS, groups_v=HEADS)):
        errors.append([block.error for block in hf_heads.convert(model, spec, calibration="none")[1].blocks])
    assert all(own < shared for shared, own in zip(*errors, strict=True))


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"groups_q": 3}, "3 groups do not divide the 4 heads"),
        ({"groups_k": 3}, "3 groups do not divide the 4 heads"),
        ({"groups": 2, "groups_q": 4, "groups_k": 1, "groups_v": 1}, "2 groups and groups_q 4, groups_v 1: leave one"),
        ({"groups_qk": 2, "groups_q": 4, "groups_k": 1}, "groups_qk 2 and groups_q 4, groups_k: leave one out"),
        ({"groups_q": 2, "groups_k": 1}, "2 groups of queries with 1 of keys are for training from scratch"),
        ({"variant": "none"}, "1 groups of queries without embeddings are for training from scratch"),
    ],
)
def test_groups_that_do_not_fit_are_refused(settings: dict[str, Any], text: str):
    with pytest.raises(HeadsError, match=re.escape(text)):
        hf_heads.convert(TWINS["bert"].model(), MheSpec(**settings), calibration="none")


def test_numbers_of_queries_and_keys_are_said_by_their_own_or_the_common_name():
    shape = AttentionShape(4, 8, 8, 2, 2, 8)
    for settings, wanted in (
        ({"groups": 2}, (2, 2, 2)),
        ({"groups": 2, "groups_q": 4}, (4, 2, 2)),
        ({"groups_k": 2}, (1, 2, 1)),
        ({"groups_qk": 2, "groups_k": 1}, (2, 1, 1)),
        ({"groups_q": 2, "groups_k": 2}, (2, 2, 1)),
    ):
        found = MheSpec(**settings).resolve(shape)
        assert (found.query_groups, found.groups_qk, found.groups_v) == wanted
        assert (
            MheSpec.block_type().from_mapping(
                {name: value for name, value in found.to_config().items() if name != "method"}
            )
            == found
        )


def test_the_embeddings_of_keys_never_train_in_add():
    """n d of its 3 n d parameters: they add the same to all scores of a row."""
    config = hf_heads.heads_config(copy.deepcopy(TWINS["bert"].model().config), MheSpec(variant="add"))
    model = AutoModel.from_config(config).double()
    randomize(model)
    inputs = {name: value for name, value in TWINS["bert"].inputs().items() if name != "labels"}
    model.train()(**inputs)[0].square().sum().backward()
    module = find_blocks(model)[0].module
    assert module.key_embedding.grad.abs().max() < 1e-9 < 1e-3 < module.query_embedding.grad.abs().max()
