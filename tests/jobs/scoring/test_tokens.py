"""What errors at each token count for: against gradients taken one by one."""

from __future__ import annotations

import pytest
import torch

from hf_heads.attention.hosts.blocks import find_blocks
from hf_heads.jobs.scoring.sensitivity import measured_output, probe_output
from hf_heads.jobs.scoring.tokens import token_weights
from tests.support.twins import TWINS


@pytest.mark.parametrize("name", ["bert", "vit", "marian"])
def test_they_are_sizes_of_gradients(name: str):
    model, batch = TWINS[name].model(), TWINS[name].inputs()
    blocks = find_blocks(model)
    trained = [one.requires_grad for one in model.parameters()]
    found = token_weights(model, [batch], [block.name for block in blocks])
    assert [one.requires_grad for one in model.parameters()] == trained
    for block in blocks:
        seen: list[torch.Tensor] = []
        handle = block.output.register_forward_hook(lambda _, __, output, seen=seen: seen.append(output))
        probe = probe_output(*measured_output(model, batch), torch.Generator().manual_seed(0))
        handle.remove()
        (gradient,) = torch.autograd.grad(probe, seen)
        square, mask = gradient.square().sum(-1), batch.get(block.site.query_mask)
        real = torch.ones_like(square) if mask is None else mask.to(square)
        wanted = (square * real / square[(real > 0) & (square > 0)].mean() + 1e-2).sqrt()
        torch.testing.assert_close(found[block.name][0], wanted.clamp_max(30.0), rtol=1e-3, atol=1e-5)


def test_a_classifier_depends_on_its_first_token_alone():
    """In the last block of a model whose output is read from one token, no other token counts."""
    model, batch = TWINS["vit"].model(), TWINS["vit"].inputs()
    last = find_blocks(model)[-1].name
    found = token_weights(model, [batch], [last])[last][0]
    assert (found[:, 1:] == 0.1).all() and (found[:, 0] > 0.2).all()
