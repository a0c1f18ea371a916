"""Which blocks are converted, and with which settings each."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext, suppress
from functools import partial
from typing import Any

import torch
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel

from hf_heads.attention.hosts.blocks import Block, find_blocks
from hf_heads.attention.hosts.sites import AttentionAdapter
from hf_heads.attention.hosts.table import adapter_of, reasons_against
from hf_heads.attention.spec import BlockProfile, HeadsSpec, RankHeads, by_pattern
from hf_heads.core.batches import Batch, Progress, main_output, output_mask, thin, token_rows
from hf_heads.core.dense import DenseAttention
from hf_heads.core.errors import HeadsError
from hf_heads.core.statistics import BlockStatistics, Moments
from hf_heads.jobs.conversion.installing import install
from hf_heads.jobs.conversion.keeping import last
from hf_heads.jobs.conversion.statistics import statistics_of
from hf_heads.jobs.conversion.stepping import PLAIN, Running, Stepper
from hf_heads.jobs.scoring.ranking import rank_heads
from hf_heads.jobs.scoring.scores import load_scores
from hf_heads.jobs.team import Team
from hf_heads.methods.registry import all_methods, get_method
from hf_heads.modeling.blocks import block_shape, block_specs, read_block, share_weights
from hf_heads.modeling.classes import adopt
from hf_heads.modeling.configuration import derived_config


def relative_drift(model: PreTrainedModel, original: PreTrainedModel, batches: Iterable[Batch]) -> float:
    """Mean squared difference of two models' first outputs, as a share of the original output's variance."""
    difference, outputs = 0.0, None
    for batch in batches:
        with torch.no_grad():
            here, there = (main_output(one, batch)[0] for one in (model, original))
        mask = output_mask(batch, there)
        here, there = token_rows(here, mask).double(), token_rows(there, mask).double()
        outputs = outputs or Moments(there.shape[-1])
        outputs.update(there)
        difference += float((here - there).square().sum())
    if outputs is None:
        return 0.0
    return difference / outputs.weight / float(outputs.covariance.trace().clamp_min(1e-300))


_TRIAL_SHARE = 4  # trials read one sequence in so many: they compare blocks, they do not fit anything


def choose_blocks(
    model: PreTrainedModel, spec: HeadsSpec | dict[str, HeadsSpec], blocks: str | None = None
) -> dict[str, tuple[Block, HeadsSpec]]:
    """The blocks to convert, in the order in which they run, each with its settings before planning.

    Raises:
        HeadsError: nothing is chosen, or settings do not fit a block.
    """
    allowed = {block.name for block in find_blocks(model, blocks)}
    specs = by_pattern(spec)
    found = {
        block.name: (block, one)
        for pattern, one in reversed(specs.items())  # so that the first pattern that matches has the last word
        for block in find_blocks(model, pattern)
        if block.name in allowed and block_shape(block).heads
    }
    if not found:
        raise HeadsError("all heads of the chosen blocks are gone already: there is nothing to convert")
    for name, (block, one) in found.items():
        _check_possible(model, block, one)
        one.resolve(read_block(block).shape, name, block_specs(model).get(name))
    return {block.name: found[block.name] for block in find_blocks(model) if block.name in found}


def _check_possible(model: PreTrainedModel, block: Block, spec: HeadsSpec) -> None:
    """Refuse a method that an architecture does not allow, with the reason and what can be done.

    Raises:
        HeadsError: see above.
    """
    adapter = adapter_of(model.config)
    if reason := _reason_against(adapter, spec.method):
        can = [name for name in all_methods() if not _reason_against(adapter, name)]
        raise HeadsError(
            f"{spec.method} cannot convert '{adapter.model_type}': {reason}. Methods that can: {', '.join(can)}"
        )
    before = block_specs(model).get(block.name)
    if block.site.of_heads and before is not None and {before.method, spec.method} != {"pruned"}:
        raise HeadsError(
            f"{block.name} is {before.method} already, and each of its heads has positions of its own: convert the "
            "original instead"
        )


def _reason_against(adapter: AttentionAdapter, name: str) -> str | None:
    method = get_method(name)
    return method.reason_against.get(adapter.model_type) or reasons_against(adapter, name, method.handles)


def heads_config(
    config: PreTrainedConfig, spec: HeadsSpec | dict[str, HeadsSpec], blocks: str | None = None
) -> PreTrainedConfig:
    """A config for training a model with re-parametrized heads from scratch, `AutoModelForX.from_config(config)`.

    Args:
        config: of the host's own type; it stays as it is.
        spec: settings as for `convert`, as far as they need no weights: a rank or groups, say, and no share to keep.
        blocks: which blocks, as for `convert`.

    Raises:
        HeadsError: no adapter, or settings that do not fit or cannot be made without weights.
    """
    adapter_of(config)
    with torch.device("meta"):
        model = AutoModel.from_config(copy.deepcopy(config))  # which notes its choices in the config
    specs = {}
    for name, (block, one) in choose_blocks(model, spec, blocks).items():
        found = one.resolve(block_shape(block), name)
        if found is None:
            raise HeadsError(f"{one.method}: these settings are found from weights; name the heads or ranks themselves")
        specs[name] = found.for_scratch(block_shape(block))
    return derived_config(config, specs)


def plan_blocks(
    original: PreTrainedModel,
    chosen: dict[str, tuple[Block, HeadsSpec]],
    calibration: Sequence[Batch] | None,
    ranking: RankHeads,
    progress: Progress | None,
    kept: Mapping[str, tuple[int, ...]],
    must: bool,
    how: Running = PLAIN,
    team: Team | None = None,
) -> dict[str, HeadsSpec]:
    """Resolved settings of every block; settings that spread a total over blocks see all their blocks at once.

    Heads of `kept` are removed last, and left exact where the method can. `how` is how batches run, which the
    processes of a team share.

    Raises:
        HeadsError: heads of `kept` `must` be left exact, and settings cannot.
    """
    groups: dict[HeadsSpec, list[str]] = {}
    for name, (_, spec) in chosen.items():
        groups.setdefault(spec, []).append(name)
    blocks = {block.name: block for block in find_blocks(original)}
    planned: dict[str, HeadsSpec] = {}
    for spec, names in groups.items():
        profiles = {}
        wanted = calibration if calibration is not None and spec.needs_profiles() else ()
        with Stepper(original, wanted, names, how=how, team=team) as stepper:
            for index, name in enumerate(names):
                dense = read_block(blocks[name])
                statistics, trial = BlockStatistics.uninformed(dense.shape), None
                if wanted:
                    if progress:
                        progress(f"profiling {name}", index, len(names))
                    statistics = statistics_of(blocks[name], dense, stepper.at(name), team)
                    trial = partial(_trial, original, name, dense, statistics, wanted)
                before = block_specs(original).get(name)
                profiles[name] = BlockProfile(dense.shape, dense, statistics, before, trial)
        planned.update(spec.plan(profiles, partial(_kept_last, ranking, kept)))
    unable = [name for name in kept if not planned[name].keeps_heads()]
    if unable and must:
        raise HeadsError(
            f"{planned[unable[0]].method} cannot leave single heads exact: leave their blocks out with blocks "
            f"'{','.join(f'!{name}' for name in unable)}', or drop keep-heads"
        )
    for name, heads in kept.items():
        with nullcontext() if must else suppress(HeadsError):
            planned[name] = planned[name].keep_exact(heads, block_shape(blocks[name]), name)
    return planned


def _kept_last(
    ranking: RankHeads, kept: Mapping[str, tuple[int, ...]], names: Sequence[str], **how: Any
) -> list[tuple[str, int]]:
    """The order of a ranking in which heads that are to be kept go last."""
    return last(ranking(names, **how), kept)


def order_heads(
    original: PreTrainedModel,
    calibration: Sequence[Batch] | None,
    labelled: Sequence[Batch] | None,
    seed: int,
    team: Team,
    progress: Progress | None,
    names: Sequence[str],
    *,
    rule: str,
    steps: int,
    keep: float,
    normalize: bool,
    scores: str | None,
    unit: str = "example",
    least: int = 0,
) -> list[tuple[str, int]]:
    """All heads of some blocks, the least important first."""
    if scores is not None:
        return load_scores(scores, original).order_of(names)
    return rank_heads(
        original,
        rule,
        labelled if rule == "gradient" else calibration,
        blocks=names,
        steps=steps,
        keep=keep,
        normalize=normalize,
        unit=unit,
        least=least,
        seed=seed,
        team=team,
        progress=progress,
    ).order_of(names)


def _trial(
    original: PreTrainedModel,
    name: str,
    dense: DenseAttention,
    statistics: BlockStatistics,
    calibration: Sequence[Batch],
    spec: HeadsSpec,
) -> float:
    """How far the model's output drifts when one block alone is converted, before any refit."""
    model = share_weights(original)
    adopt(model)
    made = get_method(spec.method).from_dense(dense, statistics, spec)
    install(model, name, made.spec or spec, made.weights)
    return relative_drift(model, original, [thin(batch, _TRIAL_SHARE) for batch in calibration])
