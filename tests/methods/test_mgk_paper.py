"""What the paper of Gaussian keys (arXiv 2110.08678) and its authors' code set: written naively, in float64."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModel, BertConfig

import hf_heads
from hf_heads import HeadsError, MgkSpec
from hf_heads.attention import mixture
from hf_heads.attention.hosts.blocks import find_blocks
from hf_heads.attention.kernels import Conditions
from hf_heads.attention.mixture import hard_attention, linear_attention, responsibilities
from hf_heads.methods.attention.mgk import MgkAttention
from tests.support.twins import HEADS, TWINS, WIDTH

DIM = WIDTH // HEADS
SDPA = Conditions(implementation="sdpa")


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def block_of(name: str, **settings: Any) -> MgkAttention:
    model, _ = hf_heads.convert(TWINS[name].model(), MgkSpec(shift=0.5, **settings), calibration="none")
    return find_blocks(model.double().train())[0].module


def keys_and_queries(module: MgkAttention, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Queries (batch, heads, target, d) and keys (batch, heads, components, source, d) as the equations take them."""
    query = module.component_query(inputs).unflatten(-1, (HEADS, DIM)).transpose(1, 2)
    return query, module.components_of(module.project_memory(inputs)[0])


def shares_of(module: MgkAttention, inputs: Tensor, prior: Tensor, counted: Tensor) -> Tensor:
    """Equation 11, one example, query, position and component at a time: pi_jr = N_jr / N.

    Args:
        prior: (heads, components, source)
        counted: which pairs of query and position count, (batch, target, source).
    """
    query, key = keys_and_queries(module, inputs)
    batch, _, components, source, _ = key.shape
    found = prior.clone()
    for head in range(HEADS):
        for j in range(source):
            answered, number = torch.zeros(components, dtype=torch.float64), 0
            for b in range(batch):
                for i in counted[b, :, j].nonzero().flatten().tolist():
                    distance = (query[b, head, i] - key[b, head, :, j]).square().sum(-1)
                    terms = prior[head, :, j] * (-distance / (2 * DIM**0.5)).exp()
                    answered += terms / terms.sum()
                    number += 1
            if number:
                found[head, :, j] = answered / number
    return found


@pytest.mark.parametrize("form", ["keys", "boolean", "additive", "causal"])
def test_priors_of_positions_are_the_shares_of_real_queries(form: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(mixture, "_SOME_SCORES", 16)  # in several pieces
    module = block_of("bert", sigma="fixed", priors="em", positions=24)
    module.running_prior = drawn(HEADS, 2, 24).softmax(1)
    before, inputs, length = module.running_prior.clone(), drawn(2, 20, WIDTH, seed=1), 20
    real = torch.tensor([[1] * 20, [1] * 14 + [0] * 6]).bool()
    allowed = real[:, None, None].expand(2, 1, length, length)
    if form == "causal":
        allowed = allowed & torch.ones(length, length, dtype=torch.bool).tril()
    elif form != "keys":  # not the same memory in every row
        allowed = allowed.clone()
    mask = allowed
    if form == "additive":
        mask = torch.zeros_like(allowed, dtype=torch.float64).masked_fill(~allowed, torch.finfo(torch.float64).min)
    with torch.no_grad():
        module(inputs, attention_mask=mask)
        counted = allowed[:, 0] & real[:, :, None]
        wanted = shares_of(module, inputs, before[..., :length], counted)
    assert (module.running_prior[..., :length] - wanted).abs().max() < 1e-12
    assert (wanted - before[..., :length]).abs().max() > 0.01
    assert torch.equal(module.running_prior[..., length:], before[..., length:])  # no such positions were seen
    assert (module.running_prior.sum(1) - 1).abs().max() < 1e-12


def test_one_prior_for_all_positions_is_the_same_with_sums_over_them():
    module = block_of("bert", sigma="fixed", priors="em")
    inputs = drawn(2, 5, WIDTH, seed=1)
    with torch.no_grad():
        module(inputs)
        equal = torch.full((HEADS, 2, 5), 0.5, dtype=torch.float64)
        wanted = shares_of(module, inputs, equal, torch.ones(2, 5, 5, dtype=torch.bool)).mean(-1)
    assert (module.running_prior - wanted).abs().max() < 1e-12


def test_updates_settle_where_both_keys_keep_a_share_and_do_not_collapse():
    """Shares of the whole attention, which the nearest position decides, went to one component and zero."""
    query = torch.tensor([[-1.0], [-1.0], [-1.0], [-1.0], [1.0]], dtype=torch.float64).expand(5, 4)[None, None, None]
    key = torch.stack([torch.full((5, 4), -1.0), torch.full((5, 4), 1.0)]).double()[None, None]
    prior, distances = torch.full((1, 2, 1), 0.5, dtype=torch.float64), key.square().sum(-1) / 4
    for _ in range(200):
        additive = prior.log() - distances
        answered, seen = responsibilities(query, key, 0.5, additive, SDPA, own=True)
        prior = (answered.sum(-1) / seen.sum())[..., None]
    # 4 of 5 queries lie on the first key; the others are at distance 16, with exp(-16 / 4) of the weight.
    assert prior[0, 0, 0] == pytest.approx(0.81, abs=0.005) and prior[0, 1, 0] == pytest.approx(0.19, abs=0.005)


def test_in_cross_attention_all_queries_count():
    model, _ = hf_heads.convert(
        TWINS["marian"].model(), MgkSpec(priors="em", positions=20, shift=0.5), calibration="none"
    )
    model.train()(**TWINS["marian"].inputs())
    for block in find_blocks(model):
        prior = block.module.running_prior
        assert (prior.sum(1) - 1).abs().max() < 1e-5 and (prior[..., 0] - 0.5).abs().max() > 1e-3


@pytest.mark.parametrize("priors", ["learned", "em"])
def test_longer_inputs_than_there_are_priors_for_are_refused(priors: str):
    module = block_of("bert", priors=priors, positions=4)
    module(drawn(1, 4, WIDTH))
    with pytest.raises(HeadsError, match="priors for 4 positions, not for 5"):
        module(drawn(1, 5, WIDTH))


def test_hard_assignment_is_the_softmax_of_the_least_distance():
    """Remark 3: no prior enters."""
    module = block_of("bert", assignment="hard", sigma="fixed", components=3)
    assert not hasattr(module, "prior_logits") and module.spec.priors == "fixed"
    inputs = drawn(2, 6, WIDTH)
    query, key = keys_and_queries(module, inputs)
    distance = (query[:, :, None, :, None] - key[:, :, :, None]).square().sum(-1).amin(2)
    weights = (-distance / (2 * DIM**0.5)).softmax(-1)
    value = module.component_value(inputs).unflatten(-1, (HEADS, DIM)).transpose(1, 2)
    found = module.eval()(inputs)[0]
    assert (found - (weights @ value).transpose(1, 2).flatten(2)).abs().max() < 1e-12


def test_the_fixed_kernel_has_nothing_to_train_and_the_learned_one_starts_there():
    config = hf_heads.heads_config(TWINS["bert"].model().config, MgkSpec(sigma="fixed"))
    fixed = AutoModel.from_config(config)
    names = {name.rpartition(".")[2] for name, _ in fixed.named_parameters()}
    assert not names & {"log_precision", "norm_coefficient"}
    learned = AutoModel.from_config(hf_heads.heads_config(TWINS["bert"].model().config, MgkSpec()))
    learned.load_state_dict(fixed.state_dict(), strict=False)
    inputs = {name: value for name, value in TWINS["bert"].inputs().items() if name != "labels"}
    with torch.no_grad():
        one, other = (model.eval()(**inputs)[0] for model in (fixed, learned))
    assert (one - other).abs().max() < 1e-5


def test_shifts_start_as_the_authors_do():
    torch.manual_seed(0)
    config = BertConfig(hidden_size=256, num_attention_heads=4, num_hidden_layers=1, intermediate_size=8, vocab_size=9)
    model = AutoModel.from_config(hf_heads.heads_config(config, MgkSpec(mixture="smgk", components=3)))
    shifts = find_blocks(model)[0].module.shifts.detach()
    assert not shifts[:, 0].any()
    assert shifts[:, 1:].std() == pytest.approx(0.5, abs=0.05) and shifts[:, 1:].mean().abs() < 0.06


# Linear attention


def naive_linear(query: Tensor, key: Tensor, value: Tensor, prior: Tensor, allowed: Tensor) -> Tensor:
    phi_q, phi_k = torch.nn.functional.elu(query[:, :, 0]) + 1, torch.nn.functional.elu(key) + 1
    terms = torch.einsum("bhid,bhrjd->bhrij", phi_q, phi_k) * prior[:, :, None]
    weights = terms.sum(2) * allowed
    return weights / weights.sum(-1, keepdim=True).clamp_min(1e-20) @ value


class Largest(TorchDispatchMode):
    """The number of entries of the largest tensor that was made."""

    numbers = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        for one in made if isinstance(made, tuple | list) else (made,):
            if isinstance(one, Tensor):
                self.numbers = max(self.numbers, one.numel())
        return made


@contextmanager
def largest() -> Iterator[Largest]:
    with Largest() as found:
        yield found


@pytest.mark.parametrize("offset", [0, 5])
@pytest.mark.parametrize("padding", ["none", "left", "right"])
@pytest.mark.parametrize("chunk", [4, 64])
def test_a_causal_one_is_the_sum_over_what_was_seen(
    offset: int, padding: str, chunk: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(mixture, "_CHUNK", chunk)
    target, source = 11, 11 + offset
    query, key = drawn(2, 3, 1, target, 8), drawn(2, 3, 2, source, 8, seed=1)
    value, prior = drawn(2, 3, source, 4, seed=2), drawn(3, 2, source, seed=3).softmax(1)
    allowed = torch.ones(target, source, dtype=torch.bool).tril(offset)[None, None].expand(2, 1, -1, -1).clone()
    if padding != "none":
        allowed[1, ..., slice(0, 3) if padding == "left" else slice(-2, None)] = False
    mask = None if padding == "none" and not offset else allowed
    found, weights = linear_attention(query, key, value, prior.log(), Conditions(mask, True, implementation="sdpa"))
    assert weights is None
    assert (found - naive_linear(query, key, value, prior, allowed)).abs().max() < 1e-12
    # A mask of another form makes its weights.
    allowed[:, :, 7, :3] = False
    found, _ = linear_attention(query, key, value, prior.log(), SDPA._replace(mask=allowed))
    assert (found - naive_linear(query, key, value, prior, allowed)).abs().max() < 1e-12


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("causal", [False, True])
def test_no_matrix_of_all_queries_and_keys_is_made(causal: bool, dropout: float):
    length = 700
    query, key, value = drawn(1, 2, 1, length, 4), drawn(1, 2, 2, length, 4), drawn(1, 2, length, 4)
    query.requires_grad_()
    conditions = Conditions(None, causal, dropout, "sdpa")
    with largest() as found:
        linear_attention(query, key, value, torch.zeros(2, 2, 1), conditions)[0].sum().backward()
    assert found.numbers < length**2 / 4


def test_dropout_takes_positions_away_in_every_implementation():
    query, key = drawn(1, 2, 1, 30, 4), drawn(1, 2, 2, 30, 4, seed=1)
    ones, prior = torch.eye(30, dtype=torch.float64).expand(1, 2, 30, 30), torch.zeros(2, 2, 1)
    for causal in (False, True):
        whole, _ = linear_attention(query, key, ones, prior, Conditions(None, causal, 0.0, "sdpa"))
        seen = []
        for implementation in ("eager", "sdpa"):
            torch.manual_seed(1)
            found, _ = linear_attention(query, key, ones, prior, Conditions(None, causal, 0.4, implementation))
            kept = (found / whole.clamp_min(1e-9)).amax(-2)  # of each key, for all queries alike
            assert 0.3 < (kept == 0).double().mean() < 0.5
            assert (kept[kept > 0] - 1 / 0.6).abs().max() < 1e-6
            seen.append(found)
        assert (seen[0] - seen[1]).abs().max() < 1e-12


# Hard assignment without all scores


@pytest.mark.parametrize("gradients", [False, True])
def test_many_scores_are_made_in_pieces(gradients: bool, monkeypatch: pytest.MonkeyPatch):
    query, key, value = drawn(1, 2, 1, 200, 4), drawn(1, 2, 3, 200, 4, seed=1), drawn(1, 2, 200, 4, seed=2)
    additive, causal = -0.25 * key.square().sum(-1), Conditions(None, True, 0.0, "sdpa")
    results = []
    for piece in (2**20, 2**12):
        monkeypatch.setattr(mixture, "_SOME_SCORES", piece)
        given = [one.clone().requires_grad_(gradients) for one in (query, key, value)]
        with largest() as found:
            output, _ = hard_attention(*given, 0.5, additive, causal)
            grads = torch.autograd.grad(output.square().sum(), given) if gradients else ()
        results.append((output, *grads))
        assert (found.numbers >= 2 * 3 * 200**2) == (piece == 2**20)
    assert all((one - other).abs().max() < 1e-12 for one, other in zip(*results, strict=True))


def test_expectation_needs_no_more_memory_than_a_piece(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(mixture, "_SOME_SCORES", 2**12)
    query, key = drawn(1, 2, 1, 200, 4), drawn(1, 2, 3, 200, 4, seed=1)
    with largest() as found:
        answered, seen = responsibilities(query, key, 0.5, torch.zeros(1, 2, 3, 200).double(), SDPA, own=True)
    assert found.numbers < 2 * 3 * 200**2 / 4
    assert (answered.sum(1) - seen).abs().max() < 1e-9 and int(seen.max()) == 200


def test_old_checkpoints_with_hard_assignment_keep_their_priors():
    model, _ = hf_heads.convert(TWINS["bert"].model(), MgkSpec(assignment="hard", shift=0.5), calibration="none")
    config = copy.deepcopy(model.config)
    for entry in config.heads["blocks"].values():  # as earlier versions wrote it
        entry.pop("sigma")
        entry["priors"] = "learned"
    old = type(model)._from_config(config).eval()
    old.load_state_dict(model.state_dict(), strict=False)
    with torch.no_grad():
        for block in find_blocks(old):
            block.module.prior_logits.copy_(torch.tensor([3.0, -3.0]))
        found, wanted = (one(**TWINS["bert"].inputs())[0] for one in (old, model))
    assert (found - wanted).abs().max() > 1e-3
