"""Forward passes that stop at every block: what they hand over, and that the model is left as it was."""

from __future__ import annotations

import torch

from hf_heads.attention.hosts.blocks import find_blocks
from hf_heads.jobs.conversion.stepping import Stepper, call_block
from tests.support.twins import TWINS


def test_each_batch_stops_at_each_block_and_runs_once():
    model, inputs = TWINS["bert"].model(), TWINS["bert"].inputs()
    blocks = find_blocks(model)
    wanted = model(**inputs, output_hidden_states=True).hidden_states
    runs: list[int] = []
    handle = model.bert.embeddings.register_forward_hook(lambda *_: runs.append(1))
    with Stepper(model, [inputs, inputs], [block.name for block in blocks], [inputs]) as stepper:
        for block, hidden_states in zip(blocks, wanted, strict=False):
            stops = [*stepper.at(block.name), *stepper.at(block.name), *stepper.at(block.name, more=True)]
            assert len(stops) == 5 and not torch.is_grad_enabled()
            assert all(torch.equal(stop.hidden_states, hidden_states) for stop in stops)
            assert torch.equal(call_block(block.module, stops[0])[0], call_block(block.module, stops[-1])[0])
    handle.remove()
    assert len(runs) == 3
    assert torch.is_grad_enabled()
    assert not any("forward" in block.module.__dict__ for block in blocks)
    assert torch.equal(model(**inputs, output_hidden_states=True).hidden_states[-1], wanted[-1])


def test_a_cache_is_off_meanwhile_and_on_again():
    model, inputs = TWINS["marian"].model(), TWINS["marian"].inputs()
    model.config.use_cache = True
    names = [block.name for block in find_blocks(model)]
    with Stepper(model, [inputs], names) as stepper:
        assert not model.config.use_cache
        assert [len(list(stepper.at(name))) for name in names] == [1] * len(names)
    assert model.config.use_cache
