"""Conversion from checkpoint to checkpoint."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from hf_heads.attention.spec import HeadsSpec
from hf_heads.core.batches import Batch, Progress, thin
from hf_heads.core.errors import HeadsError
from hf_heads.core.vocabulary import BFLOAT16, NONE, RANDOM, of_length
from hf_heads.io.checkpoints.files import Place, check_apart, check_output
from hf_heads.io.checkpoints.hidden import beside
from hf_heads.io.checkpoints.loading import find_device, load_source
from hf_heads.io.checkpoints.precision import round_as_written
from hf_heads.io.checkpoints.shelf import Shelf
from hf_heads.io.checkpoints.sources import Source
from hf_heads.io.checkpoints.tensors import tensor_names
from hf_heads.io.checkpoints.weights import Weights
from hf_heads.io.checkpoints.writing import write_checkpoint
from hf_heads.io.data.calibration import Data, labelled_batches, probes, probes_by_length
from hf_heads.io.data.choice import CalibrationChoice
from hf_heads.jobs.conversion.cache import check_cache
from hf_heads.jobs.conversion.command import convert_command
from hf_heads.jobs.conversion.convert import convert
from hf_heads.jobs.conversion.planning import choose_blocks
from hf_heads.jobs.conversion.report import Report
from hf_heads.jobs.conversion.request import ConversionRequest
from hf_heads.jobs.evaluation.drift import measure_drift
from hf_heads.jobs.evaluation.precision import precision_drift
from hf_heads.jobs.scoring.probe import has_probes, jobs_left, probe_heads
from hf_heads.jobs.team import Team, launched, shared_data
from hf_heads.modeling.blocks import share_weights

_PASSED_ON = ("blocks", "refit", "keep_heads", "objective", "inputs", "cache", "activations_on", "compute")
_PRECISION_SHARE = 4  # one example in so many: processors without bfloat16 take their time


def convert_checkpoint(
    request: ConversionRequest, output: Path, *, overwrite: bool = False, progress: Progress | None = None
) -> Report:
    """Convert a checkpoint folder into another one.

    Several processes (accelerate launch) share the blocks, where these do not depend on one another, or the batches;
    the first one writes. They share what is measured as well.

    Args:
        request: what to convert, and how.
        output: the folder to make; it appears when it is complete.
        overwrite: replace `output` if it exists.
        progress: called with (what, done, total).

    Raises:
        HeadsError: see `resolve_source`, `load_source`, `load_data`, `convert`, `round_as_written` and
            `write_checkpoint`; or the outputs of what would be written are not finite.
    """
    started = time.perf_counter()
    place = check_output(output, overwrite)
    source, device = request.find_source(), find_device(request.device)
    check_apart(output, source.folder, "source")
    check_cache(request.cache)  # before the data takes its time
    team = launched(device == "cpu")
    progress = progress if team.main else None
    if progress:
        progress("loading", 0, 1)
    team.wait()  # the others have looked at the output's place
    with _shared_cache(request, place, team) as shared, Shelf(place.path) as shelf:
        device = team.device(device)
        return _convert(shared, source, device, place, None if device != "cpu" else shelf, team, started, progress)


@contextmanager
def _shared_cache(request: ConversionRequest, place: Place, team: Team) -> Iterator[ConversionRequest]:
    """The request with a cache where a team needs one, which goes away in the end."""
    if team.size == 1 or request.cache is not None:
        yield request
    elif team.main:
        place.path.parent.mkdir(parents=True, exist_ok=True)
        with beside(place.path, lambda hidden: hidden.mkdir(mode=0o700)) as hidden:
            yield replace(request, cache=team.agree(str(hidden)))
    else:
        yield replace(request, cache=team.agree(""))


def _convert(
    request: ConversionRequest,
    source: Source,
    device: str,
    place: Place,
    shelf: Shelf | None,
    team: Team,
    started: float,
    progress: Progress | None,
) -> Report:
    """Convert a checkpoint whose weights are kept on a shelf, if there is one; see `convert_checkpoint`."""
    model = load_source(source, device, shelf)
    chosen = choose_blocks(model, request.spec, request.blocks)  # refuses before the data takes its time
    specs = [spec for _, spec in chosen.values()]
    weights = Weights(source.folder)
    names = tensor_names(model, weights)
    wanted = request.calibration
    labelled = labelled_batches(source, model, wanted) if any(spec.needs_labels() for spec in specs) else None
    choice = wanted if any(spec.uses_data() for spec in specs) else CalibrationChoice(NONE, seed=wanted.seed)
    data = None if choice.source == NONE else shared_data(source, model, choice, team, enough=True)
    original = share_weights(model)
    converted, report = convert(
        model,
        request.spec,
        calibration=NONE if data is None else data.batches,
        labelled=labelled,
        seed=choice.seed,
        **{name: getattr(request, name) for name in _PASSED_ON},
        inplace=True,
        shelf=shelf,
        team=team,
        progress=progress,
    )
    team.wait()  # all have what they need of the cache
    report.main = team.main
    report.calibration = _described(data, specs)
    dtype = None if request.dtype is None else getattr(torch, request.dtype)
    round_as_written(converted, names, weights, dtype=dtype, shelf=shelf)
    inputs = _measured_on(source, original, data, choice)
    if progress:
        progress("measuring", 0, 1)
    found = _shared(_measurements(converted, original, inputs, shelf), _costs(inputs), team)
    report.drift = {name: value for (kind, name), value in found.items() if kind == "drift"}
    report.precision = _by_precision({name: value for (kind, name), value in found.items() if kind == BFLOAT16})
    report.jobs = found["jobs", ""]
    if not team.main:
        return report
    if progress:
        progress("writing", 0, 1)
    report.seconds = time.perf_counter() - started
    record = _record(request, source, choice, report)
    write_checkpoint(place, source, converted, names, record, dtype=dtype, shard_bytes=request.shard_bytes, shelf=shelf)
    return report


def _record(request: ConversionRequest, source: Source, choice: CalibrationChoice, report: Report) -> dict[str, Any]:
    """What `heads_report.json` says."""
    return {
        "source": source.public,
        "revision": source.revision,
        "calibration_choice": choice.public(),
        "command": convert_command(request, source, public=True),
        "recipe": request.text,
        **report.to_dict(),
    }


def _jobs(converted: PreTrainedModel, original: PreTrainedModel) -> list[dict[str, Any]]:
    """What each head with a job has left; nothing where it is not known what heads could look for."""
    return jobs_left(converted, probe_heads(original), probe_heads(converted)) if has_probes(original) else []


def _measured_on(
    source: Source, original: PreTrainedModel, data: Data | None, choice: CalibrationChoice
) -> dict[str, Sequence[Batch]]:
    """What the drift is measured on, by the names that reports use."""
    inputs: dict[str, Sequence[Batch]] = {RANDOM: probes(source, original)}
    inputs |= {of_length(RANDOM, length): batches for length, batches in probes_by_length(source, original).items()}
    if not choice.made and data is not None and data.held_out:
        inputs["held-out"] = data.held_out
        inputs |= {of_length("held-out", length): batches for length, batches in data.by_length.items()}
    return inputs


def _measured(converted: PreTrainedModel, original: PreTrainedModel, batches: Sequence[Batch]) -> dict[str, float]:
    """The drift in figures.

    Raises:
        HeadsError: they are not finite.
    """
    drift = measure_drift(converted, original, batches)
    drift.check_finite("the converted model")
    return drift.to_dict()


def _measurements(
    converted: PreTrainedModel, original: PreTrainedModel, inputs: Mapping[str, Sequence[Batch]], shelf: Shelf | None
) -> dict[tuple[str, str], Callable[[], Any]]:
    """What is measured of a converted model, in parts that do not depend on one another.

    Both models in bfloat16 are compared with themselves on some examples, where they are in memory.
    """
    parts: dict[tuple[str, str], Callable[[], Any]] = {
        ("drift", name): partial(_measured, converted, original, batches) for name, batches in inputs.items()
    }
    if shelf is None or not shelf.large:
        some = [thin(batch, _PRECISION_SHARE) for batch in inputs[RANDOM]]
        pairs = {"converted": converted, "original": original}
        parts |= {(BFLOAT16, name): partial(_cosine_in_bfloat16, one, some) for name, one in pairs.items()}
    return {**parts, ("jobs", ""): partial(_jobs, converted, original)}


def _cosine_in_bfloat16(model: PreTrainedModel, batches: Sequence[Batch]) -> float:
    return precision_drift(model, batches, BFLOAT16).cosine


def _by_precision(cosines: dict[str, float]) -> dict[str, dict[str, float]]:
    return {BFLOAT16: cosines} if cosines else {}


def _costs(inputs: Mapping[str, Sequence[Batch]]) -> dict[tuple[str, str], int]:
    """What measurements cost against one another: the numbers that come in, where a model has all of them to read."""
    return {
        ("drift", name): sum(value.numel() for batch in batches for value in batch.values())
        for name, batches in inputs.items()
    }


def _shared(
    parts: Mapping[tuple[str, str], Callable[[], Any]], costs: Mapping[tuple[str, str], int], team: Team
) -> dict[tuple[str, str], Any]:
    """What all parts give, each of them done by one process of a team; what no cost is known of costs least.

    Raises:
        HeadsError: a part does, in every process, so that none waits for another.
    """
    names, own = list(parts), {}
    for index in team.share_by([costs.get(name, 0) for name in names]):
        try:
            own[names[index]] = parts[names[index]]()
        except HeadsError as error:
            own[names[index]] = error
    found = {name: value for share in team.gather(own) for name, value in share.items()}
    for value in found.values():
        if isinstance(value, HeadsError):
            raise value
    return {name: found[name] for name in names}


def _described(data: Data | None, specs: Iterable[HeadsSpec]) -> str:
    """What was calibrated on, and by what the settings chose."""
    used = "none, weights only" if data is None else data.description
    return "; ".join([used, *sorted({spec.choice() for spec in specs} - {""})])
