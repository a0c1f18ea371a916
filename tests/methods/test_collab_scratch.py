"""Collaborative heads from scratch (arXiv 2006.16362): how they start, against heads of their own written naively."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import AutoModel, BertConfig, PreTrainedModel, T5Config, ViTConfig

import hf_heads
from hf_heads import CollabSpec, HeadsError
from hf_heads.attention.hosts.blocks import find_blocks
from tests.support.twins import TWINS

WIDE = BertConfig(hidden_size=128, num_attention_heads=4, num_hidden_layers=1, intermediate_size=8, vocab_size=9)
NO_BIASES = T5Config(d_model=32, d_kv=8, num_heads=4, d_ff=16, num_layers=1, num_decoder_layers=1, vocab_size=50)


def fresh(config: object, spec: CollabSpec) -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModel.from_config(hf_heads.heads_config(copy.deepcopy(config), spec)).eval()


@pytest.mark.parametrize("rank", [64, 96, 128])
@pytest.mark.parametrize("form", ["cp", "tucker"])
def test_the_concatenation_of_heads_scores_as_heads_of_their_own(rank: int, form: str):
    module = find_blocks(fresh(WIDE, CollabSpec(rank=rank, form=form, start="concatenate")).double())[0].module
    x, y = torch.randn(2, 1, 5, 128, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        found = module.scores(x, y)
    width = rank // 4
    for head in range(4):
        own = slice(head * width, (head + 1) * width)
        query, key = x @ module.shared_query.weight[own].T, y @ module.shared_key.weight[own].T
        wanted = query @ key.mT / 32**0.5  # the host's scale, whatever the rank
        assert (found[:, head] - wanted).abs().max() < 1e-12


def test_of_a_rank_that_heads_do_not_divide_the_last_have_less():
    mixing = find_blocks(fresh(WIDE, CollabSpec(rank=10, start="concatenate")))[0].module.mixing
    assert mixing.sum(1).tolist() == [3, 3, 3, 1] and mixing.sum(0).tolist() == [1] * 10


def test_starts_differ_and_the_content_bias_is_zero():
    spread = {}
    for start in (None, "concatenate", "uniform"):
        module = find_blocks(fresh(WIDE, CollabSpec(rank=128, start=start)))[0].module
        assert not module.content_bias.weight.any()
        x = torch.randn(1, 40, 128, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            spread[start] = float(module.scores(x, x).std())
        assert start != "uniform" or float(module.mixing.detach().std()) == pytest.approx(0.2, abs=0.02)
    # The variance of heads of width 32 is that of their concatenation, and of uniform .04 * 128 / 32 as much.
    assert spread[None] == pytest.approx(spread["concatenate"], rel=0.15)
    assert spread["uniform"] == pytest.approx(0.4 * spread["concatenate"], rel=0.15)


def test_what_is_loaded_is_not_started_again(tmp_path: object):
    model = fresh(WIDE, CollabSpec(rank=64, start="concatenate"))
    module = find_blocks(model)[0].module
    torch.nn.init.normal_(module.content_bias.weight)
    torch.nn.init.normal_(module.mixing)
    model.save_pretrained(tmp_path)
    loaded = find_blocks(AutoModel.from_pretrained(tmp_path))[0].module
    assert torch.equal(loaded.content_bias.weight, module.content_bias.weight)
    assert torch.equal(loaded.mixing, module.mixing)


def test_a_host_without_biases_has_no_content_bias_from_scratch_and_a_conversion_has_one():
    model = fresh(NO_BIASES, CollabSpec(rank=16))
    inputs = {"input_ids": torch.arange(1, 7)[None], "decoder_input_ids": torch.arange(4)[None]}
    for block in find_blocks(model):
        owned = sum(p.numel() for p in {*block.module.parameters(), *block.output.parameters()})
        beside = sum(p.numel() for name, p in block.module.named_parameters() if "relative" in name)
        assert block.module.content_bias is None
        assert owned - beside == block.module.spec.parameters(block.module.shape)
    outputs = model(**inputs, use_cache=True)
    layer = outputs.past_key_values.self_attention_cache.layers[0]
    module = next(block for block in find_blocks(model) if block.kind == "causal").module
    assert layer.keys.shape[-1] + layer.values.shape[-1] == module.spec.cache_per_token(module.shape)
    assert torch.isfinite(outputs[0]).all()


def test_a_conversion_makes_a_content_bias_whatever_the_host_has():
    vit = ViTConfig(hidden_size=32, num_attention_heads=4, num_hidden_layers=1, intermediate_size=8, image_size=8)
    vit.patch_size, vit.qkv_bias = 4, False
    model, inputs = fresh(vit, CollabSpec(rank=16)), {"pixel_values": torch.randn(2, 3, 8, 8)}
    assert find_blocks(model)[0].module.content_bias is None
    again, _ = hf_heads.convert(model, CollabSpec(rank=32), calibration="none")
    assert find_blocks(again)[0].module.content_bias is not None
    with torch.no_grad():
        assert (again(**inputs)[0] - model(**inputs)[0]).abs().max() < 1e-4


def test_a_content_bias_can_be_had_or_left_out_by_name():
    assert find_blocks(fresh(NO_BIASES, CollabSpec(rank=16, content_bias=True)))[0].module.content_bias is not None
    assert find_blocks(fresh(WIDE, CollabSpec(rank=16, content_bias=False)))[0].module.content_bias is None


@pytest.mark.parametrize("settings", [{"start": "uniform"}, {"start": "concatenate"}, {"content_bias": False}], ids=str)
def test_a_conversion_refuses_what_it_would_ignore(settings: dict[str, object]):
    with pytest.raises(HeadsError, match="is for collab from scratch"):
        hf_heads.convert(TWINS["bert"].model(), CollabSpec(rank=8, **settings), calibration="none")


def test_a_uniform_start_of_another_form_is_refused():
    with pytest.raises(HeadsError, match="start uniform is of form cp"):
        CollabSpec(rank=8, form="tucker", start="uniform")
