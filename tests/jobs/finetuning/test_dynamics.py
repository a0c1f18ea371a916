"""Heads scored while a Trainer trains: when, what, and that the run does not notice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertForSequenceClassification, PreTrainedModel, Trainer, TrainingArguments

from hf_heads import HeadDynamicsCallback, HeadsError, head_mask, rank_heads
from hf_heads.attention.hosts.blocks import find_blocks
from tests.support.twins import HEADS, LAYERS, TWINS, bert_config, randomize


def batch() -> dict[str, torch.Tensor]:
    return {**TWINS["bert"].inputs(), "labels": torch.tensor([0, 2, 1])}


def trained(folder: Path, *callbacks: Any) -> PreTrainedModel:
    model = BertForSequenceClassification(bert_config(num_labels=3, attention_probs_dropout_prob=0.2))
    randomize(model)
    rows = [{name: value[index % 3] for name, value in batch().items()} for index in range(8)]
    settings = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=4,
        num_train_epochs=3,
        learning_rate=1e-2,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        seed=3,
    )
    Trainer(model=model, args=settings, train_dataset=rows, callbacks=list(callbacks)).train()
    return model


def test_heads_are_scored_at_the_start_after_epochs_and_the_run_is_the_same(tmp_path: Path):
    calls: list[int] = []

    def measure(model: PreTrainedModel) -> float:
        calls.append(1)
        assert not model.training
        torch.rand(1)  # what is drawn here is drawn beside the run
        return float(model(**batch()).loss)

    watch = HeadDynamicsCallback([batch()], measure=measure, removed=(0.25, 1.0))
    model, other = trained(tmp_path, watch), trained(tmp_path)
    assert all(torch.equal(one, two) for one, two in zip(model.parameters(), other.parameters(), strict=True))
    assert [record["step"] for record in watch.records] == [0, 2, 4, 6] and len(calls) == 12
    last = watch.records[-1]
    found = rank_heads(model, "gradient", [batch()], steps=1, normalize=True)
    assert {name: tuple(values) for name, values in last["importance"].items()} == dict(found.importance)
    assert last["importance"] != watch.records[0]["importance"]
    masks = {block.name: torch.ones(HEADS) for block in find_blocks(model)}
    for name, head in found.order[: LAYERS * HEADS // 4]:
        masks[name][head] = 0
    with torch.no_grad(), head_mask(model.eval(), masks):
        assert last["figures"][0.25] == pytest.approx(float(model(**batch()).loss))


def test_it_looks_after_so_many_steps(tmp_path: Path):
    watch = HeadDynamicsCallback([batch()], every=4, rule="weights", normalize=False)
    trained(tmp_path, watch)
    assert [record["step"] for record in watch.records] == [0, 4, 6]
    assert all("figures" not in record for record in watch.records)


@pytest.mark.parametrize(
    ("settings", "text"), [({"every": 0}, "every is 0"), ({"removed": (0.5, 1.5)}, "removed has 1.5")]
)
def test_what_it_cannot_do_is_refused(settings: dict[str, Any], text: str):
    with pytest.raises(HeadsError, match=text):
        HeadDynamicsCallback([batch()], **settings)
    with pytest.raises(HeadsError, match="need batches"):
        HeadDynamicsCallback([])
