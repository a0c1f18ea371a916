"""Forward passes that stop at every block: what they hand over, and that the model is left as it was."""

from __future__ import annotations

import pytest
import torch

import hf_heads
from hf_heads.attention.hosts.blocks import find_blocks
from hf_heads.jobs.conversion.stepping import Running, Stepper, call_block
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


@pytest.mark.parametrize("twin", ["bert", "marian"])
def test_forward_passes_in_bfloat16_hand_over_float32_and_leave_the_thread_as_it_was(twin: str):
    model, inputs = TWINS[twin].model(), TWINS[twin].inputs()
    names = [block.name for block in find_blocks(model)]
    with (
        Stepper(model, [inputs], names, how=Running(compute="bfloat16")) as low,
        Stepper(TWINS[twin].model(), [inputs], names) as plain,
    ):
        for name in names:
            (here,), (there,) = list(low.at(name)), list(plain.at(name))
            assert not torch.is_autocast_enabled("cpu")
            assert here.hidden_states.dtype == torch.float32
            assert here.residual is None or here.residual.dtype == torch.float32
            error = (here.hidden_states - there.hidden_states).norm() / there.hidden_states.norm()
            assert error < 0.02
        assert error > 1e-5  # of the last block


def test_a_conversion_in_bfloat16_is_nearly_that_in_float32():
    found = {}
    for compute in ("float32", "bfloat16"):
        data = [TWINS["bert"].inputs() for _ in range(4)]
        model, report = hf_heads.convert(
            TWINS["bert"].model(), hf_heads.CollabSpec(rank=8), calibration=data, compute=compute
        )
        found[compute] = {block.name: block.error for block in report.blocks}
        assert report.to_dict()["compute"] == compute
        assert all(one.dtype == torch.float32 for one in model.parameters())
    first, last = next(iter(found["float32"])), list(found["float32"])[-1]
    assert found["bfloat16"][first] == pytest.approx(found["float32"][first], rel=1e-3)
    assert found["bfloat16"] != found["float32"]
    assert found["bfloat16"][last] == pytest.approx(found["float32"][last], rel=0.05)
