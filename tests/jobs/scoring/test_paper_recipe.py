"""What arXiv 1905.10650 does to choose heads, by one option; tokens as units; ablation with p values; agreement."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import sacrebleu
import torch
from torch import Tensor
from transformers import BertForSequenceClassification, PreTrainedModel

import hf_heads
from hf_heads import HeadsError, PrunedSpec, head_mask, rank_heads
from hf_heads.attention.hosts.blocks import find_blocks
from hf_heads.core.intervals import holm, paired_interval, swap_test
from hf_heads.io.checkpoints.sources import resolve_source
from hf_heads.io.data.choice import CalibrationChoice
from hf_heads.jobs.conversion import planning
from hf_heads.jobs.scoring import ablation
from hf_heads.jobs.scoring.agreement import agreement
from hf_heads.jobs.scoring.checkpoint import ablate_checkpoint
from hf_heads.methods.settings.pruned import spared
from tests.support.files import save_checkpoint, write_rows
from tests.support.tokenizers import save_marian_tokenizer
from tests.support.twins import HEADS, LAYERS, TWINS, bert_config, randomize


def classifier() -> tuple[PreTrainedModel, list[dict[str, Tensor]]]:
    model = BertForSequenceClassification(bert_config(num_labels=3))
    randomize(model)
    inputs = {**TWINS["bert"].inputs(), "labels": torch.tensor([0, 2, 1])}
    return model.eval(), [inputs, {name: value[1:2] for name, value in inputs.items()}]


def kept(report: Any) -> dict[str, tuple[int, ...]]:
    return {block.name: block.spec.kept for block in report.blocks}


def test_the_papers_recipe_is_its_algorithm():
    """I_h = E |dL/dxi_h|, divided by the layer's l2 norm; a tenth of all heads goes; then anew."""
    model, batches = classifier()
    names, gone = [block.name for block in find_blocks(model)], torch.zeros(LAYERS, HEADS).bool()
    while int(gone.sum()) < 4:
        scores, count = torch.zeros(LAYERS, HEADS, dtype=torch.float64), 0
        for batch in batches:
            for example in range(len(batch["labels"])):
                xi = (~gone).double().requires_grad_()
                with head_mask(model, xi):
                    loss = model(**{name: value[example : example + 1] for name, value in batch.items()}).loss
                scores += torch.autograd.grad(loss, xi)[0].abs()
                count += 1
        scores = scores / count
        scores = (scores / scores.norm(dim=1, keepdim=True)).masked_fill(gone, torch.inf)
        gone.view(-1)[scores.flatten().argmin()] = True  # of 8 heads a tenth is one
    _, report = hf_heads.convert(model, PrunedSpec(keep=0.5, procedure="paper"), calibration=batches)
    wanted = {name: tuple(torch.nonzero(~gone[layer]).flatten().tolist()) for layer, name in enumerate(names)}
    assert kept(report) == wanted


@pytest.mark.parametrize(("keep", "rounds"), [(0.9, 2), (0.5, 5), (0.0, 10)])
def test_the_recipe_measures_anew_after_every_tenth(keep: float, rounds: int, monkeypatch: pytest.MonkeyPatch):
    model, batches = classifier()
    asked: list[dict[str, Any]] = []

    def ranking(*args: Any, **how: Any) -> Any:
        asked.append(how)
        return rank_heads(*args, **how)

    monkeypatch.setattr(planning, "rank_heads", ranking)
    hf_heads.convert(model, PrunedSpec(keep=keep, procedure="paper", unit="token"), calibration=batches)
    assert [(how["steps"], how["normalize"], how["unit"]) for how in asked] == [(rounds, True, "token")]


def test_a_token_is_a_unit_of_its_own():
    """E |Att_h(x)_t dL/dAtt_h(x)_t|: each token of each head gets a mask of its own."""
    model, batches = classifier()
    model = model.double()
    blocks, total, count = find_blocks(model), torch.zeros(LAYERS, HEADS, dtype=torch.float64), 0
    for batch in batches:
        for example in range(len(batch["labels"])):
            one = {name: value[example : example + 1] for name, value in batch.items()}
            length = int(one["attention_mask"].sum())
            xi = torch.ones(LAYERS, one["input_ids"].shape[1], HEADS, dtype=torch.float64, requires_grad=True)
            handles = []
            for layer, block in enumerate(blocks):

                def scale(_: object, args: tuple[Tensor], factors: Tensor = xi[layer]) -> tuple[Tensor]:
                    return ((args[0].unflatten(-1, (HEADS, -1)) * factors[..., None]).flatten(-2),)

                handles.append(block.output.register_forward_pre_hook(scale))
            (gradient,) = torch.autograd.grad(model(**one).loss, xi)
            for handle in handles:
                handle.remove()
            total += gradient.abs().sum(1)
            count += length
    found = rank_heads(model, "gradient", batches, unit="token", steps=1)
    # The loss reads the first token of the last layer alone: only that one counts there.
    ones = sum(len(batch["labels"]) for batch in batches)
    wanted = total / torch.tensor([[count], [ones]])
    rows = torch.tensor([list(values) for values in found.importance.values()]).double()
    assert torch.allclose(rows, wanted, rtol=1e-6)
    examples = rank_heads(model, "gradient", batches, steps=1)
    assert found.unit == "token" and found.importance != examples.importance


def test_other_rules_have_no_units():
    model, batches = classifier()
    with pytest.raises(HeadsError, match="unit token is of no use to gauss-newton"):
        rank_heads(model, batches=batches, unit="token")
    with pytest.raises(HeadsError, match="unit token is of the score gradient"):
        PrunedSpec(keep=0.5, unit="token")


@pytest.mark.parametrize("rule", ["gradient", "gauss-newton", "weights"])
def test_the_least_of_a_block_stays(rule: str):
    model, batches = classifier()
    found = rank_heads(model, rule, batches, steps=3, least=2)
    assert all(count == HEADS - 2 for count in Counter(name for name, _ in found.order[: LAYERS * 2]).values())
    assert len(set(found.order)) == LAYERS * HEADS and found.least == 2
    spec = PrunedSpec(keep=0.5, score=rule, least=2)
    assert {len(heads) for heads in kept(hf_heads.convert(model, spec, calibration=batches)[1]).values()} == {2}
    with pytest.raises(HeadsError, match="leaves 2 heads, and least 2 wants 4 of 2 blocks"):
        hf_heads.convert(model, PrunedSpec(keep=0.25, score=rule, least=2), calibration=batches)


def test_an_order_that_spares_keeps_the_order_of_what_goes():
    order = [("a", 0), ("a", 1), ("b", 0), ("a", 2), ("b", 1)]
    assert spared(order, 1) == [("a", 0), ("a", 1), ("b", 0), ("a", 2), ("b", 1)]
    assert spared(order, 2) == [("a", 0), ("a", 1), ("b", 0), ("a", 2), ("b", 1)]
    assert spared([("a", 0), ("a", 1), ("b", 0)], 1) == [("a", 0), ("a", 1), ("b", 0)]
    assert spared([("a", 0), ("b", 0), ("b", 1)], 1) == [("b", 0), ("a", 0), ("b", 1)]


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"keep": 0.5, "procedure": "paper", "score": "weights"}, "procedure paper says score itself: leave out score"),
        ({"keep": 0.5, "procedure": "paper", "steps": 2}, "procedure paper says steps itself: leave out steps"),
        ({"keep": 0.5, "procedure": "paper", "normalize": True}, "procedure paper says normalize itself"),
        ({"keep": 0.5, "procedure": "paper", "scores": "file"}, "procedure paper says scores itself"),
        ({"kept": (0,), "procedure": "paper"}, "procedure helps to choose heads, and kept names them"),
        ({"kept": (0,), "least": 1}, "least helps to choose heads, and kept names them"),
        ({"keep": 0.5, "procedure": "mine"}, "procedure is 'mine', expected one of paper"),
    ],
)
def test_what_would_do_nothing_is_refused(settings: dict[str, Any], text: str):
    with pytest.raises(HeadsError, match=re.escape(text)):
        PrunedSpec(**settings)


def test_ablation_corrects_for_the_number_of_heads_and_chooses_on_other_examples():
    model, batches = classifier()
    batches = [{name: value.repeat(5, *[1] * (value.ndim - 1)) for name, value in batches[0].items()}]
    batches[0]["labels"] = torch.randint(3, (15,), generator=torch.Generator().manual_seed(0))
    found = hf_heads.ablate(model, batches, metric="loss")
    losses = {}
    for head in range(HEADS):
        mask = torch.zeros(HEADS)
        mask[head] = 1
        with torch.no_grad(), head_mask(model, {found.best_left[0].block: mask}):
            logits = model(**batches[0]).logits
        losses[head] = torch.nn.functional.cross_entropy(logits, batches[0]["labels"], reduction="none").double()
    with torch.no_grad():
        whole = torch.nn.functional.cross_entropy(model(**batches[0]).logits, batches[0]["labels"], reduction="none")
    best = min(losses, key=lambda head: float(losses[head][::2].mean()))
    row, differences = found.best_left[0], (losses[best] - whole)[1::2]
    assert row.out == tuple(head for head in range(HEADS) if head != best)
    assert row.change == pytest.approx(float(differences.mean()), abs=1e-6)
    assert (row.low, row.high) == pytest.approx(paired_interval(differences), abs=1e-6)
    assert all(0 < one.p <= 1 for one in found.one_out)
    # Corrected values keep their order, and none is below its own times the heads that are left.
    assert holm([one.p for one in found.none_left])[0] >= found.none_left[0].p


def test_ablation_of_f1_counts_the_corpus():
    model = BertForSequenceClassification(bert_config(num_labels=2)).eval()
    randomize(model)
    labels = torch.tensor([1, 0, 1, 1, 0, 1])
    inputs = TWINS["bert"].inputs()
    batch = {name: value.repeat(2, *[1] * (value.ndim - 1)) for name, value in inputs.items()} | {"labels": labels}
    found = hf_heads.ablate(model, [batch], metric="f1")

    def figure(guesses: torch.Tensor) -> float:
        hits = float(((guesses == 1) & (labels == 1)).sum())
        return 200 * hits / max(1.0, float((guesses == 1).sum() + (labels == 1).sum()))

    with torch.no_grad():
        assert found.whole == pytest.approx(figure(model(**batch).logits.argmax(1)))
        for row in (found.one_left[0], found.none_left[1]):
            mask = torch.tensor([float(head not in row.out) for head in range(HEADS)])
            with head_mask(model, {row.block: mask}):
                assert row.change == pytest.approx(figure(model(**batch).logits.argmax(1)) - found.whole)
            assert row.low <= row.change <= row.high
    with pytest.raises(HeadsError, match="this model has 3: take accuracy"):
        hf_heads.ablate(classifier()[0], [batch], metric="f1")


def test_ablation_of_bleu_is_that_of_translations_without_the_heads(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ablation, "positions_of", lambda config: 6)  # short translations
    model, inputs = TWINS["marian"].model().eval(), TWINS["marian"].inputs()
    batches = [{**inputs, "labels": torch.randint(2, 98, (3, 5), generator=torch.Generator().manual_seed(9))}]

    def decode(ids: torch.Tensor) -> list[str]:
        return [" ".join(f"w{token}" for token in row if token > 1) for row in ids.tolist()]

    with pytest.raises(HeadsError, match="bleu needs decode"):
        hf_heads.ablate(model, batches, metric="bleu")
    heads = hf_heads.ablate(model, batches, metric="bleu", blocks="encoder.layers.0.*", decode=decode)
    wanted, plain = [], []
    for batch in batches:
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        wanted += decode(batch["labels"].clamp_min(0))
        plain += decode(model.generate(**inputs, do_sample=False, num_beams=1, max_new_tokens=5))
    assert heads.examples == len(wanted) == len(plain)
    assert heads.whole == pytest.approx(sacrebleu.corpus_bleu(plain, [wanted]).score)
    assert len(heads.one_out) == HEADS and all(0 < row.p <= 1 for row in heads.one_out)


def test_bleu_of_a_checkpoint_is_decoded_by_its_tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ablation, "positions_of", lambda config: 6)
    folder = save_checkpoint(TWINS["marian"].model(), tmp_path / "marian", save_marian_tokenizer)
    rows = write_rows(tmp_path / "pairs.jsonl", [{"en": "one two", "de": "eins zwei"}, {"en": "four", "de": "vier"}])
    choice = CalibrationChoice(str(rows), ("en", "de"))
    found = ablate_checkpoint(
        resolve_source(str(folder)), metric="bleu", calibration=choice, blocks="encoder.layers.0.*"
    )
    assert (found.metric, found.examples, len(found.none_left)) == ("bleu", 2, 1)
    assert 0 <= found.whole <= 100


def test_swapping_examples_finds_a_difference_that_is_there_and_none_that_is_not():
    draw = torch.Generator().manual_seed(0)
    right = (torch.rand(200, 1, generator=draw) < 0.5).double()
    worse, other = right.clone(), right.flip(0)
    worse[::4] = 0
    assert swap_test(worse, right, lambda one: one.mean((-1, -2))) < 0.01
    assert swap_test(other, right, lambda one: one.mean((-1, -2))) == 1
    assert swap_test(right, right, lambda one: one.mean((-1, -2))) == 1


# Agreement


def test_agreement_is_the_correlation_over_all_heads():
    draw = torch.Generator().manual_seed(0)
    one = {name: torch.rand(4, generator=draw).tolist() for name in ("a", "b", "c")}
    other = {name: [value**3 + 0.01 for value in values] for name, values in one.items()}
    found = agreement(one, other)
    pairs = torch.tensor([[one[name][place], other[name][place]] for name in one for place in range(4)]).double()
    assert found.pearson == pytest.approx(float(torch.corrcoef(pairs.T)[0, 1]))
    assert found.spearman == pytest.approx(1) and found.heads == 12 and found.p < 0.001
    noise = {name: torch.rand(4, generator=draw).tolist() for name in one}
    assert agreement(one, noise).p > 0.05


def test_scores_of_different_heads_are_not_compared():
    with pytest.raises(HeadsError, match="scores of different heads"):
        agreement({"a": [1.0, 2.0, 3.0]}, {"b": [1.0, 2.0, 3.0]})
    with pytest.raises(HeadsError, match="2 heads are too few"):
        agreement({"a": [1.0, 2.0]}, {"a": [1.0, 2.0]})
