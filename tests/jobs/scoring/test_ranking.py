"""Scores of heads against their definitions, written out naively."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import BertForSequenceClassification, BertModel, PreTrainedModel

import hf_heads
from hf_heads import HeadsError, PrunedSpec, head_mask, load_scores, rank_heads
from hf_heads.attention.hosts.blocks import find_blocks
from hf_heads.attention.hosts.reading import read_host
from hf_heads.core.batches import thin
from hf_heads.core.intervals import paired_interval
from hf_heads.jobs.scoring import ranking, sensitivity
from hf_heads.jobs.scoring.sensitivity import Reference, gauss_newton
from hf_heads.jobs.team import Team
from tests.support.twins import HEADS, LAYERS, TWINS, bert_config, randomize

CAUSAL = "bert-decoder"


def classifier() -> PreTrainedModel:
    model = BertForSequenceClassification(bert_config(num_labels=3))
    randomize(model)
    return model.eval()


def labelled(name: str) -> tuple[PreTrainedModel, list[dict[str, Tensor]]]:
    """A model with a loss, and two batches of different sizes for it."""
    if name == "classifier":
        model, inputs = classifier(), TWINS["bert"].inputs()
        inputs["labels"] = torch.tensor([0, 2, 1])
    else:
        model, inputs = TWINS[name].model(), TWINS[name].inputs()
        if name == "vit":
            inputs["labels"] = torch.tensor([0, 4, 2])
        else:
            length = inputs.get("decoder_input_ids", inputs["input_ids"]).shape[1]
            labels = torch.randint(1, 98, (3, length), generator=torch.Generator().manual_seed(9))
            labels[0, 3:] = -100  # examples with different numbers of labels
            labels[2, :4] = -100
            inputs["labels"] = labels
    return model, [inputs, {key: value[1:2] for key, value in inputs.items()}]


@pytest.mark.parametrize("name", ["classifier", "bert", CAUSAL, "vit", "marian"])
def test_gradient_is_the_mean_of_absolute_values_of_single_examples(name: str):
    model, batches = labelled(name)
    blocks = find_blocks(model)
    wanted, averaged, count = torch.zeros(len(blocks), HEADS), torch.zeros(len(blocks), HEADS), 0
    for batch in batches:
        for example in range(len(batch["labels"])):
            one = {key: value[example : example + 1] for key, value in batch.items()}
            xi = torch.ones(len(blocks), HEADS, requires_grad=True)
            with head_mask(model, xi):
                (gradient,) = torch.autograd.grad(model(**one).loss, xi)
            wanted += gradient.abs()
            averaged += gradient
            count += 1
    found = rank_heads(model, "gradient", batches, steps=1)
    scores = torch.tensor([found.importance[block.name] for block in blocks])
    assert torch.allclose(scores, wanted / count, rtol=1e-4, atol=1e-7)
    assert not torch.allclose(scores, (averaged / count).abs(), rtol=0.1)
    order = [(blocks[index // HEADS].name, index % HEADS) for index in scores.flatten().argsort().tolist()]
    assert list(found.order) == order
    normal = rank_heads(model, "gradient", batches, steps=1, normalize=True)
    rows = torch.tensor([normal.importance[block.name] for block in blocks])
    assert torch.allclose(rows, scores / scores.norm(dim=1, keepdim=True), rtol=1e-4)


def outputs(model: PreTrainedModel, batch: dict[str, Tensor], kind: str) -> Tensor:
    """What drift compares, for one batch: embeddings of length one, or logits."""
    found = model(**batch)[0]
    if kind == "embeddings":
        mask = batch["attention_mask"][..., None].float()
        return torch.nn.functional.normalize((found * mask).sum(1) / mask.sum(1), dim=-1)
    return found


@pytest.mark.parametrize("kind", ["embeddings", "logits"])
def test_gauss_newton_is_the_expected_product_of_jacobians(kind: str, monkeypatch: pytest.MonkeyPatch):
    if kind == "embeddings":
        model = BertModel(bert_config())
        randomize(model)
        model.eval()
    else:
        model = classifier()
    batch = TWINS["bert"].inputs()
    heads = LAYERS * HEADS

    def function(xi: Tensor) -> Tensor:
        with head_mask(model, xi.view(LAYERS, HEADS)):
            return outputs(model, batch, kind)

    jacobian = torch.autograd.functional.jacobian(function, torch.ones(heads))  # (batch, width, heads)
    if kind == "embeddings":
        wanted = torch.einsum("bwh,bwk->hk", jacobian, jacobian) / len(jacobian)
    else:
        p = function(torch.ones(heads)).detach().softmax(-1)
        fisher = torch.diag_embed(p) - p[:, :, None] * p[:, None]
        wanted = torch.einsum("bwh,bwv,bvk->hk", jacobian, fisher, jacobian) / len(jacobian)
    monkeypatch.setattr(sensitivity, "_PROBES", 1500)
    layout = [(block.name, head) for block in find_blocks(model) for head in range(HEADS)]
    reference = Reference(model, [batch])
    gradient, found = gauss_newton(model, reference, layout, torch.ones(heads), Team())
    assert not gradient.any()  # nothing has drifted yet
    assert (found - wanted).norm() < 0.08 * wanted.norm()


@pytest.mark.parametrize("name", ["bert", "vit", "marian"])
def test_the_gradient_of_the_drift_is_its_difference_quotient(name: str):
    model, batch = TWINS[name].model(), TWINS[name].inputs()
    blocks = find_blocks(model)
    layout = [(block.name, head) for block in blocks for head in range(HEADS)]
    mask = torch.rand(len(layout), generator=torch.Generator().manual_seed(1))
    model = model.double()
    batch = {key: value.double() if value.is_floating_point() else value for key, value in batch.items()}
    reference = Reference(model, [batch])

    reference.wanted(0)  # is kept, without a mask

    def drift(at: Tensor) -> float:
        with torch.no_grad(), head_mask(model, at.view(len(blocks), HEADS)):
            found, weights, logits = reference.output(model, batch)
        return float(reference.drift(found, reference.wanted(0), weights, logits).mean())

    gradient, _ = gauss_newton(model, reference, layout, mask, Team())
    for index in range(0, len(layout), 3):
        step = torch.zeros(len(layout))
        step[index] = 1e-2
        quotient = (drift(mask + step) - drift(mask - step)) / 2e-2
        assert quotient == pytest.approx(float(gradient[index]), rel=0.02, abs=2e-5)


@pytest.mark.parametrize("tokens", [False, True])
def test_gauss_newton_takes_every_fourth_of_many_examples(monkeypatch: pytest.MonkeyPatch, tokens: bool):
    """All of them where the output is logits of tokens."""
    masked = TWINS["bert"].model()
    model = masked if tokens else masked.bert
    batches = [{key: value.repeat(4, *[1] * (value.ndim - 1)) for key, value in TWINS["bert"].inputs().items()}] * 2
    count = sum(len(batch["input_ids"]) for batch in batches)
    whole, quarter = (rank_heads(model, batches=each) for each in (batches, [thin(one, 4) for one in batches]))
    assert whole.importance != quarter.importance
    monkeypatch.setattr(ranking, "_MANY", count)
    assert rank_heads(model, batches=batches).importance == (whole if tokens else quarter).importance


def test_gauss_newton_counts_the_interactions_of_heads():
    """Two heads that cancel each other out can go together; each alone is missed."""
    model = BertModel(bert_config())
    randomize(model)
    model.eval()
    block = find_blocks(model)[0]
    size = block.output.in_features // HEADS
    with torch.no_grad():
        for name in ("query", "key", "value"):  # heads 0 and 1 are the same but for the sign of what they write
            projection = getattr(block.module, name)
            projection.weight[size : 2 * size] = projection.weight[:size]
            projection.bias[size : 2 * size] = projection.bias[:size]
        block.output.weight[:, size : 2 * size] = -block.output.weight[:, :size]
        block.output.weight[:, : 2 * size] *= 2
    batches = [TWINS["bert"].inputs()]
    found = rank_heads(model, "gauss-newton", batches, steps=1, blocks=block.name, keep=0.5)
    scores = found.importance[block.name]
    assert scores[0] == pytest.approx(scores[1], rel=1e-3)
    first = [head for _, head in found.order]
    assert abs(first.index(0) - first.index(1)) == 1  # once one is gone the other must follow


def test_ablation_is_the_drift_of_the_model_without_the_head():
    model, batch = TWINS["bert"].model(), TWINS["bert"].inputs()
    found = rank_heads(model, "ablation", [batch], steps=1)
    reference = Reference(model, [batch])
    for name, scores in found.importance.items():
        for head, score in enumerate(scores):
            kept = tuple(other for other in range(HEADS) if other != head)
            pruned, _ = hf_heads.convert(model, {name: PrunedSpec(kept=kept)}, calibration="none")
            with torch.no_grad():
                output, weights, logits = reference.output(pruned, batch)
            drift = float(reference.drift(output, reference.wanted(0), weights, logits).mean())
            assert score == pytest.approx(drift, rel=1e-3, abs=1e-7)


@pytest.mark.parametrize("rule", ["gauss-newton", "ablation"])
def test_outputs_that_are_not_kept_are_made_again(monkeypatch: pytest.MonkeyPatch, rule: str):
    model = TWINS[CAUSAL].model()
    batches = [TWINS[CAUSAL].inputs(), {key: value[:1] for key, value in TWINS[CAUSAL].inputs().items()}]
    kept, table = rank_heads(model, rule, batches, steps=3).order, hf_heads.ablate(model, batches, blocks="*layer.0*")
    runs: list[int] = []
    model.register_forward_hook(lambda *_: runs.append(1))
    assert rank_heads(model, rule, batches, steps=3).order == kept
    with_room = len(runs)
    monkeypatch.setattr(sensitivity, "KEPT", 0)
    assert rank_heads(model, rule, batches, steps=3).order == kept
    # Of each batch once more: gauss-newton asks in two rounds of three, ablation in all.
    assert len(runs) - 2 * with_room == {"gauss-newton": 2, "ablation": 4}[rule]
    assert hf_heads.ablate(model, batches, blocks="*layer.0*") == table


def test_weights_are_norms_of_value_output_maps_and_random_is_repeatable():
    model = TWINS["marian"].model()
    found = rank_heads(model, "weights")
    for block in find_blocks(model):
        dense = read_host(block.module, block.site, block.output)
        wanted = [float((dense.value[head] @ dense.output[head]).norm()) for head in range(HEADS)]
        assert found.importance[block.name] == pytest.approx(wanted, rel=1e-4)
    orders = [rank_heads(model, "random", seed=seed).order for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]


def test_rounds_measure_anew():
    model, batches = labelled("classifier")
    for rule in ("gradient", "gauss-newton", "ablation"):
        one = rank_heads(model, rule, batches, steps=1)
        many = rank_heads(model, rule, batches, steps=LAYERS * HEADS)
        for name, scores in one.importance.items():  # scores are those of the whole model
            assert scores == pytest.approx(many.importance[name], rel=1e-4)
        assert one.order[0] == many.order[0]
        if rule != "gauss-newton":  # greedy: each head is the least of those that are left
            gone: list[tuple[str, int]] = []
            for name, head in many.order[:4]:
                kept = {
                    block.name: PrunedSpec(kept=tuple(h for h in range(HEADS) if (block.name, h) not in gone))
                    for block in find_blocks(model)
                }
                pruned, _ = hf_heads.convert(model, kept, calibration="none")
                if rule == "gradient":
                    left = rank_heads(pruned, rule, batches, steps=1)
                    block, place = left.order[0]
                    assert (block, (kept[block].kept or ())[place]) == (name, head)
                gone.append((name, head))


def test_scores_are_saved_read_and_used_without_data(tmp_path: Path):
    model, batches = labelled("classifier")
    path = tmp_path / "scores.json"
    found = rank_heads(model, "gradient", batches, steps=2)
    found.save(path)
    assert load_scores(path, model) == found
    _, first = hf_heads.convert(model, PrunedSpec(keep=0.5, scores=str(path)), calibration="none")
    _, second = hf_heads.convert(model, found.keep(0.5), calibration="none")
    assert [block.spec.kept for block in first.blocks] == [block.spec.kept for block in second.blocks]
    assert sum(block.spec.heads for block in first.blocks) == LAYERS * HEADS // 2
    other = copy.deepcopy(model)
    find_blocks(other)[0].output.weight.data[0, 0] += 1
    for text, error in (
        (json.dumps({"a": 1}), "does not hold scores of heads"),
        ("{", "is not valid JSON"),
        (path.read_text().replace('"format": 1', '"format": 9'), "have format 9"),
        (path.read_text().replace('"order": [', '"order": [["x", 0],'), "does not hold scores of heads"),
    ):
        bad = tmp_path / "bad.json"
        bad.write_text(text)
        with pytest.raises(HeadsError, match=error):
            load_scores(bad, model)
    with pytest.raises(HeadsError, match="were made for another model"):
        hf_heads.convert(other, PrunedSpec(keep=0.5, scores=str(path)), calibration="none")


def test_rules_say_what_they_need():
    model = TWINS["bert"].model()
    batch = TWINS["bert"].inputs()
    for arguments, text in (
        (("gradient", [batch]), "gradient needs labels; take gauss-newton, which needs none"),
        (("ablation", None), "ablation needs data"),
        (("size", None), "unknown rule 'size'. Known: gauss-newton, gradient"),
    ):
        with pytest.raises(HeadsError, match=re.escape(text)):
            rank_heads(model, *arguments)
    with pytest.raises(HeadsError, match="leave out normalize"):
        rank_heads(model, "gauss-newton", [batch], normalize=True)
    with pytest.raises(HeadsError, match=re.escape("keep 2 is not a share")):
        rank_heads(model, "weights").keep(2)
    partial = rank_heads(model, "weights", blocks="*.0.*")
    with pytest.raises(HeadsError, match=re.escape("the scores say nothing of 'encoder.layer.1.attention.self'")):
        partial.order_of([block.name for block in find_blocks(model)])


def test_labels_given_with_the_calibration_serve_the_gradient_rule_only():
    model, batches = labelled("classifier")
    wanted = rank_heads(model, "gradient", batches, steps=4, keep=0.5).keep(0.5)
    _, report = hf_heads.convert(model, PrunedSpec(keep=0.5, score="gradient", repair=True), calibration=batches)
    assert {block.name: block.spec.kept for block in report.blocks} == {
        name: spec.kept for name, spec in wanted.items()
    }


# Ablation tables


@pytest.mark.parametrize("metric", ["drift", "accuracy", "loss"])
def test_ablation_tables_are_differences_to_the_whole_model(metric: str):
    model, batches = labelled("classifier")
    found = hf_heads.ablate(model, batches, metric=metric)
    assert (len(found.one_out), len(found.one_left), len(found.none_left)) == (LAYERS * HEADS, LAYERS * HEADS, LAYERS)
    assert found.examples == 4

    def score(one: PreTrainedModel) -> float:
        total = 0.0
        for batch in batches:
            with torch.no_grad():
                here, there = (m(**batch).logits for m in (one, model))
            log = here.log_softmax(-1)
            if metric == "accuracy":
                total += 100 * float((here.argmax(-1) == batch["labels"]).sum())
            elif metric == "loss":
                total -= float(log[torch.arange(len(log)), batch["labels"]].sum())
            else:
                total += float((there.softmax(-1) * (there.log_softmax(-1) - log)).sum())
        return total / 4

    assert found.whole == pytest.approx(score(model), abs=1e-6)
    for row in (found.one_out[0], found.one_left[-1], found.none_left[1]):
        kept = tuple(head for head in range(HEADS) if head not in row.out)
        pruned, _ = hf_heads.convert(model, {row.block: PrunedSpec(kept=kept)}, calibration="none")
        assert row.change == pytest.approx(score(pruned) - score(model), abs=1e-5)
        assert row.low <= row.change + 1e-9 and row.high >= row.change - 1e-9


def test_token_losses_of_ablation_are_means_over_an_examples_labels():
    for name in ("marian", CAUSAL):
        model, batches = labelled(name)
        found = hf_heads.ablate(model, batches)
        singles = []
        for batch in batches:
            for example in range(len(batch["labels"])):
                with torch.no_grad():
                    one = model(**{key: value[example : example + 1] for key, value in batch.items()})
                singles.append(float(one.loss))
        assert found.metric == "loss"
        assert found.whole == pytest.approx(sum(singles) / len(singles), rel=1e-4)


def test_ablation_refuses_metrics_that_do_not_fit():
    model, batches = labelled("bert")
    unlabelled = [TWINS["bert"].inputs()]
    for arguments, text in (
        ((batches, "accuracy"), "accuracy needs one class label for an example"),
        ((unlabelled, "loss"), "loss needs labels"),
        ((unlabelled, "rouge"), "unknown metric 'rouge'"),
        ((batches, "f1"), "f1 needs one class label for an example"),
        ((batches, "bleu"), "bleu needs an encoder-decoder"),
        (([], None), "ablation needs data"),
    ):
        with pytest.raises(HeadsError, match=re.escape(text)):
            hf_heads.ablate(model, arguments[0], metric=arguments[1])


def test_a_paired_interval_covers_the_mean_as_often_as_it_says():
    generator = torch.Generator().manual_seed(0)
    covered = 0
    for _ in range(200):
        sample = torch.randn(60, generator=generator) + 0.3
        low, high = paired_interval(sample, resamples=500)
        covered += low <= 0.3 <= high
    assert 178 <= covered <= 198
    assert paired_interval(torch.zeros(10)) == (0.0, 0.0)
