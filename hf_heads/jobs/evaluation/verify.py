"""Checks of a converted checkpoint: its files, its sizes, and its outputs against the original's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from warnings import warn

import torch
from transformers import PreTrainedModel

from hf_heads.core.batches import Batch
from hf_heads.core.errors import HeadsError, HeadsWarning
from hf_heads.core.numbers import COSINE, Number
from hf_heads.core.vocabulary import NONE, RANDOM, in_precision, of_length
from hf_heads.io.checkpoints.inspection import sizes
from hf_heads.io.checkpoints.loading import load_source
from hf_heads.io.checkpoints.record import read_record, recorded_source
from hf_heads.io.checkpoints.sources import resolve_source
from hf_heads.io.checkpoints.tensors import tensor_names
from hf_heads.io.checkpoints.weights import Weights, digest
from hf_heads.io.data.calibration import CalibrationChoice, calibration_data, probes, probes_by_length
from hf_heads.jobs.evaluation.drift import Drift, measure_drift
from hf_heads.jobs.evaluation.precision import precision_drift
from hf_heads.jobs.evaluation.sources import check_classes, check_configs
from hf_heads.modeling.configuration import HeadsConfig


@dataclass
class Verdict:
    """What a verification found.

    Attributes:
        figures: drift and sizes by name; the cosines of texts of other lengths as `cosine of 128 tokens`; those of
            either model in a lower precision to itself as `cosine in bfloat16` and `original's cosine in bfloat16`.
        failures: one line for everything that is not as it should be.
    """

    figures: dict[str, Any] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)


def verify(
    folder: Path,
    against: str | None = None,
    *,
    data: CalibrationChoice | None = None,
    expect: Mapping[str, float] | None = None,
    min_cosine: float | None = None,
    tolerance: float | None = None,
    dtype: str | None = None,
) -> Verdict:
    """Run a converted checkpoint and its original on the same inputs and compare their files.

    Args:
        folder: the converted checkpoint.
        against: the original; the one that the checkpoint's report names when None.
        data: inputs to compare on; made from nothing when None.
        expect: figures as in a recipe's `[expect]`.
        min_cosine: fail where the cosine is below this, at any length.
        tolerance: fail where any output number differs by more than this.
        dtype: one of `PRECISIONS`, in which both models are compared with themselves as well.

    Raises:
        HeadsError: one of the two cannot be loaded, they are of different architectures, sizes or classes, the data is
            `none`, or a limit is no finite number.
    """
    for name, limit, number in (("min_cosine", min_cosine, COSINE), ("tolerance", tolerance, Number(0))):
        if limit is not None:
            number.check(name, limit)
    if data is not None and data.source == NONE:
        raise HeadsError("outputs are compared on inputs: name data with --data SRC, or leave it out for random ones")
    record = read_record(folder)
    given = against or recorded_source(folder, record, "--against")
    source, original_source = (
        resolve_source(str(folder)),
        resolve_source(given, None if against else record.get("revision")),
    )
    check_configs([original_source, source])
    model, original = load_source(source), load_source(original_source)
    check_classes([original_source, source], [original, model])
    if not isinstance(model.config, HeadsConfig):
        raise HeadsError(f"'{folder}' has no converted attention heads")
    verdict = Verdict()
    verdict.failures += compare_digests(folder, record.get("sha256"))
    if record.get("distillation", {}).get("train") != "all":  # else every tensor was trained
        verdict.failures += compare_files(folder, model, original_source.folder, original)
    if data is None:
        inputs, by_length = probes(original_source, original), probes_by_length(original_source, original)
    else:
        given = replace(data, samples=data.count, pack=False)
        found = calibration_data(original_source, original, given, writes=False, apart=False)
        inputs, by_length = found.batches, found.by_length
    drift = measure_drift(model, original, inputs)
    longer = {length: measure_drift(model, original, batches) for length, batches in by_length.items()}
    cosines = {of_length("cosine", length): one.cosine for length, one in longer.items()}
    verdict.figures = {**drift.to_dict(), **cosines, **sizes(model)}
    if dtype is not None:
        _judge_precision(verdict, model, original, inputs, dtype)
    _judge(verdict, drift, record if data is None else {}, expect or {}, min_cosine, tolerance)
    for length, one in longer.items():
        recorded = {} if data is not None else record
        failed = _judge_one(one, of_length(RANDOM, length), recorded, min_cosine, tolerance)
        verdict.failures += [f"texts of {length} tokens: {failure}" for failure in failed]
    return verdict


def _judge_precision(
    verdict: Verdict, model: PreTrainedModel, original: PreTrainedModel, inputs: Sequence[Batch], dtype: str
) -> None:
    """Both models in a lower precision against themselves."""
    for whose, one in (("", model), ("original's ", original)):
        own = precision_drift(one, inputs, dtype)
        verdict.figures[whose + in_precision("cosine", dtype)] = own.cosine
        if own.overflow and one is model:
            verdict.failures.append(f"in {dtype} its outputs contain NaN or Inf: {own.overflow}")


def _judge(
    verdict: Verdict,
    drift: Drift,
    record: Mapping[str, Any],
    expect: Mapping[str, float],
    min_cosine: float | None,
    tolerance: float | None,
) -> None:
    verdict.failures += _judge_one(drift, RANDOM, record, min_cosine, tolerance)
    for name, wanted in expect.items():
        found = verdict.figures.get(name)
        at_least = name in ("cosine", "agreement")
        if found is None or not (found >= wanted if at_least else found == wanted):
            verdict.failures.append(f"{name} is {found}, expected {'at least ' if at_least else ''}{wanted}")


def _judge_one(
    drift: Drift, inputs: str, record: Mapping[str, Any], min_cosine: float | None, tolerance: float | None
) -> list[str]:
    """What is wrong with the drift on some inputs, which the record may know under a name."""
    failures = []
    if drift.overflow:
        failures.append(f"the outputs of one of the two contain NaN or Inf: {drift.overflow}")
    recorded = record.get("drift", {}).get(inputs, {}).get("cosine")
    if recorded is not None and not abs(recorded - drift.cosine) <= 1e-3:
        failures.append(f"cosine is {drift.cosine:.4f}, but {recorded:.4f} when the checkpoint was made")
    if min_cosine is not None and not drift.cosine >= min_cosine:
        failures.append(f"cosine {drift.cosine:.4f} is below {min_cosine}")
    if tolerance is not None and not drift.max_difference <= tolerance:
        failures.append(f"the largest difference {drift.max_difference:.3g} is above {tolerance:g}")
    return failures


def compare_digests(folder: Path, written: Any) -> list[str]:
    """Tensors of a checkpoint that are not, bit by bit, those whose digests stand in its report.

    Args:
        folder: the checkpoint.
        written: `sha256` of the report; where there is none, as of a checkpoint that an older hf-heads or
            `save_pretrained` wrote, the tensors of the converted blocks are not checked, and a warning says so.
    """
    if not isinstance(written, Mapping):
        warn(
            f"the report of '{folder}' has no sha256 of its tensors: those of the converted blocks are checked "
            "by their outputs alone",
            HeadsWarning,
            stacklevel=3,
        )
        return []
    found = {name: digest(tensor) for name, tensor in Weights(folder).items()}
    changed = sorted(name for name in {*found, *written} if found.get(name) != written.get(name))
    if not changed:
        return []
    return [f"{len(changed)} tensors are not those that were written, first '{changed[0]}'"]


def compare_files(folder: Path, model: PreTrainedModel, original_folder: Path, original: PreTrainedModel) -> list[str]:
    """Differences between two checkpoints' files outside of the converted blocks: names, then bits."""
    here, there = Weights(folder), Weights(original_folder)
    names_here, names_there = tensor_names(model, here), tensor_names(original, there)
    untouched = set(names_there.by_block) - set(model.config.block_specs())
    wanted = [*names_there.outside, *(name for block in untouched for name in names_there.by_block[block])]
    failures = []
    if missing := sorted(set(wanted) - set(here)):
        failures.append(f"{len(missing)} tensors of the original are missing, first '{missing[0]}'")
    present = {*names_here.outside, *(name for block in untouched for name in names_here.by_block.get(block, []))}
    if added := sorted(present - set(wanted)):
        failures.append(f"{len(added)} tensors are not in the original, first '{added[0]}'")
    changed = [name for name in wanted if name in here and not _same(here[name], there[name])]
    if changed:
        failures.append(f"{len(changed)} tensors outside of the converted blocks changed, first '{changed[0]}'")
    return failures


def _same(here: torch.Tensor, there: torch.Tensor) -> bool:
    """Bitwise equality; after a cast to another precision, equality of what the cast gives."""
    return here.shape == there.shape and torch.equal(here, there.to(here.dtype))
