"""What rows name of what hosts compute around their attention."""

from __future__ import annotations

from types import FunctionType

import pytest
import torch

from hf_heads.attention.hosts.parts import hook, local_window, named, resolved, rotary
from hf_heads.attention.hosts.table import ADAPTERS


@pytest.mark.parametrize("name", ADAPTERS)
def test_every_name_in_a_row_is_that_of_a_function(name: str):
    found = resolved(ADAPTERS[name])
    for site, before in zip(found.sites, ADAPTERS[name].sites, strict=True):
        for hooked in ("encode", "bias", "after", "returns"):
            one = getattr(before, hooked)
            assert getattr(site, hooked) is (None if one is None else hook(one))
        assert (site.scale == before.scale) == (named(before.scale) is None)
        functions = [value for value in vars(site).values() if callable(value)]
        assert all(isinstance(one, FunctionType) and one.__qualname__.isidentifier() for one in functions)


def test_turned_states_keep_their_products_where_both_move():
    """Scores of turned queries and keys depend on how far they are apart, and what is not turned stays."""
    torch.manual_seed(0)
    query, key = torch.randn(1, 1, 1, 10), torch.randn(1, 1, 1, 10)
    angles = torch.arange(12.0)[:, None] * torch.tensor([1.0, 0.1, 0.01])
    both = torch.cat([angles, angles], -1)[None]

    def score(one: int, other: int) -> torch.Tensor:
        sides = []
        for states, place in ((query, one), (key, other)):
            given = {"position_embeddings": (both[:, place : place + 1].cos(), both[:, place : place + 1].sin())}
            sides.append(rotary(None, "", states, given))
        assert torch.equal(sides[0][..., 6:], query[..., 6:])
        return (sides[0] * sides[1]).sum()

    assert torch.allclose(score(5, 2), score(11, 8), atol=1e-5)
    assert not torch.allclose(score(5, 2), score(5, 3), atol=1e-3)


def test_a_window_is_what_the_host_sees():
    class Host:
        attention_type = "local"
        config = type("Config", (), {"window_size": 2})

    found = local_window(Host, {"hidden_states": torch.zeros(1, 2, 1)}, 3, 2, 6)
    seen = found[0, 0] == 0
    assert seen.tolist() == [[False, False, True, True, False, False], [False, False, False, True, True, False]]
