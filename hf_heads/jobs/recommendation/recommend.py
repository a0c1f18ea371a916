"""Which conversion a model should get: a handful of them, measured on held-out inputs and on this machine."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import PreTrainedModel

from hf_heads.attention.hosts.blocks import find_blocks
from hf_heads.attention.hosts.table import adapter_of
from hf_heads.attention.spec import HeadsSpec
from hf_heads.core.batches import Batch, Progress
from hf_heads.core.errors import HeadsError
from hf_heads.core.vocabulary import NONE, RANDOM, of_length
from hf_heads.io.checkpoints.loading import find_device, load_source
from hf_heads.io.checkpoints.sources import Source, resolve_source
from hf_heads.io.data.calibration import calibration_data, probes, probes_by_length
from hf_heads.io.data.choice import CalibrationChoice
from hf_heads.jobs.conversion.command import convert_command, options_of
from hf_heads.jobs.conversion.convert import convert
from hf_heads.jobs.conversion.planning import choose_blocks
from hf_heads.jobs.conversion.request import ConversionRequest
from hf_heads.jobs.evaluation.costs import (
    image_length,
    longest_input,
    machine_cores,
    machine_load,
    measure_generation,
    measure_latency,
)
from hf_heads.jobs.evaluation.drift import Reference
from hf_heads.jobs.evaluation.record import Generation, Latency, busy_warning
from hf_heads.jobs.recommendation.candidates import candidates
from hf_heads.jobs.recommendation.record import GOALS, MAX_DROP, SAMPLES, Goal, Point, Recommendation, chosen
from hf_heads.jobs.scoring.ranking import rank_heads
from hf_heads.methods.settings.pruned import PrunedSpec
from hf_heads.modeling.blocks import block_shape, block_size, block_specs, share_weights

_ROUNDS = 2  # of ranking heads
_PIECES = 8  # of the inputs of one kind, by which their spread is known
_TEXTS = {128: 8, 512: 2}  # lengths that are timed, and how many texts at a time
_BATCH = 8  # of anything else
_SECONDS = 4.0  # of timing, for each model at each length, about
_MEASURES = (  # by how many classes there are
    "1 - cosine of the outputs",
    "squared error of the output, as a share of its variance",
    "share of predictions that change",
)
_SURE = 2.0  # standard errors between what was measured and what is promised


def recommend(
    source: Source | str,
    choice: CalibrationChoice | None = None,
    *,
    goal: Goal = "balanced",
    max_drop: float = MAX_DROP,
    device: str = "auto",
    progress: Progress | None = None,
) -> Recommendation:
    """Try a handful of conversions on a model, and say which one to make.

    Every method that can be used is tried at two or three sizes, on less data than `convert` takes by default, and
    measured on inputs that none of them saw: held-out examples of the data and made ones, short and long. The speed is
    that of this machine, all models in turn.

    Args:
        source: what `convert` takes, or what `resolve_source` made of it.
        choice: data to convert and to measure on; made from nothing when None.
        goal: what is wanted, see `GOALS`.
        max_drop: the most that may be lost: 1 - cosine of the outputs, or the share of predictions that change.
        device: as for `convert`.
        progress: called with (what, done, total).

    Raises:
        HeadsError: a goal or drop that is none, data `none`, a model that is converted already, or see
            `resolve_source`, `load_source` and `load_data`.
    """
    if goal not in GOALS:
        raise HeadsError(f"goal is {goal!r}, expected one of {', '.join(GOALS)}")
    if not (isinstance(max_drop, int | float) and 0 < max_drop < 1):
        raise HeadsError(f"max_drop is {max_drop!r}, expected a number between 0 and 1, as 0.02")
    choice = choice or CalibrationChoice()
    choice = replace(choice, samples=choice.samples or SAMPLES)
    if choice.source == NONE:
        raise HeadsError("a recommendation needs inputs: name data with --calibrate SRC, or leave it out for made ones")
    source = resolve_source(source) if isinstance(source, str) else source
    tell = progress or (lambda *_: None)
    tell("loading", 0, 1)
    original = load_source(source, find_device(device))
    if block_specs(original):
        raise HeadsError(f"'{source.given}' is converted already: recommend is for originals; `compare` measures it")
    specs, left_out = _fitting(original)
    steps = len(specs) + 2
    tell("reading data", 0, steps)
    data = calibration_data(source, original, choice)
    judge = _Judge(original, _inputs(source, original, choice, data.held_out, data.by_length))
    trials = []
    with tempfile.TemporaryDirectory() as cache:  # what reaches the original's blocks is computed once
        tell("scoring heads", 0, steps)
        ranked = _with_scores(original, specs, data.batches, Path(cache) / "scores.json")
        for done, (spec, quick) in enumerate(zip(specs, ranked, strict=True)):
            tell(f"trying {_words(spec)}", 1 + done, steps)
            trials.append(_try(original, spec, quick, data.batches, judge, cache))
    tell("timing", steps - 1, steps)
    before = machine_load()
    speeds, timed = _speeds([original, *(trial.model for trial in trials)])
    load = None if before is None else max(before, machine_load() or 0.0)
    caches = any(block.kind != "self" for block in find_blocks(original))
    points = [
        _point(trial, original, speed, _command(trial.spec, source, choice))
        for trial, speed in zip(trials, speeds[1:], strict=True)
    ]
    points.sort(key=lambda one: (-one.gain(goal, caches), one.promised))
    frontier, best = chosen(points, goal, caches, max_drop)
    return Recommendation(
        source=source.public,
        data=data.description,
        measure=judge.measure,
        goal=goal,
        max_drop=max_drop,
        caches=caches,
        timed=timed,
        points=tuple(points),
        frontier=frontier,
        recommended=best,
        left_out=left_out,
        busy=busy_warning(load, machine_cores()),
    )


def _fitting(model: PreTrainedModel) -> tuple[list[HeadsSpec], dict[str, str]]:
    """The candidates that the model can be converted to, and why methods cannot that have none."""
    shapes = [block_shape(block) for block in find_blocks(model)]
    specs: list[HeadsSpec] = []
    refused: dict[str, str] = {}
    for spec in candidates(shapes):
        try:
            choose_blocks(model, spec, None)
            specs.append(spec)
        except HeadsError as error:
            refused.setdefault(spec.method, str(error))
    tried = {spec.method for spec in specs}
    if not specs:
        raise HeadsError("no method can be used on this model: " + "; ".join(refused.values()))
    return specs, {method: reason for method, reason in refused.items() if method not in tried}


def _with_scores(
    model: PreTrainedModel, specs: Sequence[HeadsSpec], batches: Sequence[Batch], path: Path
) -> list[HeadsSpec]:
    """The specs, those that remove heads by one ranking for all of them and in fewer rounds than by default."""
    keeps = [spec.keep for spec in specs if isinstance(spec, PrunedSpec) and spec.keep is not None]
    if not keeps:
        return list(specs)
    rank_heads(model, batches=batches, steps=_ROUNDS, keep=min(keeps)).save(path)
    return [replace(spec, scores=str(path)) if isinstance(spec, PrunedSpec) else spec for spec in specs]


def _words(spec: HeadsSpec) -> str:
    return " ".join([spec.method, *(f"{name} {value}" for name, value in options_of(spec).items())])


def _inputs(
    source: Source,
    model: PreTrainedModel,
    choice: CalibrationChoice,
    held_out: Sequence[Batch],
    by_length: Mapping[int, Sequence[Batch]],
) -> dict[str, Sequence[Batch]]:
    """What the loss is measured on: of real data what was held out, else made inputs; short ones, and by length."""
    if not choice.made and held_out:
        return {"held-out": held_out, **{of_length("held-out", length): one for length, one in by_length.items()}}
    made = {of_length(RANDOM, length): one for length, one in probes_by_length(source, model).items()}
    return {RANDOM: probes(source, model), **made}


class _Judge:
    """Measures what models lose against the original, on pieces of inputs of several kinds."""

    def __init__(self, original: PreTrainedModel, inputs: Mapping[str, Sequence[Batch]]) -> None:
        self.references = {
            name: [Reference(original, [piece]) for piece in _pieces(batches)] for name, batches in inputs.items()
        }
        self.classes = max(one.classes for found in self.references.values() for one in found)
        self.measure = _MEASURES[min(self.classes, 2)]

    def __call__(self, model: PreTrainedModel) -> tuple[dict[str, float], float]:
        """What is lost on each kind of inputs, and the highest of these with its uncertainty."""
        lost: dict[str, float] = {}
        promised = 0.0  # of the least favourable kind
        for name, references in self.references.items():
            found = []
            for reference in references:
                drift, error = reference.measure(model)
                drift.check_finite("a converted model")
                agreement = 1.0 if drift.agreement is None else drift.agreement  # there is one of several classes
                found.append((1 - drift.cosine, error, 1 - agreement)[min(self.classes, 2)])
            values = torch.tensor(found, dtype=torch.float64)
            lost[name] = float(values.mean())
            error = float(values.std() / math.sqrt(len(values))) if len(values) > 1 else 0.0
            promised = max(promised, lost[name] + _SURE * error)
            if self.classes > 1:
                promised = max(promised, at_most(lost[name], sum(map(_predictions, references))))
        return lost, promised


def at_most(share: float, count: int) -> float:
    """The upper end of an interval of 95 % for a share that was seen among so many (Agresti, Coull 1998)."""
    middle = (share * count + _SURE) / (count + 2 * _SURE)
    return min(1.0, middle + _SURE * math.sqrt(middle * (1 - middle) / (count + 2 * _SURE)))


def _predictions(reference: Reference) -> int:
    """How many predictions there are; the batches' own examples where the outputs were too large to keep."""
    if reference.outputs:
        return sum(output[..., 0].numel() for output, _ in reference.outputs)
    return sum(len(next(iter(batch.values()))) for batch in reference.batches)


def _pieces(batches: Sequence[Batch]) -> list[Batch]:
    """The examples of batches in at least so many pieces as there are examples for, none across two batches."""
    examples = sum(len(next(iter(batch.values()))) for batch in batches)
    size = max(1, examples // _PIECES)
    return [
        {name: value[begin : begin + size] for name, value in batch.items()}
        for batch in batches
        for begin in range(0, len(next(iter(batch.values()))), size)
    ]


@dataclass(frozen=True)
class _Trial:
    """A converted model with what it loses and how long it took."""

    spec: HeadsSpec
    model: PreTrainedModel
    lost: dict[str, float]
    promised: float
    seconds: float


def _try(
    original: PreTrainedModel, spec: HeadsSpec, quick: HeadsSpec, batches: Sequence[Batch], judge: _Judge, cache: str
) -> _Trial:
    """A model converted by the settings `quick`, which stand for `spec`, and what it loses."""
    started = time.perf_counter()
    # Everything but the attention is the original's own memory.
    model, _ = convert(
        share_weights(original),
        quick,
        calibration=batches,
        objective="scores",
        inputs="original",
        cache=cache,
        inplace=True,
    )
    seconds = time.perf_counter() - started
    return _Trial(spec, model, *judge(model), seconds)


def _speeds(models: Sequence[PreTrainedModel]) -> tuple[list[tuple[float, float]], str]:
    """How many times faster than the first each model is, and in the slower quarter of rounds; and what was timed."""
    seconds = _SECONDS * len(models) / 4
    found: list[list[Latency]] | list[list[Generation]]
    if adapter_of(models[0].config).modality == "text-to-text":
        found = [measure_generation(models, _BATCH, seconds)]
        timed = f"generating, {_BATCH} texts at a time"
    else:
        fixed, limit = image_length(models[0]), longest_input(models[0]) or max(_TEXTS)
        texts = {length: batch for length, batch in _TEXTS.items() if length <= limit} or {limit: _BATCH}
        shapes = texts if fixed is None else {fixed: _BATCH}
        found = [measure_latency(models, batch, length, seconds) for length, batch in shapes.items()]
        timed = (
            "a forward pass of " + " and ".join(f"{batch} x {length}" for length, batch in shapes.items()) + " tokens"
        )
    means = []
    for runs in zip(*found, strict=True):
        middle, low = (math.prod(part) ** (1 / len(part)) for part in zip(*map(_ratios, runs), strict=True))
        means.append((middle, low))
    return means, f"{timed}, {torch.get_num_threads()} threads, {models[0].device.type}"


def _ratios(run: Latency | Generation) -> tuple[float, float]:
    return run.ratio, run.ratio if run.ratio_low is None else run.ratio_low


def _point(trial: _Trial, original: PreTrainedModel, speed: tuple[float, float], command: str) -> Point:
    """A trial with what it saves."""
    before, after = (_sizes(model) for model in (original, trial.model))
    return Point(
        method=trial.spec.method,
        settings=options_of(trial.spec),
        command=command,
        lost=trial.lost,
        promised=trial.promised,
        parameters=before[0] / max(after[0], 1),
        cache=before[1] / max(after[1], 1),
        speed=speed[0],
        speed_low=speed[1],
        seconds=trial.seconds,
    )


def _sizes(model: PreTrainedModel) -> tuple[int, int]:
    """Parameters of all blocks, and the numbers that they cache per token."""
    parameters, cache = zip(*(block_size(block) for block in find_blocks(model)), strict=True)
    return sum(parameters), sum(cache)


def _command(spec: HeadsSpec, source: Source, choice: CalibrationChoice) -> str:
    """The command line that makes this conversion, on the same data and with the defaults of `convert`."""
    choice = replace(choice, samples=None)
    request = ConversionRequest(source, spec, source.revision, calibration=choice)
    command = convert_command(request, source, public=False)
    assert command is not None  # candidates are made of what has options
    return command
