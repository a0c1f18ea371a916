"""Healing from checkpoint to checkpoint: what is not trained goes from file to file, bit by bit."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import PreTrainedModel, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from hf_heads.attention.hosts.blocks import find_blocks
from hf_heads.attention.hosts.table import adapter_of
from hf_heads.core.batches import Batch, Progress
from hf_heads.core.errors import HeadsError
from hf_heads.core.products import warn_where_slow
from hf_heads.core.vocabulary import RANDOM, of_length
from hf_heads.io.checkpoints.files import check_apart, check_output
from hf_heads.io.checkpoints.hidden import remove
from hf_heads.io.checkpoints.inspection import inspect, sizes
from hf_heads.io.checkpoints.loading import load_source
from hf_heads.io.checkpoints.precision import round_as_written
from hf_heads.io.checkpoints.record import check_complete, read_record, recorded_source
from hf_heads.io.checkpoints.sources import Source, resolve_source
from hf_heads.io.checkpoints.tensors import tensor_names
from hf_heads.io.checkpoints.weights import Weights
from hf_heads.io.checkpoints.writing import SHARD_BYTES, write_checkpoint
from hf_heads.io.data.calibration import probes, probes_by_length
from hf_heads.io.data.choice import CalibrationChoice
from hf_heads.jobs.distillation.data import SAMPLES, HealingData, load_healing
from hf_heads.jobs.distillation.lessons import Lessons
from hf_heads.jobs.distillation.settings import DistillSettings
from hf_heads.jobs.distillation.trainer import DistillTrainer, training_arguments
from hf_heads.jobs.distillation.work import Work
from hf_heads.jobs.evaluation.drift import measure_drift
from hf_heads.modeling.blocks import block_shape, block_specs
from hf_heads.modeling.classes import native_model
from hf_heads.modeling.configuration import HeadsConfig

_OF_WEIGHTS = ("scores", "measured")  # what a report may say of the weights that are healed, and no longer of the new


class OnlyWorse(HeadsError):
    """No evaluation of a run was better than its start."""


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


def _training(
    settings: DistillSettings, folder: Path, device: str | None, arguments: dict[str, Any]
) -> TrainingArguments:
    """Settings of the run, on a processor where there is nothing else.

    Raises:
        HeadsError: float16 there.
    """
    on_cpu = device == "cpu" or not torch.accelerator.is_available()
    if on_cpu and settings.precision == "float16":
        raise HeadsError("float16 needs a GPU: take --precision bfloat16, or float32")
    if on_cpu:
        warn_where_slow(settings.precision)
    # Said, since bfloat16 is taken for a GPU's otherwise.
    return training_arguments(settings, folder, use_cpu=on_cpu, **arguments)


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
    common: Common | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> Healed:
    """Heal a converted checkpoint folder into another one.

    Checkpoints of the run lie in a hidden folder beside the output until it has ended well, see `Work`. In several
    processes (accelerate launch) the first one writes.

    Args:
        source: the converted checkpoint.
        output: the folder to make; it appears when it is complete.
        settings: how to train.
        data: what to train on; its `samples` do not count.
        teacher: the original; the one that the converted checkpoint's report names when None.
        samples: examples at most; by modality when None, see `SAMPLES`.
        overwrite: replace `output` if it exists.
        resume: go on from the last checkpoint of an interrupted run, with the same settings and data.
        device: `cpu` keeps the run off accelerators; None and anything else leave the choice to accelerate.
        arguments: more `TrainingArguments`.
        progress: called with (what, done, total).
        common: what runs that differ in `source` and `output` alone have in common; of this one where it is None.
        shard_bytes: of a file of weights, at most, but for a tensor that is larger by itself.

    Raises:
        HeadsError: the checkpoint is not converted, the teacher is no model of the same kind, nothing to resume from,
            float16 without a GPU, or see `load_source`, `load_healing`, `DistillTrainer` and `finished_folder`.
    """
    place = check_output(output, overwrite)
    check_apart(output, source.folder, "source")
    asked = {
        "settings": vars(settings),
        "data": vars(data),
        "converted": str(source.folder.absolute()),
        "teacher": teacher,
        "samples": samples,
    }
    work = Work(place.path, asked)
    work.check_unused(overwrite or resume)
    last = work.resumed() if resume else None
    training = _training(settings, work.path, device, arguments or {})  # which also starts several processes
    main = PartialState().is_main_process
    common = common or Common()
    with work.held() if main else nullcontext():
        pair = load_pair(source, teacher, common)
        check_apart(output, pair.original.folder, "teacher")
        weights = Weights(source.folder)
        names = tensor_names(pair.student, weights)
        common.data = common.data or _load_data(pair, replace(data, samples=samples), settings, progress)
        if main and not resume:
            work.start()
        trainer = _make_trainer(pair, settings, training, common, progress if main else None)
        PartialState().wait_for_everyone()
        curve = _heal(trainer, work, last)
        record = _record(pair, trainer, common.data, curve)
        for one in (pair.student, pair.teacher):
            one.to("cpu")  # type: ignore[arg-type]
        if main:
            whole = settings.train == "all"
            round_as_written(pair.student, names, weights, whole=whole)
            record["drift"] = _drifts(pair, trainer.unlabelled)
            write_checkpoint(
                place, source, pair.student, names, record, original=pair.original, whole=whole, shard_bytes=shard_bytes
            )
        PartialState().wait_for_everyone()
    return Healed(record, main)


def _load_data(
    pair: _Pair, data: CalibrationChoice, settings: DistillSettings, progress: Progress | None
) -> HealingData:
    """What to learn from and what to measure on; as many examples as are usual of this kind where none are said."""
    choice = replace(data, samples=data.samples or SAMPLES[adapter_of(pair.teacher.config).modality])
    labels = "task" in settings.losses
    return load_healing(choice, pair.teacher, pair.original.folder, labels=labels, progress=progress)


def _drifts(pair: _Pair, held_out: Sequence[Batch]) -> dict[str, Any]:
    """How far a healed model is from its original, by inputs."""
    inputs: dict[str, Sequence[Batch]] = {RANDOM: probes(pair.original, pair.teacher)}
    longer = probes_by_length(pair.original, pair.teacher)
    inputs |= {of_length(RANDOM, length): batches for length, batches in longer.items()}
    inputs["held-out"] = held_out
    found = {}
    for name, batches in inputs.items():
        drift = measure_drift(pair.student, pair.teacher, batches)
        drift.check_finite("the healed model")
        found[name] = drift.to_dict()
    return found


@dataclass
class Common:
    """What runs of several converted models against one original have in common, as far as it is there.

    Attributes:
        runs: how many there are to be.
        original: where the teacher comes from.
        teacher: the model that they were made from.
        data: what they are healed on.
        lessons: what the teacher said in the run before.
    """

    runs: int = 1
    original: Source | None = None
    teacher: PreTrainedModel | None = None
    data: HealingData | None = None
    lessons: Lessons | None = None


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


def load_pair(source: Source, teacher: str | None, common: Common) -> _Pair:
    """Load both models; refuses what cannot be healed, before any data is read.

    Raises:
        HeadsError: see `distill_checkpoint`; or the original is another one than that of other runs.
    """
    before = read_record(source.folder)
    given = teacher or recorded_source(source.folder, before, "--teacher")
    original = resolve_source(given, None if teacher else before.get("revision"))
    if common.original is None or common.teacher is None:
        common.original, common.teacher = original, load_source(original)
    elif common.original.folder.resolve() != original.folder.resolve():
        raise HeadsError(
            f"'{source.given}' was made from '{original.given}', others from '{common.original.given}': heal them one "
            "by one, or name one original with --teacher"
        )
    pair = _Pair(load_source(source), common.teacher, common.original, before)
    _check_pair(source, pair)
    if not before:
        return replace(pair, before=_facts(source, pair))
    check_complete(before, source.given)
    return pair


def _facts(source: Source, pair: _Pair) -> dict[str, Any]:
    """What can be said of a conversion that left no report, as of a folder that transformers saved."""
    before = {f"{name}_before": size for name, size in sizes(pair.teacher).items()}
    blocks = [block for block in inspect(source)["blocks"] if block["method"] != "standard"]
    calibration = "not known, the folder came without a report"
    return {"blocks": blocks, **sizes(pair.student), **before, "calibration": calibration, "drift": {}}


def _make_trainer(
    pair: _Pair,
    settings: DistillSettings,
    training: TrainingArguments,
    common: Common,
    progress: Progress | None,
) -> DistillTrainer:
    assert common.data is not None
    trainer = DistillTrainer(
        pair.student,
        pair.teacher,
        settings,
        args=training,
        train_dataset=common.data.examples,
        data_collator=common.data.collate,
        held_out=common.data.held_out,
        report=progress,
        lessons=common.lessons,
        runs=common.runs,
    )
    common.lessons = trainer.lessons
    trainer.remove_callback(PrinterCallback)
    return trainer


def _heal(trainer: DistillTrainer, work: Work, last: Path | None) -> list[dict[str, float]]:
    """Train, from the checkpoint `last` on if there is one; returns the curve.

    Raises:
        OnlyWorse: no evaluation was better than the start.
    """
    curve = trainer.heal(None if last is None else str(last))
    start, best = curve[0][trainer.metric], _best(trainer, curve)[trainer.metric]
    if not best < start:
        remove(work.path)
        least = min(point[trainer.metric] for point in curve[1:])
        raise OnlyWorse(
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
        "source": pair.original.public,
        "revision": pair.original.revision,
        "drift": {},
        "distillation": {
            "teacher": pair.original.public,
            "data": data.description,
            "held_out": sum(len(next(iter(batch.values()))) for batch in data.held_out),
            "train": trainer.settings.train,
            "losses": trainer.matching.weights,
            "optimizer": trainer.settings.optimizer,
            "learning_rate": trainer.args.learning_rate,
            "retreats": trainer.clock.retreats,
            "batch_size": trainer.step_examples,
            "teacher_outputs": trainer.lessons.where,
            "steps": trainer.state.global_step,
            "seconds": round(trainer.clock.seconds, 1),
            "best_step": trainer.state.best_global_step,
            "processes": trainer.args.world_size,
            "curve": curve,
            "before": curve[0],
            "after": _best(trainer, curve),
        },
    }


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
