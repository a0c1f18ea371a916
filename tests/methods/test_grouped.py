"""Heads that share keys and values: query heads go one by one, a key and value head when nobody reads it any more."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, Cache, PreTrainedModel

import hf_heads
from hf_heads import PrunedSpec
from hf_heads.attention.hosts.blocks import find_blocks
from tests.contract.test_hosts import HOSTS
from tests.support.cli import Run
from tests.support.tokenizers import save_tokenizer
from tests.support.twins import HEADS, logits

GROUPED = ("llama", "qwen2", "qwen3", "phi3", "gpt_bigcode")


def masked(model: PreTrainedModel, kept: dict[str, tuple[int, ...]]) -> torch.Tensor:
    """What the original gives with all other heads switched off."""
    masks = {name: torch.tensor([float(head in heads) for head in range(HEADS)]) for name, heads in kept.items()}
    with hf_heads.head_mask(model, masks):
        return logits(model, HOSTS[GROUPED[0]].inputs())


@pytest.mark.parametrize("name", GROUPED)
@pytest.mark.parametrize(("kept", "read"), [((0, 2, 3), 2), ((2, 3), 1), ((1,), 1), ((), 0)])
def test_what_is_left_computes_what_it_did(name: str, kept: tuple[int, ...], read: int):
    model = HOSTS[name].model("sdpa")
    first, *others = [block.name for block in find_blocks(model)]
    chosen = {first: kept, **dict.fromkeys(others, (1, 2))}
    specs = {block: PrunedSpec(kept=heads) for block, heads in chosen.items()}
    converted = hf_heads.convert(model, specs, calibration="none")[0]
    inputs = HOSTS[name].inputs()
    assert (logits(converted, inputs) - masked(model, chosen)).abs().max() < 1e-4
    module = find_blocks(converted)[0].module
    groups = min(read, len({0} if name == "gpt_bigcode" else {0, 1}))
    assert module.shape.memory_heads == groups
    with torch.no_grad():
        found = converted(input_ids=inputs["input_ids"], use_cache=True)
    (cache,) = (value for value in found.values() if isinstance(value, Cache))
    assert cache.layers[0].keys.shape[1] == max(groups, 1)


def test_heads_go_in_turns_and_keep_their_numbers():
    model = HOSTS["llama"].model("sdpa")
    before = HOSTS["llama"].model("sdpa")
    hf_heads.prune_heads(model, {0: [0], 1: [3]})
    hf_heads.prune_heads(model, {0: [1, 3]})  # the first key head goes with its last reader
    names = [block.name for block in find_blocks(before)]
    kept = {names[0]: (2,), names[1]: (0, 1, 2)}
    assert (logits(model, HOSTS["llama"].inputs()) - masked(before, kept)).abs().max() < 1e-4
    specs = [block.module.spec for block in find_blocks(model)]
    assert [(spec.kept, spec.shared) for spec in specs] == [((2,), (0,)), ((0, 1, 2), (0, 0, 1))]


def test_the_command_line_measures_and_prunes_a_decoder(run: Run, tmp_path: Path):
    source, scores, output = tmp_path / "llama", tmp_path / "scores.json", tmp_path / "out"
    HOSTS["llama"].model().save_pretrained(source)
    save_tokenizer(source)
    found = run("importance", source, "--output", scores, "--calibration-samples", 16)
    assert found.code == 0, found.err
    found = run("convert", source, "--to", "pruned", "--keep", 0.5, "--scores", scores, "--output", output)
    assert found.code == 0, found.err
    assert run("verify", output).code == 0
    blocks = json.loads((output / "config.json").read_text())["heads"]["blocks"]
    assert sum(len(entry["kept"]) for entry in blocks.values()) == HEADS
    model = AutoModelForCausalLM.from_pretrained(output)
    tokens = HOSTS["llama"].inputs()["input_ids"][:1, :4]
    settings = dict(max_new_tokens=4, do_sample=False, pad_token_id=0)
    assert torch.equal(model.generate(tokens, **settings), model.generate(tokens, **settings, use_cache=False))
