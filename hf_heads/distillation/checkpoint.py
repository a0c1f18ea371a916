"""Healing from checkpoint to checkpoint: what is not trained goes from file to file, bit by bit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import PreTrainedModel, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from hf_heads.checkpoints.files import check_output
from hf_heads.checkpoints.loading import load_source
from hf_heads.checkpoints.precision import round_as_written
from hf_heads.checkpoints.record import read_record
from hf_heads.checkpoints.sources import Source, resolve_source
from hf_heads.checkpoints.tensors import tensor_names
from hf_heads.checkpoints.weights import Weights
from hf_heads.checkpoints.writing import write_checkpoint
from hf_heads.core.batches import Batch, Progress
from hf_heads.data.calibration import probes
from hf_heads.data.choice import CalibrationChoice
from hf_heads.distillation.data import SAMPLES, HealingData, load_healing
from hf_heads.distillation.settings import DistillSettings
from hf_heads.distillation.trainer import DistillTrainer, training_arguments
from hf_heads.errors import HeadsError
from hf_heads.evaluation.drift import measure_drift
from hf_heads.hosts.blocks import find_blocks
from hf_heads.hosts.table import adapter_of
from hf_heads.modeling.blocks import block_shape, block_specs
from hf_heads.modeling.classes import native_model
from hf_heads.modeling.configuration import HeadsConfig
from hf_heads.vocabulary import RANDOM

_OF_WEIGHTS = ("scores", "measured")  # what a report may say of the weights that are healed, and no longer of the new
_ASKED = "asked.json"  # what a run was asked for, beside its checkpoints


@dataclass(frozen=True)
class Healed:
    """What healing did.

    Attributes:
        record: what was written as `heads_report.json`; the run itself is under `distillation`.
        main: whether this process is the one that writes.
    """

    record: dict[str, Any]
    main: bool = True

    @property
    def distillation(self) -> dict[str, Any]:
        """The run: teacher, data, settings, curve, drift before and after."""
        return self.record["distillation"]


def distill_checkpoint(
    source: Source,
    output: Path,
    settings: DistillSettings,
    data: CalibrationChoice,
    *,
    teacher: str | None = None,
    samples: int | None = None,
    overwrite: bool = False,
    resume: bool = False,
    device: str | None = None,
    arguments: dict[str, Any] | None = None,
    progress: Progress | None = None,
) -> Healed:
    """Heal a converted checkpoint folder into another one.

    Checkpoints of the run lie in `OUTPUT.training` until it has ended well. In several processes (accelerate launch)
    the first one writes.

    Args:
        source: the converted checkpoint.
        output: the folder to make; it appears when it is complete.
        settings: how to train.
        data: what to train on; its `samples` do not count.
        teacher: the original; the one that the converted checkpoint's report names when None.
        samples: examples at most; by modality when None, see `SAMPLES`.
        overwrite: replace `output` if it exists.
        resume: go on from the last checkpoint in `OUTPUT.training`, with the same settings and data.
        device: `cpu` keeps the run off accelerators; None and anything else leave the choice to accelerate.
        arguments: more `TrainingArguments`.
        progress: called with (what, done, total).

    Raises:
        HeadsError: the checkpoint is not converted, the teacher is no model of the same kind, nothing to resume from,
            or see `load_source`, `load_healing`, `DistillTrainer` and `finished_folder`.
    """
    check_output(output, overwrite)
    work = output.with_name(output.name + ".training")
    asked = {
        "settings": vars(settings),
        "data": vars(data),
        "converted": str(source.folder.absolute()),
        "teacher": teacher,
        "samples": samples,
    }
    if not resume:
        _check_unused(work, overwrite)
    last = _resumed(work, asked) if resume else None
    # This also starts several processes.
    training = training_arguments(settings, work, use_cpu=device == "cpu", **(arguments or {}))
    main = PartialState().is_main_process
    pair = _load_pair(source, teacher)
    weights = Weights(source.folder)
    names = tensor_names(pair.student, weights)
    choice = replace(data, samples=samples or SAMPLES[adapter_of(pair.teacher.config).modality])
    found = load_healing(
        choice, pair.teacher, pair.original.folder, labels="task" in settings.losses, progress=progress
    )
    if main and not resume:
        shutil.rmtree(work, ignore_errors=True)
    trainer = _make_trainer(pair, settings, training, found, work, progress if main else None)
    if main and not resume:
        (work / _ASKED).write_text(json.dumps(asked, default=str) + "\n", encoding="utf-8")
    PartialState().wait_for_everyone()
    curve = _heal(trainer, work, last)
    record = _record(pair, trainer, found, curve)
    for one in (pair.student, pair.teacher):
        one.to("cpu")  # type: ignore[arg-type]
    if main:
        inputs: dict[str, Sequence[Batch]] = {RANDOM: probes(pair.original, pair.teacher)}
        inputs["held-out"] = trainer.unlabelled
        whole = settings.train == "all"
        round_as_written(pair.student, names, weights, whole=whole)
        record["drift"] = {}
        for name, batches in inputs.items():
            drift = measure_drift(pair.student, pair.teacher, batches)
            drift.check_finite("the healed model")
            record["drift"][name] = drift.to_dict()
        write_checkpoint(
            output, source, pair.student, names, record, original=pair.original, whole=whole, overwrite=overwrite
        )
        shutil.rmtree(work, ignore_errors=True)
    PartialState().wait_for_everyone()
    return Healed(record, main)


@dataclass(frozen=True)
class _Pair:
    """A converted model and the one that it was made from.

    Attributes:
        student, teacher: the models.
        original: where the teacher comes from.
        before: the report of the student's conversion.
    """

    student: PreTrainedModel
    teacher: PreTrainedModel
    original: Source
    before: dict[str, Any]


def _load_pair(source: Source, teacher: str | None) -> _Pair:
    """Load both models; refuses what cannot be healed, before any data is read."""
    before = read_record(source.folder)
    given = teacher or before.get("source")
    if given is None:
        raise HeadsError(f"'{source.given}' does not say what it was made from; name it with --teacher")
    original = resolve_source(str(given), None if teacher else before.get("revision"))
    pair = _Pair(load_source(source), load_source(original), original, before)
    _check_pair(source, pair)
    return pair


def _make_trainer(
    pair: _Pair,
    settings: DistillSettings,
    training: TrainingArguments,
    data: HealingData,
    work: Path,
    progress: Progress | None,
) -> DistillTrainer:
    """The trainer; leaves no folder behind where it refuses."""
    try:
        trainer = DistillTrainer(
            pair.student,
            pair.teacher,
            settings,
            args=training,
            train_dataset=data.examples,
            data_collator=data.collate,
            held_out=data.held_out,
            report=progress,
        )
    except HeadsError:
        with suppress(OSError):
            work.rmdir()  # made by the Trainer, and empty
        raise
    trainer.remove_callback(PrinterCallback)
    return trainer


def _heal(trainer: DistillTrainer, work: Path, last: Path | None) -> list[dict[str, float]]:
    """Train, from the checkpoint `last` on if there is one; returns the curve.

    Raises:
        HeadsError: no evaluation was better than the start.
    """
    try:
        curve = trainer.heal(None if last is None else str(last))
    except KeyboardInterrupt:
        if any(work.glob("checkpoint-*")):
            raise KeyboardInterrupt("go on with the same command and --resume") from None
        shutil.rmtree(work, ignore_errors=True)
        raise
    start, best = curve[0][trainer.metric], _best(trainer, curve)[trainer.metric]
    if not best < start:
        shutil.rmtree(work, ignore_errors=True)
        least = min(point[trainer.metric] for point in curve[1:])
        raise HeadsError(
            f"healing only made it worse: {trainer.metric} {start:.4f} at the start, {least:.4f} at best; lower "
            "--learning-rate, or give more data"
        )
    return curve


def _best(trainer: DistillTrainer, curve: list[dict[str, float]]) -> dict[str, float]:
    """The point of the curve whose weights the model has."""
    return next((point for point in curve if point["step"] == trainer.state.best_global_step), curve[0])


def _record(pair: _Pair, trainer: DistillTrainer, data: HealingData, curve: list[dict[str, float]]) -> dict[str, Any]:
    """The report of a run, but for the drift."""
    return {
        **{name: value for name, value in pair.before.items() if name not in _OF_WEIGHTS},
        "source": pair.original.given,
        "revision": pair.original.revision,
        "drift": {},
        "distillation": {
            "teacher": pair.original.given,
            "data": data.description,
            "held_out": sum(len(next(iter(batch.values()))) for batch in data.held_out),
            "train": trainer.settings.train,
            "losses": trainer.matching.weights,
            "optimizer": trainer.settings.optimizer,
            "learning_rate": trainer.args.learning_rate,
            "batch_size": trainer.step_examples,
            "steps": trainer.state.global_step,
            "seconds": round(trainer.clock.seconds, 1),
            "best_step": trainer.state.best_global_step,
            "processes": trainer.args.world_size,
            "curve": curve,
            "before": curve[0],
            "after": _best(trainer, curve),
        },
    }


def _check_unused(work: Path, overwrite: bool) -> None:
    """Refuse to throw an interrupted run away unasked."""
    if not overwrite and any(work.glob("checkpoint-*")):
        raise HeadsError(
            f"'{work}' holds an interrupted run: pass --resume to go on with it, or --overwrite to start anew"
        )


def _resumed(work: Path, asked: dict[str, Any]) -> Path:
    """The latest checkpoint of an interrupted run that was asked for the same."""
    found = sorted(work.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    found = [path for path in found if (path / "trainer_state.json").is_file()]
    if not found or not (work / _ASKED).is_file():
        raise HeadsError(f"nothing to resume: no checkpoint in '{work}'; leave out --resume")
    before = _flat(json.loads((work / _ASKED).read_text(encoding="utf-8")))
    now = _flat(json.loads(json.dumps(asked, default=str)))
    if changed := [name for name, value in now.items() if value != before.get(name)]:
        name = changed[0]
        raise HeadsError(
            f"the run in '{work}' had {name.replace('_', '-')} {before.get(name)}, not {now[name]}: resume it with the "
            "options that it was started with"
        )
    return found[-1]


def _flat(asked: dict[str, Any]) -> dict[str, Any]:
    """One level of names instead of two."""
    rest = {name: value for name, value in asked.items() if name not in ("settings", "data")}
    return {**rest, **asked["settings"], **{f"data_{name}": value for name, value in asked["data"].items()}}


def _check_pair(source: Source, pair: _Pair) -> None:
    """Refuse models of which one cannot have been made from the other."""
    student, teacher, original = pair.student, pair.teacher, pair.original.given
    if not isinstance(student.config, HeadsConfig) or not block_specs(student):
        raise HeadsError(f"'{source.given}' has no converted attention heads; convert it first")
    if native_model(type(student)) is not native_model(type(teacher)):
        raise HeadsError(
            f"the teacher '{original}' is a {type(teacher).__name__}, the student a {type(student).__name__}; name "
            "the model that the student was made from"
        )
    here, there = (
        {block.name: block_shape(block).output_width for block in find_blocks(one)} for one in (student, teacher)
    )
    if here != there:
        raise HeadsError(
            f"'{source.given}' and its teacher '{original}' differ in layers or width; name the model that the "
            "student was made from"
        )
