"""Healing from checkpoint to checkpoint: what is not trained goes from file to file, bit by bit."""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import PreTrainedModel
from transformers.trainer_callback import PrinterCallback

from hf_heads.checkpoints.files import check_output
from hf_heads.checkpoints.loading import load_source
from hf_heads.checkpoints.record import read_record
from hf_heads.checkpoints.sources import Source, resolve_source
from hf_heads.checkpoints.tensors import tensor_names
from hf_heads.checkpoints.weights import Weights
from hf_heads.checkpoints.writing import write_checkpoint
from hf_heads.core.batches import Progress
from hf_heads.data.calibration import CalibrationChoice, probes
from hf_heads.distillation.data import SAMPLES, load_healing
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
    training = training_arguments(
        settings, work, use_cpu=device == "cpu", **(arguments or {})
    )  # also starts several processes
    main = PartialState().is_main_process
    before = read_record(source.folder)
    given = teacher or before.get("source")
    if given is None:
        raise HeadsError(f"'{source.given}' does not say what it was made from; name it with --teacher")
    original_source = resolve_source(str(given), None if teacher else before.get("revision"))
    model, original = load_source(source), load_source(original_source)
    _check_pair(source, model, original_source, original)
    names = tensor_names(model, Weights(source.folder))
    choice = replace(data, samples=samples or SAMPLES[adapter_of(original.config).modality])
    found = load_healing(choice, original, original_source.folder, labels="task" in settings.losses, progress=progress)
    if main and not resume:
        shutil.rmtree(work, ignore_errors=True)
    try:
        trainer = DistillTrainer(
            model,
            original,
            settings,
            args=training,
            train_dataset=found.examples,
            data_collator=found.collate,
            held_out=found.held_out,
            report=progress if main else None,
        )
    except HeadsError:
        with suppress(OSError):
            work.rmdir()  # made by the Trainer, and empty
        raise
    if main and not resume:
        (work / _ASKED).write_text(json.dumps(asked, default=str) + "\n", encoding="utf-8")
    trainer.remove_callback(PrinterCallback)
    PartialState().wait_for_everyone()
    try:
        curve = trainer.heal(None if last is None else str(last))
    except KeyboardInterrupt:
        if any(work.glob("checkpoint-*")):
            raise KeyboardInterrupt("go on with the same command and --resume") from None
        shutil.rmtree(work, ignore_errors=True)
        raise
    best_step = trainer.state.best_global_step
    start, best = curve[0], next((point for point in curve if point["step"] == best_step), curve[0])
    if best[trainer.metric] >= start[trainer.metric]:
        shutil.rmtree(work, ignore_errors=True)
        raise HeadsError(
            f"healing only made it worse: {trainer.metric} {start[trainer.metric]:.4f} at the start, "
            f"{min(point[trainer.metric] for point in curve[1:]):.4f} at best; lower --learning-rate, or give more data"
        )
    kept = {name: value for name, value in before.items() if name not in _OF_WEIGHTS}
    record = {
        **kept,
        "source": str(given),
        "revision": original_source.revision,
        "drift": {},
        "distillation": {
            "teacher": str(given),
            "data": found.description,
            "held_out": sum(len(next(iter(batch.values()))) for batch in found.held_out),
            "train": settings.train,
            "losses": trainer.matching.weights,
            "optimizer": trainer.settings.optimizer,
            "learning_rate": trainer.args.learning_rate,
            "batch_size": trainer.step_examples,
            "steps": trainer.state.global_step,
            "seconds": round(trainer.clock.seconds, 1),
            "best_step": best_step,
            "processes": trainer.args.world_size,
            "curve": curve,
            "before": start,
            "after": best,
        },
    }
    for one in (model, original):
        one.to("cpu")  # type: ignore[arg-type]
    if main:
        record["drift"][RANDOM] = measure_drift(model, original, probes(original_source, original)).to_dict()
        record["drift"]["held-out"] = measure_drift(model, original, trainer.unlabelled).to_dict()
        write_checkpoint(
            output,
            source,
            model,
            names,
            record,
            original=original_source,
            whole=settings.train == "all",
            overwrite=overwrite,
        )
        shutil.rmtree(work, ignore_errors=True)
    PartialState().wait_for_everyone()
    return Healed(record, main)


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


def _check_pair(source: Source, model: PreTrainedModel, original_source: Source, original: PreTrainedModel) -> None:
    """Refuse what cannot be healed, before any data is read."""
    if not isinstance(model.config, HeadsConfig) or not block_specs(model):
        raise HeadsError(f"'{source.given}' has no converted attention heads; convert it first")
    if native_model(type(model)) is not native_model(type(original)):
        raise HeadsError(
            f"the teacher '{original_source.given}' is a {type(original).__name__}, the student a "
            f"{type(model).__name__}; name the model that the student was made from"
        )
    here, there = (
        {block.name: block_shape(block).output_width for block in find_blocks(one)} for one in (model, original)
    )
    if here != there:
        raise HeadsError(
            f"'{source.given}' and its teacher '{original_source.given}' differ in layers or width; name the "
            "model that the student was made from"
        )
