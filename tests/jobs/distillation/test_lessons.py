"""What the teacher says of an example is kept until it is seen again, and is what it would say anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertModel, PreTrainedModel

import hf_heads
from hf_heads import CollabSpec
from hf_heads.core.errors import HeadsError
from hf_heads.io.data.batching import collate
from hf_heads.jobs.distillation import lessons
from hf_heads.jobs.distillation.settings import DistillSettings
from hf_heads.jobs.distillation.trainer import DistillTrainer
from tests.support.matrix import each
from tests.support.twins import TWINS, bert_config, randomize

COUNT, BATCH = 20, 4  # five batches a round


def bare() -> PreTrainedModel:
    model = BertModel(bert_config())
    randomize(model)
    return model.eval()


def texts() -> list[dict[str, Any]]:
    chance = torch.Generator().manual_seed(0)
    lengths = torch.randint(3, 11, (COUNT,), generator=chance).tolist()
    return [{"input_ids": torch.randint(5, 90, (length,), generator=chance).tolist()} for length in lengths]


def images() -> list[dict[str, Any]]:
    inputs = TWINS["vit"].inputs()["pixel_values"]
    noise = torch.randn(COUNT, *inputs.shape[1:], generator=torch.Generator().manual_seed(0))
    return [{"pixel_values": one} for one in noise]


MODELS = {
    "hidden states": (bare, texts),
    "logits": (TWINS["bert"].model, texts),
    "images": (TWINS["vit"].model, images),
}


def healed(teacher: PreTrainedModel, examples: list[dict[str, Any]], folder: Path, **more: Any) -> Any:
    """The trained weights, how often the teacher ran in each step, and the trainer."""
    student, _ = hf_heads.convert(teacher, CollabSpec(rank=4), calibration="none")
    settings = DistillSettings(**{"steps": 13, "batch_size": BATCH, "evaluations": 1, "learning_rate": 1e-3, **more})
    trainer = DistillTrainer(
        student,
        teacher,
        settings,
        train_dataset=examples,
        data_collator=lambda group: collate(group, 0),
        held_out=[collate(examples[:4], 0)],
        folder=folder,
    )
    runs: list[int] = []
    teach = trainer.matching.teach

    def counted(batch: Any) -> Any:
        runs.append(trainer.state.global_step)
        return teach(batch)

    trainer.matching.teach = counted  # type: ignore[method-assign]
    trainer.heal()
    return student.state_dict(), runs, trainer


@each(model=MODELS, losses=[{"output": 1, "hidden": 1}, {"output": 1, "blocks": 1}, {"output": 1}])
def test_the_teacher_runs_once_for_every_example(model: Any, losses: dict[str, float], tmp_path: Path):
    make, inputs = model
    found = {
        where: healed(make(), inputs(), tmp_path / where, losses=losses, teacher_outputs=where)
        for where in ("auto", "memory", "disk", "anew")
    }
    for where in ("auto", "memory", "disk"):
        assert found[where][1] == list(range(5)), where
        assert found[where][2].lessons.where == {"auto": "memory"}.get(where, where)
        for name, tensor in found["memory"][0].items():
            assert torch.equal(found[where][0][name], tensor), (where, name)
    assert found["anew"][1] == list(range(13))
    for name, tensor in found["anew"][0].items():
        torch.testing.assert_close(found["memory"][0][name], tensor, rtol=1e-4, atol=2e-4)
    assert not list((tmp_path / "disk").glob("lessons*"))


def test_nothing_is_kept_where_it_would_take_too_much_or_is_not_seen_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    _, runs, trainer = healed(bare(), texts(), tmp_path, steps=5)
    assert trainer.lessons.where == "anew" and runs == list(range(5))
    monkeypatch.setattr(lessons, "ROOM", 1000)
    _, runs, trainer = healed(bare(), texts(), tmp_path)
    assert trainer.lessons.where == "anew" and runs == list(range(13))


def test_positions_that_no_mask_tells_are_asked_for_anew_and_keeping_them_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(lessons.Lessons, "_mask_of", lambda *_: None)
    _, runs, trainer = healed(bare(), texts(), tmp_path)
    assert trainer.lessons.where == "anew" and runs == list(range(13))
    with pytest.raises(HeadsError, match="without a mask of their positions: take --teacher-outputs anew"):
        healed(bare(), texts(), tmp_path, teacher_outputs="memory")


def test_a_run_that_begins_in_a_later_round_asks_in_the_groups_of_the_first(tmp_path: Path):
    """So that what the teacher says is the same to the bit, in batches of other padding too."""
    teacher, examples = bare(), texts()
    _, _, trainer = healed(teacher, examples, tmp_path, teacher_outputs="memory")
    kept, (first, *_) = trainer.lessons._kept, trainer.lessons._groups
    other = [first[0], next(index for index in range(COUNT) if index not in first)]
    trainer.lessons._kept = {}
    batch = collate([examples[index] for index in other], 0)
    trainer.lessons(other, batch)
    assert len(trainer.lessons._kept) == 2
    for group, parts in trainer.lessons._kept.items():
        assert all(torch.equal(part.rows, kept[group][name].rows) for name, part in parts.items())


def test_maps_and_what_decodes_are_not_kept(tmp_path: Path):
    with pytest.raises(HeadsError, match="the teacher's maps of attention are not kept: take --teacher-outputs anew"):
        healed(bare(), texts(), tmp_path, losses={"attention": 1}, teacher_outputs="disk")
    _, runs, _ = healed(bare(), texts(), tmp_path, losses={"output": 1, "attention": 1})
    assert runs == list(range(13))
    with pytest.raises(HeadsError, match="expected one of auto, memory, disk, anew"):
        DistillSettings(teacher_outputs="elsewhere")
