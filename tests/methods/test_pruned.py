"""Removal of heads, masks of heads, and how the two agree."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoModelForSeq2SeqLM, PreTrainedModel

import hf_heads
from hf_heads import CollabSpec, HeadsError, LowRankSpec, PrunedSpec, head_mask, prune_heads
from hf_heads.attention.hosts.blocks import find_blocks
from hf_heads.attention.hosts.reading import read_host
from hf_heads.attention.module import HeadsAttention
from hf_heads.modeling.blocks import block_shape
from tests.support.matrix import each, pairwise
from tests.support.twins import HEADS, TWINS, WIDTH, Twin, logits


@pytest.fixture
def twin(name: str) -> Twin:
    return TWINS[name]


IMPLEMENTATIONS = ("eager", "sdpa")
every_twin = pytest.mark.parametrize("name", TWINS)
each_implementation = each(name=TWINS.keys(), implementation=IMPLEMENTATIONS)


KEPT = ((1, 3), (), (0,), (0, 1, 2))  # one after the other for the blocks of a model


def specs(model: PreTrainedModel) -> dict[str, PrunedSpec]:
    return {block.name: PrunedSpec(kept=KEPT[index % len(KEPT)]) for index, block in enumerate(find_blocks(model))}


def mask_of(chosen: dict[str, PrunedSpec]) -> dict[str, torch.Tensor]:
    return {
        name: torch.tensor([float(head in (spec.kept or ())) for head in range(HEADS)]) for name, spec in chosen.items()
    }


@each_implementation
def test_removing_heads_is_masking_them(twin: Twin, implementation: str, tmp_path: Path):
    model = twin.model(implementation)
    chosen = specs(model)
    pruned, report = hf_heads.convert(model, chosen, calibration="none")
    with head_mask(model, mask_of(chosen)):
        wanted = logits(model, twin.inputs())
    assert (logits(pruned, twin.inputs()) - wanted).abs().max() < 1e-5
    assert (logits(model, twin.inputs()) - wanted).abs().max() > 1e-2
    assert [block.spec.heads for block in report.blocks] == [len(spec.kept or ()) for spec in chosen.values()]
    for block in find_blocks(pruned):  # nothing is masked: the matrices are smaller
        assert block.output.in_features == len(chosen[block.name].kept or ()) * WIDTH // HEADS
    pruned.save_pretrained(tmp_path)
    loaded = type(pruned).from_pretrained(tmp_path, attn_implementation=implementation)
    assert (logits(loaded, twin.inputs()) - wanted).abs().max() < 1e-5
    # And what was pruned can be converted on, without loss at the lossless rank of every block.
    for spec in (CollabSpec(rank=WIDTH), LowRankSpec(rank=WIDTH)):
        again, _ = hf_heads.convert(loaded, spec, calibration="none")
        assert (logits(again, twin.inputs()) - wanted).abs().max() < 1e-5
        again.save_pretrained(tmp_path / spec.method)
        reloaded = type(again).from_pretrained(tmp_path / spec.method)
        assert (logits(reloaded, twin.inputs()) - wanted).abs().max() < 1e-5
        assert {block.name: block_shape(block).heads for block in find_blocks(reloaded)} == {
            name: len(kept.kept or ()) for name, kept in chosen.items()
        }


@every_twin
def test_a_mask_multiplies_the_attention_weights(twin: Twin):
    """The formula of a masked block, written out, against the model's own block within the mask."""
    model = twin.model()
    generator = torch.Generator().manual_seed(7)
    x, y = (torch.randn(2, length, WIDTH, generator=generator) for length in (5, 6))
    mask = torch.tensor([1.0, 0.0, -0.5, 2.0])
    for block in find_blocks(model):
        if block.kind == "causal":
            continue
        dense = read_host(block.module, block.site, block.output)
        memory = y if block.kind == "cross" else x
        weights = dense.scores(x, memory).softmax(-1) * mask[:, None, None]
        wanted = torch.einsum("bhte,hed->btd", weights @ dense.values(memory), dense.output) + dense.output_bias
        inputs = {block.site.memory: memory} if block.kind == "cross" else {}
        with torch.no_grad(), head_mask(model, {block.name: mask}):
            found = block.module(x, **inputs)[0]
            found = found if block.site.output_inside else block.output(found)
        assert (found - wanted).abs().max() < 1e-5


@each_implementation
def test_masks_can_be_differentiated_nested_and_given_for_every_example(twin: Twin, implementation: str):
    model, inputs = twin.model(implementation), twin.inputs()
    blocks = find_blocks(model)
    examples = 3
    mask = torch.rand(examples, HEADS, generator=torch.Generator().manual_seed(0)).requires_grad_()
    last = blocks[-1].name
    with head_mask(model, {last: mask}):
        found = model(**inputs)[0]
    (gradient,) = torch.autograd.grad(found.square().mean(), mask)
    assert (gradient.abs() > 0).all()
    for example in range(examples):
        with torch.no_grad(), head_mask(model, {last: mask[example].detach()}):
            assert (model(**inputs)[0][example] - found[example]).abs().max() < 1e-5
    half = torch.full((len(blocks), HEADS), 0.5)
    with head_mask(model, half), head_mask(model, torch.full((HEADS,), 2.0)):
        assert (logits(model, inputs) - logits(twin.model(implementation), inputs)).abs().max() < 1e-5


@pairwise(name=TWINS.keys(), method={"collab": CollabSpec(rank=10), "pruned": PrunedSpec(kept=(0, 2))})
def test_converted_models_can_be_masked_as_well(twin: Twin, method: hf_heads.HeadsSpec):
    model, _ = hf_heads.convert(twin.model(), method, calibration="none")
    heads = [block_shape(block).heads for block in find_blocks(model)]
    mask = {block.name: torch.ones(count) for block, count in zip(find_blocks(model), heads, strict=True)}
    before = logits(model, twin.inputs())
    with head_mask(model, mask):
        assert torch.equal(logits(model, twin.inputs()), before)
    mask[find_blocks(model)[0].name][0] = 0
    with head_mask(model, mask):
        assert (logits(model, twin.inputs()) - before).abs().max() > 1e-3


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_generation_with_empty_blocks_and_masks(tmp_path: Path, implementation: str):
    twin = TWINS["marian"]
    model = twin.model(implementation)
    chosen = {block.name: PrunedSpec(kept=(2,) if block.kind == "self" else ()) for block in find_blocks(model)[:4]}
    assert {block.kind for block in find_blocks(model)[:4]} == {"self", "causal", "cross"}
    hf_heads.convert(model, chosen, calibration="none")[0].save_pretrained(tmp_path)
    pruned = AutoModelForSeq2SeqLM.from_pretrained(tmp_path, attn_implementation=implementation)
    inputs = {name: value for name, value in twin.inputs().items() if not name.startswith("decoder")}
    settings = dict(do_sample=False, max_new_tokens=8, num_beams=3)
    wanted = pruned.generate(**inputs, **settings, use_cache=False)
    assert torch.equal(pruned.generate(**inputs, **settings), wanted)
    assert torch.equal(
        pruned.generate(**inputs, **settings, cache_implementation="static", disable_compile=True), wanted
    )
    with head_mask(model, mask_of(chosen)):
        assert torch.equal(model.generate(**inputs, **settings), wanted)


def test_a_cache_of_a_block_without_heads_knows_its_length():
    """transformers reads the length of a cache off its first layer."""
    twin = TWINS["marian"]
    model, report = hf_heads.convert(
        twin.model(), {"decoder.layers.0.self_attn": PrunedSpec(kept=())}, calibration="none"
    )
    cache = model(**twin.inputs(), use_cache=True).past_key_values
    assert cache.get_seq_length() == twin.inputs()["decoder_input_ids"].shape[1]
    keys = cache.self_attention_cache.layers[0].keys
    values = cache.self_attention_cache.layers[0].values
    assert keys[0, :, 0].numel() + values[0, :, 0].numel() == report.blocks[0].cache == 1


# prune_heads, as transformers 4 had it


def test_prune_heads_by_layer_in_place_and_by_the_original_numbers(tmp_path: Path):
    twin = TWINS["bert"]
    model = twin.model()
    mask = torch.ones(2, HEADS)
    mask[0, [1, 2]] = 0
    with head_mask(model, mask):
        wanted = logits(model, twin.inputs())
    prune_heads(model, {0: [2, 1]})
    assert (logits(model, twin.inputs()) - wanted).abs().max() < 1e-5
    prune_heads(model, {0: [1]})  # gone already
    assert (logits(model, twin.inputs()) - wanted).abs().max() < 1e-5
    prune_heads(model, {0: [3], 1: {0}})
    mask[0, 3] = mask[1, 0] = 0
    fresh = twin.model()
    with head_mask(fresh, mask):
        assert (logits(model, twin.inputs()) - logits(fresh, twin.inputs())).abs().max() < 1e-5
    assert [spec.kept for spec in model.config.block_specs().values()] == [(0,), (1, 2, 3)]
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    prune_heads(loaded, {1: [2]})
    assert loaded.config.block_specs()["encoder.layer.1.attention.self"].kept == (1, 3)


def test_prune_heads_refuses_what_it_cannot_do():
    bert, marian = TWINS["bert"].model(), TWINS["marian"].model()
    for model, heads, text in (
        (bert, {7: [0]}, "there is no layer 7; layers are numbered 0 to 1"),
        (bert, {0: [4]}, "has no head 4; its heads are 0 to 3"),
        (bert, {"encoder.layer.9": [0]}, "there is no attention block 'encoder.layer.9'"),
        (marian, {0: [0]}, "layer 0 could be encoder.layers.0.self_attn or decoder.layers.0.self_attn"),
        (hf_heads.convert(bert, CollabSpec(rank=8), calibration="none")[0], {0: [0]}, "is collab already"),
    ):
        with pytest.raises(HeadsError, match=re.escape(text)):
            prune_heads(model, heads)
    assert not any(isinstance(block.module, HeadsAttention) for block in find_blocks(bert))
    prune_heads(marian, {"decoder.layers.1.encoder_attn": [0, 1, 2, 3]})
    assert block_shape(find_blocks(marian, "decoder.layers.1.encoder_attn")[0]).heads == 0


# What cannot be done


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({}, "pruned needs the share of heads to keep"),
        ({"keep": 1.5}, "keep is 1.5, expected 0 to 1"),
        ({"keep": -0.1}, "keep is -0.1, expected 0 to 1"),
        ({"keep": 0.5, "kept": (1,)}, "leave out kept"),
        ({"kept": (0, 7)}, "has no head 7; its heads are 0, 1, 2, 3"),
        ({"keep": 0.5, "steps": 0}, "steps is 0, expected 1 to 1000"),
        ({"keep": 0.5}, "gauss-newton needs data"),
        ({"keep": 0.5, "score": "gradient"}, "gradient needs data"),
        ({"keep": 0.5, "score": "gradiant"}, "score is 'gradiant', expected one of gauss-newton"),
        ({"keep": 0.5, "scores": "/no/such/file"}, "cannot read the scores '/no/such/file'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], text: str):
    with pytest.raises(HeadsError, match=re.escape(text)):
        hf_heads.convert(TWINS["bert"].model(), PrunedSpec(**settings), calibration="none")


@pytest.mark.parametrize(
    ("mask", "text"),
    [
        (torch.ones(3), "has 4 heads, but its mask has shape (3,)"),
        (torch.ones(5, 4), "the head mask has 5 rows, but the model has 2 attention blocks"),
        (torch.ones(1, 1, 4), "the head mask has shape (1, 1, 4)"),
        ({"layer": torch.ones(4)}, "there is no attention block 'layer'"),
        ({3: torch.ones(4)}, "there is no layer 3"),
    ],
)
def test_masks_that_do_not_fit_are_refused(mask: object, text: str):
    with pytest.raises(HeadsError, match=re.escape(text)), head_mask(TWINS["bert"].model(), mask):  # type: ignore[arg-type]
        pass


def test_what_has_no_heads_left_is_passed_over():
    model, _ = hf_heads.convert(TWINS["bert"].model(), {"*.0.*": PrunedSpec(kept=())}, calibration="none")
    again, report = hf_heads.convert(model, CollabSpec(rank=8), calibration="none")
    assert [block.name for block in report.blocks] == ["encoder.layer.1.attention.self"]
    with pytest.raises(HeadsError, match="all heads of the chosen blocks are gone already"):
        hf_heads.convert(again, CollabSpec(rank=8), blocks="*.0.*", calibration="none")


def test_repair_lowers_the_error_of_the_block():
    twin = TWINS["bert"]
    model = twin.model()
    batches = [{name: value.repeat(8, 1) for name, value in twin.inputs().items()}]
    generator = torch.Generator().manual_seed(0)
    batches[0]["input_ids"] = torch.randint(1, 98, batches[0]["input_ids"].shape, generator=generator)
    plain, _ = hf_heads.convert(model, PrunedSpec(kept=(0, 1, 2)), calibration=batches)
    repaired, report = hf_heads.convert(model, PrunedSpec(kept=(0, 1, 2), repair=True), calibration=batches)
    assert all(block.refit_gain is not None and block.refit_gain > 0 for block in report.blocks)
    wanted = logits(model, batches[0])
    errors = [(logits(one, batches[0]) - wanted).square().mean() for one in (repaired, plain)]
    assert errors[0] < 0.7 * errors[1]
