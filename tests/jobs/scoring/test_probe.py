"""Heads with a job: the mean attention to the keys of a job, against loops; heads made to have one are found."""

from __future__ import annotations

import pytest
import torch
from transformers import BertModel

import hf_heads
from hf_heads.attention.hosts.blocks import find_blocks
from hf_heads.jobs.scoring.probe import host_places, jobs_left, probe_heads
from tests.support.twins import HEADS, TWINS, bert_config


def naive(weights: torch.Tensor, wanted) -> list[float]:
    """Mean over queries that have such keys of the attention to them; `wanted` says of (batch, query, key) if it is."""
    batch, heads, target, source = weights.shape
    sums, count = [0.0] * heads, 0
    for b in range(batch):
        for i in range(target):
            keys = [j for j in range(source) if wanted(b, i, j)]
            if keys:
                count += 1
                for h in range(heads):
                    sums[h] += float(sum(weights[b, h, i, j] for j in keys))
    return [one / count for one in sums]


def test_bert_against_loops() -> None:
    twin = TWINS["bert"]
    model = twin.model("sdpa")
    ids = torch.tensor([[5, 6, 7, 5, 8, 6, 9, 0], [9, 9, 4, 6, 4, 9, 3, 7]])
    types = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 0], [0, 0, 0, 0, 1, 1, 1, 1]])
    mask = torch.tensor([[1, 1, 1, 1, 1, 1, 1, 0], [1] * 8])
    batch = {"input_ids": ids, "token_type_ids": types, "attention_mask": mask}
    found = probe_heads(model, [batch]).found
    assert model.config._attn_implementation == "sdpa"

    model.set_attn_implementation("eager")
    seen: list[torch.Tensor] = []
    block = find_blocks(model)[1]
    block.module.register_forward_hook(lambda _, __, output: seen.append(output[1]))
    with torch.no_grad():
        model(**batch)

    def word(b: int, i: int) -> bool:
        return bool(mask[b, i]) and int(ids[b, i]) != model.config.pad_token_id

    def both(b: int, i: int, j: int) -> bool:
        return word(b, i) and word(b, j)

    def same(b: int, i: int, j: int) -> bool:
        return both(b, i, j) and i != j and bool(ids[b, i] == ids[b, j])

    jobs = {
        "matching": lambda b, i, j: same(b, i, j) and bool(types[b, i] != types[b, j]),
        "same": lambda b, i, j: same(b, i, j) and bool(types[b, i] == types[b, j]),
        "previous": lambda b, i, j: both(b, i, j) and j == i - 1,
        "next": lambda b, i, j: both(b, i, j) and j == i + 1,
        "first": lambda b, i, j: word(b, i) and j == 0 and bool(mask[b, j]),
    }
    for job, wanted in jobs.items():
        torch.testing.assert_close(torch.tensor(found[job][block.name]), torch.tensor(naive(seen[0], wanted)))


def test_a_matching_head_is_found_and_followed() -> None:
    """A head that is made to look for its own token has the job; collab at full rank keeps it, pruning says zero."""
    torch.manual_seed(0)
    model = hf_heads_bert()
    block = find_blocks(model)[0]
    with torch.no_grad():
        for places in (model.embeddings.position_embeddings, model.embeddings.token_type_embeddings):
            places.weight.zero_()
        width = model.config.hidden_size // HEADS
        for side in (block.module.query, block.module.key):
            side.weight[2 * width : 3 * width] = 3 * torch.eye(width, model.config.hidden_size)
    before = probe_heads(model)
    assert ("matching", block.name, 2) in [row[:3] for row in before.employed()]

    exact, _ = hf_heads.convert(model, hf_heads.CollabSpec(rank=32), calibration="none")
    for row in jobs_left(exact, before, probe_heads(exact)):
        assert row["after"] == pytest.approx(row["before"], abs=1e-4)
    pruned, _ = hf_heads.convert(model, {block.name: hf_heads.PrunedSpec(kept=(0, 3))}, blocks=block.name)
    after = probe_heads(pruned)
    left = {(row["job"], row["block"], row["head"]): row["after"] for row in jobs_left(pruned, before, after)}
    assert left["matching", block.name, 2] == 0.0
    assert len(after.found["matching"][block.name]) == 2


def hf_heads_bert() -> BertModel:
    return BertModel(bert_config(attention_probs_dropout_prob=0.0)).eval()


@pytest.mark.parametrize("name", ["vit", "marian", "bert-decoder"])
def test_every_kind_of_block(name: str) -> None:
    model = TWINS[name].model()
    found = probe_heads(model)
    blocks = find_blocks(model)
    for block in blocks:
        if name == "bert-decoder" and block.kind == "cross":
            continue  # made inputs have no encoder's states
        jobs = {job for job, rows in found.found.items() if block.name in rows}
        assert "first" in jobs
        assert ("induction" in jobs) == (block.kind == "causal")
        assert ("up" in jobs) == (name == "vit")
    assert all(0 <= value <= 1.001 for rows in found.found.values() for row in rows.values() for value in row)
    assert probe_heads(model).found == found.found


def test_places_of_heads() -> None:
    assert host_places(None, 3) == {0: 0, 1: 1, 2: 2}
    assert host_places(hf_heads.PrunedSpec(kept=(1, 3)), 2) == {1: 0, 3: 1}
    assert host_places(hf_heads.MheSpec(order=(2, 0, 1)), 3) == {2: 0, 0: 1, 1: 2}
    assert host_places(hf_heads.MgkSpec(merge=2, order=(3, 0, 1, 2)), 2) == {3: 0, 0: 0, 1: 1, 2: 1}
