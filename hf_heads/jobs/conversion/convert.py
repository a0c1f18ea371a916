"""Conversion of a model in memory: statistics, weights, new modules, refit, block by block."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_heads.attention.hosts.blocks import Block, find_blocks
from hf_heads.attention.module import HeadsAttention
from hf_heads.attention.spec import HeadsSpec, by_pattern
from hf_heads.core.batches import Batch, Progress
from hf_heads.core.errors import HeadsError
from hf_heads.core.products import warn_where_slow
from hf_heads.core.statistics import BlockStatistics
from hf_heads.core.vocabulary import COMPUTE, INPUTS, NONE, OBJECTIVES, RANDOM
from hf_heads.io.checkpoints.shelf import Shelf
from hf_heads.jobs.conversion.activations import Activations
from hf_heads.jobs.conversion.cache import (
    FinishedBlocks,
    Recorded,
    asked_of,
    check_cache,
    model_fingerprint,
    recorded,
)
from hf_heads.jobs.conversion.inputs import Calibration, calibration_batches, check_model, checked_batches
from hf_heads.jobs.conversion.installing import block_called, install, load_weights
from hf_heads.jobs.conversion.keeping import KeptHeads, kept_heads, left_exact, matching_heads
from hf_heads.jobs.conversion.planning import choose_blocks, order_heads, plan_blocks
from hf_heads.jobs.conversion.refine import ENTRIES, pairs_sampled, refine, take_samples
from hf_heads.jobs.conversion.refit import refit_output
from hf_heads.jobs.conversion.repeats import made_repeats
from hf_heads.jobs.conversion.report import BlockReport, Report
from hf_heads.jobs.conversion.statistics import statistics_of
from hf_heads.jobs.conversion.stepping import Running, Stepper
from hf_heads.jobs.conversion.values import refit_values
from hf_heads.jobs.scoring.probe import special_ids
from hf_heads.jobs.scoring.tokens import token_weights
from hf_heads.jobs.team import Team
from hf_heads.methods.registry import get_method
from hf_heads.modeling.blocks import block_shape, block_size, block_specs, read_block, share_weights
from hf_heads.modeling.classes import adopt, set_specs


def convert(
    model: PreTrainedModel,
    spec: HeadsSpec | dict[str, HeadsSpec],
    *,
    calibration: Calibration = RANDOM,
    labelled: Sequence[Batch] | None = None,
    seed: int = 0,
    blocks: str | None = None,
    refit: bool = True,
    keep_heads: KeptHeads | None = None,
    objective: str = "attention",
    inputs: str = "converted",
    cache: str | Path | None = None,
    activations_on: str = "auto",
    compute: str = "float32",
    inplace: bool = False,
    shelf: Shelf | None = None,
    team: Team | None = None,
    progress: Progress | None = None,
) -> tuple[PreTrainedModel, Report]:
    """Re-parametrize the attention heads of a model.

    Args:
        model: any model of an architecture with an adapter, native or converted before.
        spec: the settings for all blocks, such as `CollabSpec(rank=96)`, or a mapping from block name patterns to
            settings, of which the first that matches a block counts.
        calibration: batches of keyword arguments of the model's forward, such as a tokenizer returns them, with masks
            where there is padding; texts; what `datasets` loads, as on the command line; `random`, as by default, for
            data made from nothing, which a language model writes itself; or `none` for the weights alone, which keeps
            much less of a model.
        labelled: batches with `labels`, for settings that want the model's loss; where None, those of `calibration` if
            they have labels. Labels are used for nothing else.
        seed: of everything random besides the data.
        blocks: comma-separated shell patterns of the blocks to convert; a leading `!` leaves out. None takes all.
        refit: refit output projections to the original's outputs, where cross-validation says that it helps.
        keep_heads: heads to leave exact, as `encoder.layer.1:7,encoder.layer.2:9` or a mapping from blocks to heads; a
            job, as `matching`, stands for all heads that have it, see `hf_heads.jobs.scoring.probe`; `none` for none.
            Collab gives each its own part of the rank, pruned never removes them, other methods refuse. By default
            pruned, and collab below a quarter of the width, keep those that match where most of the calibration data
            are pairs of texts, as far as the settings leave room, and the report names them.
        objective: what errors of scores are weighed by, see `hf_heads.core.vocabulary.OBJECTIVES`: `attention`, which
            keeps more on all that was measured (docs/heads.md), or `scores`, which takes less time. Without data it is
            `scores`.
        inputs: what a block is converted on, see `hf_heads.core.vocabulary.INPUTS`: what reaches it behind `converted`
            blocks, or in the `original`.
        cache: a folder in which each block is kept once it is done, so that the same call goes on where a killed one
            ended; with `inputs="original"` also what the original's blocks are called with, so that another rank or
            method runs no forward pass. It may be removed at any time.
        activations_on: where what the data has become is while it waits at a block, see
            `hf_heads.core.vocabulary.ACTIVATIONS`; a model's on a GPU stay there. The result is the same.
        compute: what the forward passes over the data are computed in, see `hf_heads.core.vocabulary.COMPUTE`.
        inplace: change `model` itself instead of a copy; an error on the way leaves it partly converted.
        shelf: where the model's weights are, if on one; each converted block goes there as well.
        team: the processes that share the work, all of which make this call. Where blocks do not depend on one
            another, without data or with `inputs="original"`, each converts some of them, and there must be a cache;
            else they share the batches and convert every block together.
        progress: called with (what, done, total).

    Returns:
        The converted model, and what was done in numbers.

    Raises:
        HeadsError: no model of transformers, no adapter, settings that do not fit, weights that are not finite,
            calibration data that is empty, cannot be read or never reaches a block, batches that the model does not
            take; heads to keep that do not exist or that the method cannot keep; a cache that is no folder; activations
            for which there is no room.
    """
    started = time.perf_counter()
    check_model(model)
    _check_choices(model, team, objective, inputs, compute)
    how = Running(keeper := _keeper(activations_on, model, shelf), compute)
    report = Report(model_parameters_before=_count(model), inputs=inputs, compute=compute)
    folder = check_cache(cache)
    chosen = choose_blocks(model, spec, blocks)
    _check_finite(chosen, shelf)
    original = share_weights(model).eval()
    kept = kept_heads(keep_heads, chosen, original)
    batches, labelled, report.calibration = _data(model, calibration, labelled, chosen, seed)
    kept = matching_heads(chosen, original, batches) if keep_heads is None else kept
    converted = model if inplace else copy.deepcopy(model)
    training = converted.training
    adopt(converted)
    converted.eval()
    key = None if folder is None else model_fingerprint(original, shelf)
    asked = [{name: asked_of(one) for name, one in by_pattern(spec).items()}, blocks, kept, refit, objective, inputs]
    finished = FinishedBlocks(folder, key, asked, compute, seed, batches, labelled)
    team = team or Team()
    ranking = partial(order_heads, original, batches, labelled, seed, team, progress)
    with keeper:
        must = keep_heads is not None
        plan = partial(plan_blocks, original, chosen, batches, ranking, progress, kept, must, how, team)
        specs = finished.plan(team, plan)
        report.kept_heads = left_exact(kept, specs, chosen)
        repeats = _repeats(model, batches, specs, objective, seed)
        report.objective = "scores" if repeats is None else objective
        # Now, since nothing may run the original while batches wait at its blocks.
        weights = _token_weights(original, batches or (), specs, seed) if refit else {}
        of_batches, of_blocks = (team, Team()) if inputs == "converted" and batches is not None else (Team(), team)
        way = _Way(converted, original, batches or (), repeats, refit, weights, shelf, of_batches)
        with torch.no_grad(), _stops(way, list(chosen), inputs, folder, key, of_blocks, how) as (here, there):
            report.blocks = _all_blocks(way, here, there, specs, list(chosen), finished, of_blocks, progress)
    set_specs(converted, {**block_specs(converted), **{block.name: block.spec for block in report.blocks}})
    converted.train(training)
    if progress:
        progress("converted", len(chosen), len(chosen))
    report.model_parameters, report.seconds = _count(converted), time.perf_counter() - started
    report.warn(informed=team.main and batches is not None)
    return converted, report


def _check_choices(model: PreTrainedModel, team: Team | None, objective: str, inputs: str, compute: str) -> None:
    """Refuse values that are none of the known ones; say where one is slow.

    Raises:
        HeadsError: names them.
    """
    for name, value, known in (
        ("objective", objective, OBJECTIVES),
        ("inputs", inputs, INPUTS),
        ("compute", compute, COMPUTE),
    ):
        if value not in known:
            raise HeadsError(f"{name} is {value!r}, expected one of {', '.join(known)}")
    if model.device.type == "cpu" and (team is None or team.main):
        warn_where_slow(compute)


@dataclass(frozen=True)
class _Way:
    """What is the same for all blocks.

    Attributes:
        model: to convert in place.
        original: the model as it was.
        batches: calibration data; empty for the weights alone.
        repeats: more of it, where scores are refined to the original's attention maps; else None.
        refit: refit output projections.
        token_weights: by block, what errors at each token count for, by the `id` of a batch; all alike where none are.
        shelf: where new weights go, if anywhere.
        team: the processes that share the batches.
    """

    model: PreTrainedModel
    original: PreTrainedModel
    batches: Sequence[Batch]
    repeats: Sequence[Batch] | None
    refit: bool
    token_weights: Mapping[str, Mapping[int, Tensor]]
    shelf: Shelf | None
    team: Team


def _keeper(where: str, model: PreTrainedModel, shelf: Shelf | None) -> Activations:
    """Who keeps activations; on disk, they are where the weights are.

    Raises:
        HeadsError: there is no such place, or not for this model.
    """
    if where == "disk" and model.device.type != "cpu":
        raise HeadsError(f"activations of a model on {model.device} stay there: leave out --activations-on disk")
    return Activations(where, None if shelf is None else lambda: shelf.folder)


def _repeats(
    model: PreTrainedModel,
    batches: Sequence[Batch] | None,
    specs: Mapping[str, HeadsSpec],
    objective: str,
    seed: int,
) -> list[Batch] | None:
    """Inputs with tokens that repeat, as many as there is room for, none without tokens; None where nothing refines."""
    refinable = any(get_method(one.method).scores and one.refines() for one in specs.values())
    if objective != "attention" or not refinable or batches is None:
        return None
    room = ENTRIES // (2 * max(block_shape(block).heads for block in find_blocks(model) if block.name in specs) or 1)
    return made_repeats(batches, model.config, special_ids(model), seed, pairs_sampled, room)


def _token_weights(
    original: PreTrainedModel, batches: Sequence[Batch], specs: Mapping[str, HeadsSpec], seed: int
) -> dict[str, dict[int, Tensor]]:
    """What errors at each token count for, by the `id` of a batch, for the blocks whose refit weighs tokens."""
    names = [name for name, one in specs.items() if one.refits() and one.weighs_tokens()]
    if not names or not batches:
        return {}
    found = token_weights(original, batches, names, seed)
    return {name: {id(batch): one for batch, one in zip(batches, found[name], strict=True)} for name in names}


@contextmanager
def _stops(
    way: _Way, names: Sequence[str], inputs: str, cache: Path | None, key: str | None, team: Team, how: Running
) -> Iterator[tuple[Stepper | Recorded, Stepper | Recorded]]:
    """What a block is converted on, and what it is refitted to."""
    if inputs == "converted":
        with (
            Stepper(way.model, way.batches, names, way.repeats or (), how, way.team) as here,
            Stepper(way.original, way.batches, names, how=how, team=way.team) as there,
        ):
            yield here, there
    elif cache is None or key is None:
        with Stepper(way.original, way.batches, names, way.repeats or (), how) as there:
            yield there, there
    else:
        blocks = recorded(way.original, way.batches, way.repeats or (), names, cache, key, team, how)
        yield blocks, blocks


def _check_finite(chosen: Mapping[str, tuple[Block, HeadsSpec]], shelf: Shelf | None) -> None:
    for block, _ in chosen.values():
        if shelf is not None:
            shelf.touched([*block.module.parameters(), *block.output.parameters()])
        if not read_block(block).finite():
            raise HeadsError(f"the weights of {block.name} contain NaN or Inf; this checkpoint is damaged")


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _data(
    model: PreTrainedModel,
    calibration: Calibration,
    labelled: Sequence[Batch] | None,
    chosen: Mapping[str, tuple[Block, HeadsSpec]],
    seed: int,
) -> tuple[list[Batch] | None, Sequence[Batch] | None, str]:
    """Batches to calibrate on, without labels; those with labels; and what the former are."""
    wanted = calibration if any(one.uses_data() for _, one in chosen.values()) else NONE
    batches, said = calibration_batches(model, wanted, seed)
    if labelled is not None:
        labelled = checked_batches(model, labelled, "labelled")
    if batches is not None:
        if labelled is None and all("labels" in batch for batch in batches):
            labelled = batches
        batches = [{name: value for name, value in batch.items() if name != "labels"} for batch in batches]
    return batches, labelled, said


def _all_blocks(
    way: _Way,
    here: Stepper | Recorded,
    there: Stepper | Recorded,
    specs: Mapping[str, HeadsSpec],
    names: Sequence[str],
    finished: FinishedBlocks,
    team: Team,
    progress: Progress | None,
) -> list[BlockReport]:
    """Convert this process's share of the blocks, and take the others from those that did them."""
    done: dict[str, BlockReport] = {}
    for index in team.share(len(names)):
        name = names[index]
        if progress:
            progress(f"converting {name}", index, len(names))
        done[name] = _done_block(way, here, there, name, specs[name], finished)
    team.wait()
    for name in names:
        if name not in done:
            done[name] = _done_block(way, here, there, name, specs[name], finished)
    return [done[name] for name in names]


def _done_block(
    way: _Way,
    here: Stepper | Recorded,
    there: Stepper | Recorded,
    name: str,
    spec: HeadsSpec,
    finished: FinishedBlocks,
) -> BlockReport:
    """A block converted, or put into its place as a run before this one left it."""
    report = finished.restore(way.model, name, way.team)
    if report is None:
        report = _convert_block(way, here, there, name, spec)
        if way.team.main:
            finished.keep(report, block_called(way.model, name))
    elif way.shelf is not None:
        block = block_called(way.model, name)
        way.shelf.put(block.module, block.output)
    return report


def _convert_block(
    way: _Way, here: Stepper | Recorded, there: Stepper | Recorded, name: str, spec: HeadsSpec
) -> BlockReport:
    """Convert one block of a model in place.

    Args:
        way: what is the same for all blocks.
        here: the calibration data at this block, or on its way to it.
        there: the same in the model as it was.
        name: of the block.
        spec: its settings.
    """
    model = way.model
    block = block_called(model, name)
    dense = read_block(block)
    parameters_before, cache_before = block_size(block)
    statistics = (
        BlockStatistics.uninformed(dense.shape)
        if not way.batches or not spec.uses_data()
        else statistics_of(block, dense, here.at(name), way.team)
    )
    method = get_method(spec.method)
    made = way.team.once(partial(method.from_dense, dense, statistics, spec))
    spec = made.spec or spec
    samples = None
    lossless = made.error is not None and made.error <= 1e-6
    if way.repeats is not None and way.batches and method.scores and spec.refines() and not lossless:
        kinds = [partial(here.at, name), partial(here.at, name, more=True)]
        samples = take_samples(block, dense, kinds, way.team)
    block = install(model, name, spec, made.weights)
    gain: float | None = None
    divergences: tuple[float | None, float | None] = None, None
    if samples is not None:
        order = getattr(spec, "order", None)
        refined = refine(cast(HeadsAttention, block.module), method.scores, samples, order, team=way.team)
        if refined is not None:
            load_weights(block, refined.weights)
            divergences = refined.after, refined.before
    if way.refit and spec.refits() and way.batches and not lossless:
        gain = _refit(way, block, here, there)
    if way.shelf is not None:
        way.shelf.put(block.module, block.output)
    parameters, cache = block_size(block)
    sizes = parameters, parameters_before, cache, cache_before
    return BlockReport(name, block.kind, spec, *sizes, made.error, gain, *divergences)


def _refit(way: _Way, block: Block, here: Stepper | Recorded, there: Stepper | Recorded) -> float | None:
    """Fit shared values, then the output projection; returns the share of the error that both remove."""
    name, original, left = block.name, block_called(way.original, block.name), 1.0
    weights = way.token_weights.get(name)
    values, gain = refit_values(block, partial(here.at, name), original, there.at(name), weights, way.team)
    if values:
        load_weights(block, values)
        left -= gain
    fitted = refit_output(block, here.at(name), original, there.at(name), weights, way.team)
    if fitted is not None:
        found = {"output.weight": fitted.weight, "output.bias": fitted.bias}
        load_weights(block, {name: tensor for name, tensor in found.items() if tensor is not None})
        left *= 1 - fitted.gain
    return 1 - left if values or fitted is not None else None
