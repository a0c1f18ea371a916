"""What transformers 5 took away: against cases computed by hand, and against slices of the weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from hf_heads.compat import find_pruneable_heads_and_indices, prune_conv1d_layer, prune_layer, prune_linear_layer
from hf_heads.core.errors import HeadsError


@pytest.mark.parametrize(
    ("heads", "n_heads", "gone", "fresh", "rows"),
    [
        ([1], 3, [], {1}, [0, 1, 4, 5]),
        ([0, 2], 4, [], {0, 2}, [2, 3, 6, 7]),
        ([], 2, [], set(), [0, 1, 2, 3]),
        ([2, 2], 3, [], {2}, [0, 1, 2, 3]),
        ([0, 1], 2, [], {0, 1}, []),
        # Of 4 heads, 1 is gone: 0, 2, 3 now stand at 0, 1, 2.
        ([3], 3, [1], {3}, [0, 1, 2, 3]),
        ([2], 3, [1], {2}, [0, 1, 4, 5]),
        ([0], 3, [1], {0}, [2, 3, 4, 5]),
        ([1, 2], 3, [1], {2}, [0, 1, 4, 5]),
        ([1], 3, [1], set(), [0, 1, 2, 3, 4, 5]),
        # Of 6 heads, 0 and 3 are gone: 1, 2, 4, 5 now stand at 0 to 3.
        ([5, 1], 4, [3, 0], {1, 5}, [2, 3, 4, 5]),
    ],
)
def test_rows_that_stay(heads: list[int], n_heads: int, gone: list[int], fresh: set[int], rows: list[int]):
    found, index = find_pruneable_heads_and_indices(heads, n_heads, 2, set(gone))
    assert found == fresh
    assert index.dtype == torch.long
    assert index.tolist() == rows


@pytest.mark.parametrize(("heads", "n_heads", "gone"), [([4], 4, []), ([-1], 4, []), ([5], 4, [0]), ([0], 2, [3])])
def test_a_head_that_never_was_is_refused(heads: list[int], n_heads: int, gone: list[int]):
    with pytest.raises(HeadsError, match="no head"):
        find_pruneable_heads_and_indices(heads, n_heads, 2, gone)


def test_pruning_twice_is_pruning_once():
    layer = nn.Linear(5, 6 * 4)
    fresh, index = find_pruneable_heads_and_indices([1, 4, 5], 6, 4, set())
    once = prune_linear_layer(layer, index)

    first, index = find_pruneable_heads_and_indices([4], 6, 4, set())
    twice = prune_linear_layer(layer, index)
    second, index = find_pruneable_heads_and_indices([1, 4, 5], 6 - len(first), 4, first)
    twice = prune_linear_layer(twice, index)

    assert first | second == fresh == {1, 4, 5}
    assert (once.in_features, once.out_features) == (twice.in_features, twice.out_features) == (5, 12)
    assert torch.equal(once.weight, twice.weight)
    assert torch.equal(once.bias, twice.bias)


@pytest.mark.parametrize("bias", [True, False])
def test_fewer_outputs_of_a_linear_are_a_slice_of_its_outputs(bias: bool):
    layer, index, inputs = nn.Linear(5, 7, bias=bias), torch.tensor([6, 0, 3]), torch.randn(2, 5)
    pruned = prune_linear_layer(layer, index)
    assert (pruned.in_features, pruned.out_features, pruned.bias is not None) == (5, 3, bias)
    assert torch.equal(pruned.weight, layer.weight[[6, 0, 3]])
    torch.testing.assert_close(pruned(inputs), layer(inputs)[:, [6, 0, 3]])


@pytest.mark.parametrize("bias", [True, False])
def test_fewer_inputs_of_a_linear_are_inputs_set_to_zero(bias: bool):
    layer, index, inputs = nn.Linear(5, 7, bias=bias), torch.tensor([1, 4]), torch.randn(2, 5)
    pruned = prune_linear_layer(layer, index, dim=1)
    assert (pruned.in_features, pruned.out_features, pruned.bias is not None) == (2, 7, bias)
    zeroed = inputs.clone()
    zeroed[:, [0, 2, 3]] = 0
    torch.testing.assert_close(pruned(inputs[:, [1, 4]]), layer(zeroed))


def test_conv1d_is_pruned_as_the_linear_that_is_its_transpose():
    conv, linear, inputs = Conv1D(7, 5), nn.Linear(5, 7), torch.randn(2, 5)
    with torch.no_grad():
        linear.weight.copy_(conv.weight.T)
        conv.bias.normal_()
        linear.bias.copy_(conv.bias)
    for index, conv_dim, linear_dim, kept in (([6, 0, 3], 1, 0, inputs), ([1, 4], 0, 1, inputs[:, [1, 4]])):
        pruned = prune_conv1d_layer(conv, torch.tensor(index), dim=conv_dim)
        wanted = prune_linear_layer(linear, torch.tensor(index), dim=linear_dim)
        assert (pruned.nx, pruned.nf) == (wanted.in_features, wanted.out_features) == tuple(pruned.weight.shape)
        torch.testing.assert_close(pruned(kept), wanted(kept))
    assert prune_conv1d_layer(conv, torch.tensor([2])).weight.shape == (5, 1)


def test_prune_layer_takes_outputs_unless_told_otherwise():
    index = torch.tensor([1, 2])
    linear, conv = nn.Linear(5, 7), Conv1D(7, 5)
    assert prune_layer(linear, index).weight.shape == (2, 5)
    assert prune_layer(linear, index, dim=1).weight.shape == (7, 2)
    assert prune_layer(conv, index).weight.shape == (5, 2)
    assert prune_layer(conv, index, dim=0).weight.shape == (2, 7)


def test_what_cannot_be_pruned_is_refused():
    with pytest.raises(ValueError, match="LayerNorm"):
        prune_layer(nn.LayerNorm(4), torch.tensor([0]))
    with pytest.raises(HeadsError, match="dim 2"):
        prune_layer(nn.Linear(4, 4), torch.tensor([0]), dim=2)


@pytest.mark.parametrize("make", [lambda: nn.Linear(4, 6), lambda: Conv1D(6, 4)], ids=["Linear", "Conv1D"])
def test_the_new_layer_is_a_copy_of_the_old_ones_kind(make):
    layer = make().to(torch.float16).requires_grad_(False).eval()
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    state = torch.get_rng_state()
    for dim in (0, 1):
        pruned = prune_layer(layer, torch.tensor([0, 2]), dim=dim)
        assert all(value.dtype == torch.float16 and value.requires_grad for value in pruned.parameters())
        assert all(value.is_leaf and value.grad_fn is None for value in pruned.parameters())
        assert not pruned.training
        with torch.no_grad():
            for value in pruned.parameters():
                value.zero_()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())
    assert not any(value.requires_grad for value in layer.parameters())


def test_a_layer_without_memory_is_pruned_on_its_device():
    for layer in (nn.Linear(4, 6, device="meta"), Conv1D(6, 4).to("meta")):
        assert {value.device.type for value in prune_layer(layer, torch.tensor([0, 2])).parameters()} == {"meta"}
