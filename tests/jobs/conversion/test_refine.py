"""The refinement of scores: the divergence against the formula in a loop; it falls on sequences that were left out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

import hf_heads
from hf_heads.attention.hosts.blocks import Block, find_blocks
from hf_heads.core.attention_error import HIDDEN, AttentionSample, descend
from hf_heads.core.batches import Batch
from hf_heads.jobs.conversion import keeping
from hf_heads.jobs.conversion.convert import convert
from hf_heads.jobs.conversion.installing import load_weights
from hf_heads.jobs.conversion.refine import HELD_OUT, refine, take_samples
from hf_heads.jobs.conversion.repeats import made_repeats
from hf_heads.jobs.conversion.stepping import Stepper
from hf_heads.jobs.scoring.probe import HeadJobs
from hf_heads.methods.registry import get_method
from hf_heads.modeling.blocks import read_block
from tests.support.twins import HEADS, TWINS, bert_config

SPECS = {
    "collab": hf_heads.CollabSpec(rank=12),
    "low-rank": hf_heads.LowRankSpec(rank=8),
    "mhe": hf_heads.MheSpec(),
}


def texts(count: int, length: int, seed: int = 0) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 98, (count, length), generator=generator)
    ids[:, length // 2 :] = ids[:, : length - length // 2].flip(1)  # tokens repeat
    mask = torch.ones_like(ids)
    mask[0, -2:] = 0
    return [{"input_ids": ids, "attention_mask": mask}]


def test_divergence_against_loops() -> None:
    torch.manual_seed(0)
    attention, scores = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    hidden = torch.zeros(2, 1, 4, 5, dtype=torch.bool)
    hidden[1, :, :, 3:] = True
    attention = attention.masked_fill(hidden, -math.inf).softmax(-1)
    counts = torch.ones(2, 1, 4)
    counts[0, 0, 1] = 0
    sample = AttentionSample(torch.zeros(2, 4, 1), torch.zeros(2, 5, 1), hidden * HIDDEN, attention, counts)
    wanted = [0.0] * 3
    for b in range(2):
        for h in range(3):
            for i in range(4):
                keys = [j for j in range(5) if not hidden[b, 0, i, j]]
                total = sum(math.exp(scores[b, h, i, j]) for j in keys)
                for j in keys:
                    p, q = float(attention[b, h, i, j]), math.exp(scores[b, h, i, j]) / total
                    wanted[h] += float(counts[b, 0, i]) * p * math.log(p / q)
    torch.testing.assert_close(sample.divergence(scores), torch.tensor(wanted))
    scores.requires_grad_()
    sample.divergence(scores)[1].backward()
    softmax = scores.detach().masked_fill(hidden, -math.inf).softmax(-1)
    wanted_gradient = torch.zeros_like(scores)
    wanted_gradient[:, 1] = (softmax - attention)[:, 1] * counts[:, 0, :, None]
    torch.testing.assert_close(scores.grad, wanted_gradient)


@pytest.mark.parametrize("method", SPECS)
def test_it_falls_on_what_was_not_fitted(method: str) -> None:
    """Measured here on other texts, from the maps that the models themselves return."""
    model = TWINS["bert"].model()
    calibration = texts(400, 8)
    name = find_blocks(model)[0].name
    converted, report = convert(
        model, SPECS[method], calibration=calibration, refit=False, blocks=name, objective="scores"
    )
    order = getattr(report.blocks[0].spec, "order", None) or range(HEADS)
    before = kl(converted, model, order)
    host, block = find_blocks(model)[0], find_blocks(converted)[0]
    samples = samples_of(model, host, calibration)
    found = refine(block.module, get_method(method).scores, samples, order)
    assert found is not None and found.after < found.before
    assert kl(converted, model, order) == before, "the module is left as it is"
    load_weights(block, found.weights)
    assert kl(converted, model, order) < (0.97 if method == "collab" else 1.0) * before


def test_reported_and_never_worse() -> None:
    """Whether it helps or not, the report has the divergence before and after on sequences that were left out."""
    model = TWINS["bert"].model()
    _, report = convert(model, SPECS["collab"], calibration=texts(48, 10))
    assert report.to_dict()["objective"] == "attention"
    for block in report.to_dict()["blocks"]:
        assert 0 < block["divergence"] <= block["divergence_before"]


@pytest.mark.parametrize(
    ("spec", "options"),
    [
        (SPECS["collab"], {"calibration": "none"}),
        (SPECS["collab"], {"objective": "scores"}),
        (hf_heads.PrunedSpec(keep=0.5), {}),
    ],
)
def test_where_nothing_is_refined_the_report_says_so(spec: hf_heads.HeadsSpec, options: dict[str, str]) -> None:
    _, report = convert(TWINS["bert"].model(), spec, **{"calibration": texts(16, 10), **options})
    assert report.to_dict()["objective"] == "scores"
    assert report.to_dict()["blocks"][0]["divergence"] is None


def samples_of(model: PreTrainedModel, block: Block, batches: Sequence[Batch]) -> list[list[AttentionSample]]:
    with Stepper(model, batches, [block.name]) as stepper:
        return take_samples(block, read_block(block), [partial(stepper.at, block.name)])


def kl(model: PreTrainedModel, original: PreTrainedModel, order: Sequence[int]) -> float:
    """KL of the first block's maps from the original's, mean over heads and tokens of texts seen nowhere else."""
    (batch,) = texts(32, 8, seed=9)
    maps = []
    for one in (original, model):
        seen: list[torch.Tensor] = []
        block = find_blocks(one)[0]
        handle = block.module.register_forward_hook(lambda _, __, output, seen=seen: seen.append(output[1]))
        with torch.no_grad():
            one(**batch)
        handle.remove()
        maps.append(seen[0])
    p, q = maps[0][1:, list(order)].double(), maps[1][1:].double()
    return float((p * (p / q).log()).sum(-1).mean())


def test_no_worse_than_the_start() -> None:
    """Where the data that is left out says that fitting did not help, the start stays, and the report says so."""
    start = torch.tensor([3.0])

    def square(point: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return 0.5 * point.square().sum(), point

    found, seen = descend(square, lambda gradient: 0.1 * gradient, start, 20, lambda point: -float(point))
    assert found is start and min(seen) == seen[0]
    found, seen = descend(square, lambda gradient: 0.1 * gradient, start, 20, lambda point: float(point**2))
    assert abs(float(found)) < 1e-6 and min(seen) < 1e-9


def test_too_little_data_changes_nothing() -> None:
    model = TWINS["bert"].model()
    block = find_blocks(model)[0]
    samples = samples_of(model, block, texts(HELD_OUT - 1, 8))
    converted, _ = convert(model, SPECS["collab"], calibration="none")
    assert refine(find_blocks(converted)[0].module, get_method("collab").scores, samples) is None


def test_every_architecture() -> None:
    for name in ("vit", "marian"):
        twin = TWINS[name]
        batches = [{key: torch.cat([value] * 4) for key, value in twin.inputs().items()}]
        _, report = convert(twin.model(), SPECS["collab"], calibration=batches)
        assert all(block.divergence <= block.divergence_before for block in report.blocks)


def test_repeats() -> None:
    """Pairs have two segments with tokens in common, and everything fits the model."""
    config = bert_config()
    found = made_repeats(texts(16, 12), config, {0, 1, 2}, seed=0)
    pairs = [batch for batch in found if "token_type_ids" in batch]
    assert pairs
    shared = total = 0
    names = ("input_ids", "token_type_ids", "attention_mask")
    for batch in pairs:
        for ids, types, mask in zip(*(batch[name].tolist() for name in names), strict=True):
            first = {token for token, kind, real in zip(ids, types, mask, strict=True) if real and not kind}
            second = [token for token, kind, real in zip(ids, types, mask, strict=True) if real and kind]
            shared += sum(token in first for token in second)
            total += len(second)
    assert 0.4 < shared / total < 0.8
    assert max(batch["input_ids"].shape[1] for batch in found) <= config.max_position_embeddings


@pytest.mark.parametrize("objective", ["scores", "attention"])
def test_kept_heads_are_exact(objective: str) -> None:
    """Attention maps of kept heads are the original's; others' are not."""
    model = TWINS["bert"].model()
    first, second = (block.name for block in find_blocks(model))
    keep = f"{first}:2,encoder.layer.1:0"
    converted, report = convert(
        model, hf_heads.CollabSpec(rank=14), calibration=texts(24, 12), keep_heads=keep, objective=objective
    )
    assert report.kept_heads == {first: (2,), second: (0,)}
    block, host = find_blocks(converted)[0], read_block(find_blocks(model)[0])
    x = torch.randn(2, 7, 32)
    here, there = block.module.scores(x, x).softmax(-1), host.scores(x, x).softmax(-1)
    errors = (here - there).abs().amax((0, 2, 3))
    assert errors[2] < 1e-5
    assert errors[[0, 1, 3]].min() > 1e-3


def test_kept_heads_are_never_pruned() -> None:
    model = TWINS["bert"].model()
    names = [block.name for block in find_blocks(model)]
    for head in range(HEADS):
        _, report = convert(
            model, hf_heads.PrunedSpec(keep=0.25, score="weights"), calibration="none", keep_heads={names[1]: [head]}
        )
        assert head in report.blocks[1].spec.kept


def test_a_job_stands_for_the_heads_that_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model = TWINS["bert"].model().train()
    first, second = (block.name for block in find_blocks(model))
    seen: list[bool] = []

    def probed(one: Any) -> HeadJobs:
        seen.append(one.training)
        jobs = {
            "matching": {first: (0.1, 0.6, 0.0, 0.3), second: (0.1, 0.1, 0.1, 0.1)},
            "next": {second: (0.9, 0, 0, 0)},
        }
        return HeadJobs(jobs, "")

    monkeypatch.setattr(keeping, "probe_heads", probed)
    spec = hf_heads.PrunedSpec(keep=0.5, score="weights")
    _, report = convert(model, spec, calibration="none", keep_heads="matching, encoder.layer.1:2")
    assert report.kept_heads == {first: (1, 3), second: (2,)}
    assert {1, 3} <= set(report.blocks[0].spec.kept) and 2 in report.blocks[1].spec.kept
    assert seen == [False] and model.training
    with pytest.raises(hf_heads.HeadsError, match="no head of the blocks to be converted has the job 'next'"):
        convert(model, spec, blocks="*.0.*", calibration="none", keep_heads="next")


@pytest.mark.parametrize(
    "spec, keep, words",
    [
        (hf_heads.CollabSpec(rank=8), "encoder.layer.0:1", "rank 8 is too small"),
        (hf_heads.CollabSpec(rank=16, form="tucker"), "encoder.layer.0:1", "take form cp"),
        (hf_heads.MheSpec(), "encoder.layer.0:1", "mhe cannot leave single heads exact"),
        (hf_heads.MgkSpec(merge=2), "*:1", r"blocks '!encoder\.layer\.0\.attention\.self,!encoder\.layer\.1\."),
        (hf_heads.PrunedSpec(keep=0.0, score="weights"), "encoder.layer.0:1", "keep more heads"),
        (hf_heads.CollabSpec(rank=16), "encoder.layer.0", "is no BLOCK:HEAD"),
        (hf_heads.CollabSpec(rank=16), "encoder.layer.9:1", "no block to be converted is called"),
        (hf_heads.CollabSpec(rank=16), "encoder.layer.0:4", "its heads are 0 to 3"),
    ],
)
def test_heads_that_cannot_be_kept(spec, keep: str, words: str) -> None:
    with pytest.raises(hf_heads.HeadsError, match=words):
        convert(TWINS["bert"].model(), spec, calibration="none", keep_heads=keep)
