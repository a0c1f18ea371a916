"""An original beside its converted checkpoints: sizes, speed, memory, drift and a task score, in one record."""

from __future__ import annotations

import datetime
import json
import math
import platform
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import torch
from transformers import PreTrainedModel

from hf_heads.attention.hosts.blocks import find_blocks
from hf_heads.attention.hosts.table import adapter_of
from hf_heads.core.batches import Progress
from hf_heads.core.errors import HeadsError
from hf_heads.core.intervals import Estimate, paired_scores
from hf_heads.io.checkpoints.loading import load_source
from hf_heads.io.checkpoints.sources import Source
from hf_heads.io.data.calibration import Data, calibration_data
from hf_heads.jobs.evaluation.choices import Choices
from hf_heads.jobs.evaluation.costs import (
    check_lengths,
    count_multiply_adds,
    image_length,
    longest_input,
    machine_cores,
    machine_load,
    measure_generation,
    measure_latency,
    measure_memory,
)
from hf_heads.jobs.evaluation.drift import check_outputs, measure_closely, measure_drift
from hf_heads.jobs.evaluation.metrics import Task
from hf_heads.jobs.evaluation.precision import precision_drift
from hf_heads.jobs.evaluation.record import Comparison, Metric, ModelRow, Score
from hf_heads.jobs.evaluation.sources import check_classes, check_configs, describe
from hf_heads.jobs.evaluation.tasks import make_task
from hf_heads.jobs.evaluation.uniform import NAME, check_native, saved, saved_multiply_adds, uniform_attention

LENGTHS = (32, 128, 512)
_LONGEST_TIMED = 128  # of the lengths that nobody chose


def compare_checkpoints(
    original: Source,
    converted: Sequence[Source],
    choices: Choices | None = None,
    *,
    device: str = "cpu",
    progress: Progress | None = None,
) -> Comparison:
    """Measure converted checkpoints against the one that they were made from.

    All models are in memory at the same time, since they are timed in turn.

    Args:
        original: from `resolve_source`.
        converted: checkpoints of the same architecture, sizes and class; those that hf-heads did not make as well.
        choices: what to measure, and on what.
        device: where to run.
        progress: called with (what, done, total).

    Raises:
        HeadsError: checkpoints that do not belong together or cannot be loaded, lengths that they do not take, or
            data that lacks what the metric needs, a model whose outputs are not finite; all of it before anything is
            measured.
    """
    choices = choices or Choices()
    if choices.data.source == "none":
        raise HeadsError("a comparison needs inputs: name data with --data SRC, or leave it out for random ones")
    sources = [original, *converted]
    check_configs(sources)
    step = _Steps(progress, len(sources))
    models = []
    for source in sources:
        step(f"loading {source.name}")
        models.append(load_source(source, device))
    check_classes(sources, models)
    lengths, timed = _lengths(sources, models, choices.lengths)
    if choices.control:
        check_native(models[0])
    task = make_task(
        choices.metric, models[0], original, replace(choices.data, samples=choices.samples), beams=choices.beams
    )
    on = replace(choices.data, samples=choices.drift_samples, pack=False)
    # The same for all that is compared with it.
    data = calibration_data(original, models[0], on, writes=False, apart=False)
    for source, model in zip(sources, models, strict=True):
        check_outputs(model, data.batches, f"'{source.name}'")
    rows = describe(sources, models)
    cells = len(choices.batches) * (len(timed) + _generates(models[0])) if choices.latency else 0
    rivals = len(converted) + choices.control
    step.total += len(models) + cells + rivals + (rivals + 1) * ((task is not None) + (choices.dtype is not None))

    rows = _counted(rows, models, choices, (lengths, timed), step)
    load = None
    if choices.latency:
        before = machine_load()
        rows = _timed(rows, models, choices, timed, step)
        load = None if before is None else max(before, machine_load() or 0.0)
    if choices.control:
        rows.append(_control(rows[0], models[0], lengths))
        models.append(uniform_attention(models[0]))
    rows = _judged(rows, models, choices, (data, task), step)
    metric = None if task is None else _metric(task)
    packages = ["hf-heads", "transformers", "torch", *(["sacrebleu"] if task and task.metric.name == "bleu" else [])]
    return Comparison(
        original=original.public,
        data=data.description,
        date=datetime.date.today().isoformat(),
        versions={name: version(name) for name in packages},
        machine=_machine(device),
        threads=torch.get_num_threads(),
        device=device,
        load=load,
        cores=None if load is None else machine_cores(),
        metric=metric,
        lengths=tuple(lengths),
        batches=choices.batches,
        models=tuple(rows),
    )


class _Steps:
    """Progress in steps, told before each."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self.progress, self.done, self.total = progress, 0, total

    def __call__(self, what: str) -> None:
        if self.progress:
            self.progress(what, self.done, self.total)
        self.done += 1


def _lengths(
    sources: Sequence[Source], models: Sequence[PreTrainedModel], chosen: tuple[int, ...] | None
) -> tuple[list[int], list[int]]:
    """Lengths to count multiply-adds for, and lengths to time."""
    fixed = image_length(models[0])
    if fixed is not None:
        if chosen not in (None, (fixed,)):
            raise HeadsError(f"images of '{sources[0].given}' are always {fixed} tokens: leave out --lengths")
        return [fixed], [fixed]
    if chosen is not None:
        for source, model in zip(sources, models, strict=True):
            check_lengths(model, chosen, f"'{source.given}'")
        return list(chosen), list(chosen)
    limit = min(longest_input(model) or max(LENGTHS) for model in models)
    fitting = [length for length in LENGTHS if length <= limit] or [limit]
    return fitting, [length for length in fitting if length <= _LONGEST_TIMED]


def _metric(task: Task) -> Metric:
    return Metric(task.metric.name, task.metric.about, task.metric.higher_is_better, task.examples)


# The rows.


def _finite(value: float | None) -> float | None:
    """None for what is not finite, such as an error whose square overflows."""
    return value if value is not None and math.isfinite(value) else None


def _score(value: Estimate, difference: Estimate) -> Score | None:
    """None where the figure itself is not finite, such as the perplexity of a broken model."""
    found = [_finite(one) for one in (*value, *difference)]
    return None if found[0] is None else Score(found[0], *found[1:])


def _control(original: ModelRow, model: PreTrainedModel, lengths: Sequence[int]) -> ModelRow:
    """The original with uniform attention, which needs no queries, no keys and no scores."""
    spared = {block.name: saved(block) for block in find_blocks(model)}
    blocks = tuple(
        replace(
            block,
            settings=f"uniform, {block.heads} heads",
            parameters=block.parameters - spared[block.name].parameters,
            cache=block.cache - spared[block.name].cache,
        )
        for block in original.blocks
    )
    parameters = sum(one.parameters for one in spared.values())
    return ModelRow(
        name=NAME,
        source=original.source,
        role="control",
        attention_parameters=original.attention_parameters - parameters,
        model_parameters=original.model_parameters - parameters,
        cache_per_token=original.cache_per_token - sum(one.cache for one in spared.values()),
        settings="uniform",
        multiply_adds={
            length: original.multiply_adds[length] - saved_multiply_adds(model, length) for length in lengths
        },
        blocks=blocks,
    )


def _counted(
    rows: Sequence[ModelRow],
    models: Sequence[PreTrainedModel],
    choices: Choices,
    lengths: tuple[Sequence[int], Sequence[int]],
    step: _Steps,
) -> list[ModelRow]:
    """The rows with multiply-adds at the first lengths, and memory at the second."""
    found = []
    for row, model in zip(rows, models, strict=True):
        step(f"counting {row.name}")
        counts = {length: count_multiply_adds(model, length) for length in lengths[0]}
        memory = tuple(measure_memory(model, batch, length) for batch in choices.batches for length in lengths[1])
        found.append(replace(row, multiply_adds=counts, peak_memory=memory))
    return found


def _judged(
    rows: Sequence[ModelRow],
    models: Sequence[PreTrainedModel],
    choices: Choices,
    inputs: tuple[Data, Task | None],
    step: _Steps,
) -> list[ModelRow]:
    """The rows with the drift from the first model and, where there is a task, its scores."""
    data, task = inputs
    rows = _in_precision(rows, models, choices.dtype, data, step)
    found, statistics = [rows[0]], []
    for index, (row, model) in enumerate(zip(rows, models, strict=True)):
        if index:
            step(f"drift of {row.name}")
            drift, errors = measure_closely(model, models[0], data.batches)
            drift.check_finite(f"'{row.name}'")
            blocks = tuple(replace(block, drift=_finite(errors.get(block.name))) for block in row.blocks)
            cosines = {}
            for length, batches in data.by_length.items():
                one = measure_drift(model, models[0], batches)
                one.check_finite(f"'{row.name}'")
                cosines[length] = one.cosine
            found.append(replace(row, drift=drift.to_dict(), cosine_by_length=cosines, blocks=blocks))
        if task is not None:
            step(f"{task.metric.name} of {row.name}")
            statistics.append(task.measure(model))
    if task is None:
        return found
    scores = paired_scores(statistics, task.metric.value, resamples=choices.resamples, seed=choices.data.seed)
    return [replace(row, score=_score(*score)) for row, score in zip(found, scores, strict=True)]


def _in_precision(
    rows: Sequence[ModelRow], models: Sequence[PreTrainedModel], dtype: str | None, data: Data, step: _Steps
) -> Sequence[ModelRow]:
    """The rows with each model's cosine in a lower precision to itself."""
    if dtype is None:
        return rows
    found = []
    for row, model in zip(rows, models, strict=True):
        step(f"{row.name} in {dtype}")
        own = precision_drift(model, data.batches, dtype)
        own.check_finite(f"'{row.name}' in {dtype}")
        found.append(replace(row, cosine_by_precision={dtype: own.cosine}))
    return found


def _timed(
    rows: Sequence[ModelRow],
    models: Sequence[PreTrainedModel],
    choices: Choices,
    lengths: Sequence[int],
    step: _Steps,
) -> list[ModelRow]:
    """The rows with latency and, where models generate text from text, the speed of that; one time for one program."""
    found = list(rows)
    keys = [json.dumps(_program(model), sort_keys=True, default=str) for model in models]
    first = [keys.index(key) for key in keys]
    programs = {place: number for number, place in enumerate(dict.fromkeys(first))}
    timed = [models[place] for place in programs]
    for batch in choices.batches:
        for length in lengths:
            step(f"timing batch {batch}, length {length}")
            times = measure_latency(timed, batch, length, choices.seconds)
            for index, place in enumerate(first):
                found[index] = replace(found[index], latency=(*found[index].latency, times[programs[place]]))
        if _generates(models[0]):
            step(f"timing generation, batch {batch}")
            speeds = measure_generation(timed, batch, choices.seconds)
            for index, place in enumerate(first):
                found[index] = replace(found[index], generation=(*found[index].generation, speeds[programs[place]]))
    return found


def _program(model: PreTrainedModel) -> dict[str, Any]:
    """What a model computes, whatever its weights: models of the same program, healed or not, are timed as one."""
    hidden = ("_name_or_path", "transformers_version", "architectures")
    settings = {name: value for name, value in model.config.to_dict().items() if name not in hidden}
    kernel = model.config._attn_implementation
    return {**settings, "class": type(model).__name__, "dtype": model.dtype, "kernel": kernel}


def _generates(model: PreTrainedModel) -> bool:
    """Whether a model's generation is timed: a text from a text."""
    return adapter_of(model.config).modality == "text-to-text" and model.can_generate()


def _machine(device: str) -> str:
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU"
