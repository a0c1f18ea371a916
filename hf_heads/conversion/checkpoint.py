"""Conversion from checkpoint to checkpoint: what is no attention goes from file to file, by name and bit by bit."""

from __future__ import annotations

import time
from dataclasses import fields, replace
from pathlib import Path

import torch

from hf_heads.attention.spec import HeadsSpec
from hf_heads.checkpoints.files import check_output
from hf_heads.checkpoints.loading import load_source
from hf_heads.checkpoints.sources import Source
from hf_heads.checkpoints.tensors import tensor_names
from hf_heads.checkpoints.weights import Weights
from hf_heads.checkpoints.writing import write_checkpoint
from hf_heads.conversion.convert import convert
from hf_heads.conversion.planning import choose_blocks
from hf_heads.conversion.report import Report
from hf_heads.core.batches import Progress
from hf_heads.data.calibration import CalibrationChoice, calibration_data, labelled_batches, probes
from hf_heads.evaluation.drift import measure_drift
from hf_heads.modeling.blocks import share_weights
from hf_heads.vocabulary import RANDOM


def convert_checkpoint(
    source: Source,
    spec: HeadsSpec | dict[str, HeadsSpec],
    output: Path,
    *,
    calibration: CalibrationChoice | None = None,
    blocks: str | None = None,
    refit: bool = True,
    overwrite: bool = False,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
    recipe: str | None = None,
    progress: Progress | None = None,
) -> Report:
    """Convert a checkpoint folder into another one.

    Args:
        source: from `resolve_source`.
        spec: settings for all blocks, or by block name patterns.
        output: the folder to make; it appears when it is complete.
        calibration: what to calibrate on; data made from nothing when None.
        blocks: which blocks to convert, see `hf_heads.convert`.
        refit: refit output projections.
        overwrite: replace `output` if it exists.
        device: where to run.
        dtype: of the weights written; as in the source when None.
        recipe: text of the recipe that asked for this, for the model card.
        progress: called with (what, done, total).

    Raises:
        HeadsError: see `load_source`, `load_data`, `convert` and `finished_folder`.
    """
    started = time.perf_counter()
    choice = calibration or CalibrationChoice()
    check_output(output, overwrite)
    if progress:
        progress("loading", 0, 1)
    model = load_source(source, device)
    chosen = choose_blocks(model, spec, blocks)  # says what does not fit before the data takes its time
    names = tensor_names(model, Weights(source.folder))
    labelled = None
    if any(one.needs_labels() for _, one in chosen.values()):
        labelled = labelled_batches(source, model, choice)
    if not any(one.uses_data() for _, one in chosen.values()):
        choice = replace(choice, source="none")
    data = None if choice.source == "none" else calibration_data(source, model, choice)
    original = share_weights(model)
    converted, report = convert(
        model,
        spec,
        calibration=None if data is None else data.batches,
        labelled=labelled,
        seed=choice.seed,
        blocks=blocks,
        refit=refit,
        inplace=True,
        progress=progress,
    )
    used = "none, weights only" if data is None else data.description
    choices = sorted({one.choice() for _, one in chosen.values()} - {""})
    report.calibration = "; ".join([used, *choices])
    report.drift = {RANDOM: measure_drift(converted, original, probes(source, original)).to_dict()}
    if choice.source != RANDOM and data is not None and data.held_out:
        report.drift["held-out"] = measure_drift(converted, original, data.held_out).to_dict()
    if progress:
        progress("writing", 0, 1)
    report.seconds = time.perf_counter() - started
    record = {
        "source": source.given,
        "revision": source.revision,
        "calibration_choice": {**vars(choice), "columns": list(choice.columns) if choice.columns else None},
        "recipe": recipe,
        **report.to_dict(),
    }
    write_checkpoint(output, source, converted, names, record, dtype=dtype, overwrite=overwrite)
    return report


def default_output(source: Source, spec: HeadsSpec) -> Path:
    """A folder name that says what it holds, such as `bert-base-uncased-collab-256`."""
    parts = [source.name, spec.method]
    for item in fields(spec):
        value = getattr(spec, item.name)
        if not item.metadata["command"] or value == item.default:
            continue
        plain = item.name == "rank" or isinstance(value, str)
        text = Path(value).stem if item.name == "scores" else str(value)
        parts.append(text if plain else item.name if value is True else f"{item.name}-{text}")
    return Path("-".join(parts))
