"""Importance and ablation of the heads of a checkpoint: loads the model and the data that a study needs."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from hf_heads.core.batches import Progress
from hf_heads.core.vocabulary import CONSTANT_RULES
from hf_heads.io.checkpoints.loading import load_source
from hf_heads.io.checkpoints.sources import Source
from hf_heads.io.data.calibration import CalibrationChoice, labelled_batches
from hf_heads.io.data.encoding import load_tokenizer
from hf_heads.jobs.scoring.ablation import AblationTable, ablate
from hf_heads.jobs.scoring.ranking import rank_heads
from hf_heads.jobs.scoring.scores import HeadScores
from hf_heads.jobs.team import Team, shared_data


def score_checkpoint(
    source: Source,
    *,
    rule: str = "gauss-newton",
    calibration: CalibrationChoice | None = None,
    blocks: str | None = None,
    steps: int = 4,
    normalize: bool = False,
    unit: str = "example",
    device: str = "cpu",
    team: Team | None = None,
    progress: Progress | None = None,
) -> HeadScores:
    """Scores of all heads of a checkpoint, see `rank_heads`.

    Raises:
        HeadsError: see `load_source`, `load_data`, `load_labelled` and `rank_heads`.
    """
    choice, team = replace(calibration or CalibrationChoice(), pack=False), team or Team()
    if progress:
        progress("loading", 0, 1)
    model = load_source(source, team.device(device))
    batches, description = None, ""
    if rule == "gradient":
        batches = labelled_batches(source, model, choice)
        description = f"labelled examples of {choice.source}, seed {choice.seed}"
    elif rule not in CONSTANT_RULES and choice.source != "none":
        data = shared_data(source, model, choice, team)
        batches, description = data.batches, data.description
    found = rank_heads(
        model,
        rule,
        batches,
        blocks=blocks,
        steps=steps,
        normalize=normalize,
        unit=unit,
        seed=choice.seed,
        team=team,
        progress=progress,
    )
    return replace(found, data=description)


def ablate_checkpoint(
    source: Source,
    *,
    metric: str | None = None,
    calibration: CalibrationChoice | None = None,
    blocks: str | None = None,
    device: str = "cpu",
    team: Team | None = None,
    progress: Progress | None = None,
) -> AblationTable:
    """Ablation tables of a checkpoint, see `ablate`; drift by default, which needs no labels.

    Raises:
        HeadsError: see `load_source`, `load_data`, `load_labelled` and `ablate`.
    """
    choice, team = replace(calibration or CalibrationChoice(), pack=False), team or Team()
    if progress:
        progress("loading", 0, 1)
    model = load_source(source, team.device(device))
    if metric in (None, "drift"):
        batches = [] if choice.source == "none" else shared_data(source, model, choice, team).batches
        metric = "drift"
    else:
        batches = labelled_batches(source, model, choice)
    decode = None
    if metric == "bleu":
        decode = partial(load_tokenizer(source.folder).batch_decode, skip_special_tokens=True)
    return ablate(model, batches, metric=metric, blocks=blocks, decode=decode, team=team, progress=progress)
