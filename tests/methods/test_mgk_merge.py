"""Heads merged into one: what each has of the common attention, and what is said where they do not fit together."""

from __future__ import annotations

import warnings

import pytest
import torch
from transformers import BertModel

import hf_heads
from hf_heads import MgkSpec
from hf_heads.attention.hosts.blocks import find_blocks
from hf_heads.attention.hosts.reading import read_host
from hf_heads.core.errors import HeadsWarning
from hf_heads.jobs.conversion.statistics import collect_statistics
from hf_heads.methods.mgk.conversion import from_dense
from tests.support.twins import TWINS, bert_config


@pytest.mark.parametrize("queries", ["own", "shared"])
def test_heads_have_as_much_of_the_common_attention_as_they_can_move_the_output(queries: str):
    """p = sum_h m_h p_h / sum_h m_h: equal shares become these by log m_h."""
    model, inputs = TWINS["bert"].model(), TWINS["bert"].inputs()
    block = find_blocks(model)[0]
    dense = read_host(block.module, block.site, block.output)
    statistics = collect_statistics(model, block, dense, [inputs])
    spec = MgkSpec(merge=2, queries=queries).resolve(dense.shape)
    energy, priors = torch.tensor([1.0, 2.0, 4.0, 3.0], dtype=torch.float64), []
    for each in (energy, torch.ones_like(energy)):
        statistics.head_energy = each
        made = from_dense(dense, statistics, spec)
        priors.append(made.weights["prior_logits"].double())
    shares = energy[torch.tensor(made.spec.order)].view(2, 2)
    change = (priors[0] - priors[1]).softmax(-1)
    near = 1e-5 if queries == "own" else 0.02  # which head counts how much also changes the query that they share
    torch.testing.assert_close(change, shares / shares.sum(1, keepdim=True), rtol=0, atol=near)


@pytest.mark.parametrize("queries", ["own", "shared"])
def test_merging_heads_that_attend_to_different_places_is_said(queries: str):
    model = BertModel(bert_config())
    with torch.no_grad():
        for block in find_blocks(model):
            for seed, linear in enumerate((block.module.query, block.module.key)):
                linear.weight.normal_(std=2, generator=torch.Generator().manual_seed(seed))
    inputs = TWINS["bert"].inputs()
    count = len(find_blocks(model))
    with pytest.warns(HeadsWarning, match=f"in {count} of {count} blocks the heads that were merged attend to diff"):
        hf_heads.convert(model, MgkSpec(merge=2, queries=queries), calibration=[inputs])
    with warnings.catch_warnings():
        warnings.simplefilter("error", HeadsWarning)
        hf_heads.convert(model, MgkSpec(merge=2, queries=queries), calibration="none")  # knows no attention
        for block in find_blocks(model):
            for linear in (block.module.query, block.module.key):
                torch.nn.init.normal_(linear.weight, std=0.02)
        hf_heads.convert(model, MgkSpec(merge=2, queries=queries), calibration=[inputs])
