"""Converting in the middle of a Trainer's run: weights after resuming, optimizer, schedule, precision, refusals."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForSequenceClassification,
    BertForSequenceClassification,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    ViTForImageClassification,
    set_seed,
)

import hf_heads
from hf_heads import CollabSpec, ConvertCallback, HeadsError, HeadsSpec, LowRankSpec, MgkSpec, MheSpec, PrunedSpec
from hf_heads.jobs.finetuning.loader import drawn_batches
from tests.support.matrix import only
from tests.support.twins import TWINS, bert_config, marian, randomize, vit_config

SPECS = {
    "collab": CollabSpec(rank=12),
    "mhe": MheSpec(groups=2),
    "pruned": PrunedSpec(keep=0.5),
    "merged": MgkSpec(merge=2, queries="shared"),
    "low-rank": LowRankSpec(rank=16),
}


def texts(count: int = 24) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(1, 98, (count, 7), generator=generator)
    return [{"input_ids": row, "attention_mask": torch.ones(7, dtype=torch.long), "labels": row[0] % 2} for row in ids]


def classifier() -> PreTrainedModel:
    model = BertForSequenceClassification(bert_config())
    randomize(model)
    return model


class Watch(TrainerCallback):
    """Notes the rate after every step."""

    def __init__(self) -> None:
        self.rates: list[float] = []

    def on_step_end(self, *_: Any, lr_scheduler: Any, **kwargs: Any) -> None:
        self.rates.append(lr_scheduler.get_last_lr()[0])


def trainer(
    folder: Path, model: PreTrainedModel, *callbacks: TrainerCallback, optimizer: Any = None, **more: Any
) -> Trainer:
    set_seed(0)
    given = {
        "max_steps": 8,
        "save_strategy": "no",
        "save_steps": 2,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "weight_decay": 0.01,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 2,
        "logging_steps": 1,
        "dataloader_pin_memory": False,
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
    }
    arguments = TrainingArguments(str(folder), **{**given, **more})
    return Trainer(
        model,
        arguments,
        train_dataset=texts(),
        eval_dataset=texts(4),
        callbacks=list(callbacks),
        optimizers=(optimizer, None),
    )


def weights(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@only("mhe", "pruned", spec=SPECS)
def test_a_resumed_run_ends_with_the_weights_of_the_whole_one(spec: HeadsSpec, tmp_path: Path):
    callback = ConvertCallback(spec, at=5, calibration_batches=3)
    whole = trainer(tmp_path / "whole", classifier(), callback, save_strategy="steps")
    whole.train()
    expected = weights(whole.model)
    assert {one.method for one in whole.model.config.block_specs().values()} == {spec.method}

    before = tmp_path / "whole" / "checkpoint-4"
    first = trainer(tmp_path / "first", classifier(), ConvertCallback(spec, at=5, calibration_batches=3))
    first.train(resume_from_checkpoint=str(before))
    assert same(weights(first.model), expected)

    after = tmp_path / "whole" / "checkpoint-6"
    model = AutoModelForSequenceClassification.from_pretrained(after)
    callback = ConvertCallback(spec, at=5, calibration_batches=3)
    second = trainer(tmp_path / "second", model, callback)
    second.train(resume_from_checkpoint=str(after))
    assert callback.report is None  # it was converted then, and not again
    assert same(weights(second.model), expected)


def test_a_checkpoint_after_the_conversion_does_not_load_into_an_unconverted_model(tmp_path: Path):
    callback = ConvertCallback(CollabSpec(rank=12), at=2, calibration_batches=2)
    trainer(tmp_path, classifier(), callback, max_steps=4, save_strategy="steps").train()
    again = trainer(tmp_path / "again", classifier(), ConvertCallback(CollabSpec(rank=12), at=2), max_steps=4)
    with pytest.raises(HeadsError, match="does not fit the model's attention: load it with"):
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_the_model_stays_the_same_object_and_the_schedule_is_kept(tmp_path: Path):
    rates = []
    for callbacks in ([], [ConvertCallback(CollabSpec(rank=12), at=0.5, calibration_batches=2)]):
        model, watch = classifier(), Watch()
        run = trainer(tmp_path, model, *callbacks, watch)
        run.train()
        rates.append(watch.rates)
        assert run.model is model
        shutil.rmtree(tmp_path)
    assert rates[0] == rates[1]
    assert callbacks[0].report.blocks
    converted = [entry for entry in run.state.log_history if "heads_converted" in entry]
    assert [entry["step"] for entry in converted] == [4]


def test_until_the_conversion_the_run_is_what_it_would_have_been(tmp_path: Path):
    losses = []
    for callbacks in ([], [ConvertCallback(CollabSpec(rank=32), at=6, calibration_batches=2)]):
        run = trainer(tmp_path, classifier(), *callbacks)
        run.train()
        losses.append([entry["loss"] for entry in run.state.log_history if "loss" in entry])
    assert losses[0][:6] == losses[1][:6]
    assert losses[0][6] == pytest.approx(losses[1][6], abs=1e-4)  # lossless, and the same batch and dropout


def test_the_optimizer_keeps_what_stays_and_takes_up_what_is_new(tmp_path: Path):
    model, seen = classifier(), {}

    class Look(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, optimizer: Any, **kwargs: Any) -> None:
            if state.global_step == 3:
                seen.update({id(one): optimizer.state[one]["exp_avg"].clone() for one in model.parameters()})

    class LookAgain(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, optimizer: Any, **kwargs: Any) -> None:
            if state.global_step != 3:
                return
            held = [one for group in optimizer.param_groups for one in group["params"]]
            assert len(held) == len({id(one) for one in held}) == len(list(model.parameters()))
            assert {id(one) for one in held} == {id(one) for one in model.parameters()}
            assert set(map(id, optimizer.state)) <= set(map(id, held))
            kept = [one for one in held if one in optimizer.state]
            assert all(torch.equal(optimizer.state[one]["exp_avg"], seen[id(one)]) for one in kept)
            names = {id(one): name for name, one in model.named_parameters()}
            fresh = {names[id(one)].partition("attention.self.")[2] for one in held if one not in optimizer.state}
            assert {"shared_query.weight", "mixing"} <= fresh
            assert not any("value" in name for name in fresh)
            decayed = {names[id(one)] for one in optimizer.param_groups[0]["params"]}
            assert all(("bias" not in name and "LayerNorm" not in name) == (name in decayed) for name in names.values())
            seen["done"] = torch.ones(1)

    callback = ConvertCallback(CollabSpec(rank=12), at=3, calibration_batches=2)
    trainer(tmp_path, model, Look(), callback, LookAgain()).train()
    assert "done" in seen


def test_what_was_frozen_stays_frozen(tmp_path: Path):
    model = classifier()
    model.bert.encoder.layer[0].requires_grad_(False)
    trainer(tmp_path, model, ConvertCallback(CollabSpec(rank=12), at=2, calibration_batches=2), max_steps=4).train()
    trained = {name for name, one in model.named_parameters() if one.requires_grad}
    assert not any(".layer.0." in name for name in trained)
    assert "bert.encoder.layer.1.attention.self.mixing" in trained


def test_groups_of_ones_own_keep_their_rates(tmp_path: Path):
    model = classifier()
    inside = [one for name, one in model.named_parameters() if "attention" in name]
    outside = [one for name, one in model.named_parameters() if "attention" not in name]
    optimizer = torch.optim.AdamW([{"params": inside, "lr": 1e-3}, {"params": outside, "lr": 1e-2}])
    callback = ConvertCallback(MheSpec(groups=1), at=2, calibration_batches=2)
    trainer(tmp_path, model, callback, optimizer=optimizer, max_steps=4).train()
    names = {id(one): name for name, one in model.named_parameters()}
    for group, within in zip(optimizer.param_groups, (True, False), strict=True):
        assert group["params"]
        assert all(("attention" in names[id(one)]) == within for one in group["params"])


@pytest.mark.parametrize("more", [{"bf16": True}, {"gradient_checkpointing": True}, {"gradient_accumulation_steps": 2}])
def test_other_ways_of_running(more: dict[str, Any], tmp_path: Path):
    model = classifier()
    callback = ConvertCallback(CollabSpec(rank=12), at=2, calibration_batches=2)
    run = trainer(tmp_path, model, callback, max_steps=4, **more)
    run.train()
    assert {one.method for one in model.config.block_specs().values()} == {"collab"}
    assert {one.dtype for one in model.parameters()} == {torch.float32}
    plain = hf_heads.convert(classifier(), CollabSpec(rank=12), calibration=[batch(model)])[1]
    assert callback.report.blocks[0].error == pytest.approx(plain.blocks[0].error, abs=0.2)
    moved = [entry["loss"] for entry in run.state.log_history if "loss" in entry]
    assert len(moved) == 4
    assert all(torch.isfinite(torch.tensor(moved)))


def batch(model: PreTrainedModel) -> dict[str, Tensor]:
    rows = texts()
    return {name: torch.stack([row[name] for row in rows]) for name in ("input_ids", "attention_mask")}


def test_statistics_do_not_depend_on_the_runs_precision(tmp_path: Path):
    """With a rate of zero the weights are the same in both runs, and so has to be what the conversion makes of them."""
    made = []
    for more in ({}, {"bf16": True}):
        model = classifier()
        callback = ConvertCallback(CollabSpec(rank=8), at=1, calibration_batches=2)
        trainer(tmp_path, model, callback, max_steps=2, learning_rate=0.0, **more).train()
        made.append(weights(model))
    assert same(*made)


def test_the_best_model_is_one_that_was_converted(tmp_path: Path):
    more = {
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_strategy": "steps",
        "load_best_model_at_end": True,
        "learning_rate": 0.05,
    }
    model = classifier()
    run = trainer(tmp_path, model, ConvertCallback(CollabSpec(rank=2), at=5, calibration_batches=2), **more)
    run.train()
    assert run.state.best_global_step in (6, 8)


def test_labels_serve_settings_that_use_them(tmp_path: Path):
    model = classifier()
    callback = ConvertCallback(PrunedSpec(keep=0.5, score="gradient"), at=2, calibration_batches=2)
    trainer(tmp_path, model, callback, max_steps=4).train()
    assert sum(spec.heads for spec in model.config.block_specs().values()) == 4


def test_drawn_batches_are_the_same_whatever_was_drawn_before_and_no_loader_is_asked():
    loader = torch.utils.data.DataLoader(texts(), batch_size=4, shuffle=True)
    first = drawn_batches(loader, classifier(), 3, 0)
    torch.rand(5)
    second = drawn_batches(loader, classifier(), 3, 0)
    assert len(first) == 3
    assert all(same(one, other) for one, other in zip(first, second, strict=True))
    assert not same(first[0], drawn_batches(loader, classifier(), 3, 1)[0])
    assert "labels" in first[0]


def test_an_encoder_decoder_gets_decoder_inputs_from_its_labels():
    rows = [{"input_ids": torch.tensor([5, 6, 7]), "labels": torch.tensor([8, 9, -100])}] * 4
    model = marian()
    (one,) = drawn_batches(torch.utils.data.DataLoader(rows, batch_size=4), model, 1, 0)
    assert one["decoder_input_ids"][0].tolist() == [98, 8, 9]
    assert one["decoder_attention_mask"][0].tolist() == [1, 1, 0]
    hf_heads.convert(model, LowRankSpec(rank=16), calibration=[one])


def test_data_that_can_only_be_iterated_need_batches():
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self) -> Any:
            return iter(texts())

    with pytest.raises(HeadsError, match=r"ConvertCallback\(calibration=batches\)"):
        drawn_batches(torch.utils.data.DataLoader(Stream()), classifier(), 3, 0)


def test_a_vision_model(tmp_path: Path):
    model = ViTForImageClassification(vit_config())
    randomize(model)
    pixels = TWINS["vit"].inputs()["pixel_values"]
    rows = [{"pixel_values": pixels[index % 3], "labels": torch.tensor(index % 3)} for index in range(12)]
    run = trainer(tmp_path, model, ConvertCallback(CollabSpec(rank=12), at=2, calibration_batches=2), max_steps=4)
    run.train_dataset = rows
    run.train()
    assert {one.method for one in model.config.block_specs().values()} == {"collab"}


@pytest.mark.parametrize("at", [0.0, 1.0, 0, -1, "half", True, None, float("nan")])
def test_when_is_checked(at: Any):
    with pytest.raises(HeadsError, match=r"at is .* expected a share"):
        ConvertCallback(CollabSpec(rank=12), at)


def test_other_settings_are_checked():
    with pytest.raises(HeadsError, match="spec is 3"):
        ConvertCallback(3)  # type: ignore[arg-type]
    with pytest.raises(HeadsError, match="calibration_batches is 0"):
        ConvertCallback(CollabSpec(rank=12), calibration_batches=0)


def test_a_run_that_ends_before_is_refused_at_its_beginning(tmp_path: Path):
    with pytest.raises(HeadsError, match="step 9 of 8: nothing would be trained after"):
        trainer(tmp_path, classifier(), ConvertCallback(CollabSpec(rank=12), at=9)).train()


def test_settings_that_do_not_fit_are_refused_at_the_beginning(tmp_path: Path):
    with pytest.raises(HeadsError, match="5 groups do not divide"):
        trainer(tmp_path, classifier(), ConvertCallback(MheSpec(groups=5), at=4)).train()


def test_a_run_that_is_past_it_is_refused(tmp_path: Path):
    trainer(tmp_path, classifier(), max_steps=6, save_strategy="steps").train()
    later = trainer(tmp_path / "later", classifier(), ConvertCallback(CollabSpec(rank=12), at=4), max_steps=6)
    with pytest.raises(HeadsError, match="at step 4 already, and was not converted at 4"):
        later.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("world_size", 2, "several processes"),
        ("n_gpu", 2, "several GPUs"),
        ("deepspeed", {"stage": 2}, "DeepSpeed"),
        ("fsdp", "full_shard", "FSDP"),
        ("torch_compile", True, "torch.compile"),
    ],
)
def test_what_cannot_be_exchanged_is_refused_with_the_reason(name: str, value: Any, reason: str):
    plain = {"world_size": 1, "n_gpu": 0, "deepspeed": None, "fsdp": "", "torch_compile": False}
    arguments = SimpleNamespace(**{**plain, name: value})
    state = SimpleNamespace(max_steps=8, global_step=0, log_history=[])
    with pytest.raises(HeadsError, match=reason):
        ConvertCallback(CollabSpec(rank=12)).on_train_begin(arguments, state, None, model=classifier())


def test_a_second_run_needs_a_new_model(tmp_path: Path):
    run = trainer(
        tmp_path, classifier(), ConvertCallback(CollabSpec(rank=12), at=2, calibration_batches=2), max_steps=4
    )
    run.train()
    with pytest.raises(HeadsError, match="converted by an earlier run"):
        run.train()
