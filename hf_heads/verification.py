"""Checks of a converted checkpoint: its files, its sizes, and its outputs against the original's."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedModel

from . import auto
from .adapters import adapter_of, find_blocks, host_shape
from .checkpoint import Source, Weights, resolve_source
from .checkpoint_conversion import (
    REPORT,
    CalibrationChoice,
    calibration_data,
    load_source,
    probes,
    read_config,
    tensor_names,
)
from .configuration import HeadsConfig
from .drift import Drift, measure_drift
from .errors import HeadsError


@dataclass
class Verdict:
    """What a verification found.

    Attributes:
        figures: drift and sizes by name.
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
) -> Verdict:
    """Run a converted checkpoint and its original on the same inputs and compare their files.

    Args:
        folder: the converted checkpoint.
        against: the original; the one that the checkpoint's report names when None.
        data: inputs to compare on; made from nothing when None.
        expect: figures as in a recipe's `[expect]`.
        min_cosine: fail below this.
        tolerance: fail where any output number differs by more than this.

    Raises:
        HeadsError: one of the two cannot be loaded.
    """
    record = read_record(folder)
    given = against or record.get("source")
    if given is None:
        raise HeadsError(f"'{folder}' does not say what it was made from; name it with --against")
    source, original_source = Source(str(folder), folder), resolve_source(str(given), record.get("revision"))
    model, original = load_source(source), load_source(original_source)
    if not isinstance(model.config, HeadsConfig):
        raise HeadsError(f"'{folder}' has no converted attention heads")
    verdict = Verdict()
    if record.get("distillation", {}).get("train") != "all":  # else every tensor was trained
        verdict.failures += compare_files(folder, model, original_source.folder, original)
    inputs = probes(original_source, original)
    if data is not None:
        inputs = calibration_data(original_source, original, data).batches
    drift = measure_drift(model, original, inputs)
    verdict.figures = {**drift.to_dict(), **sizes(model)}
    _judge(verdict, drift, record if data is None else {}, expect or {}, min_cosine, tolerance)
    return verdict


def _judge(
    verdict: Verdict,
    drift: Drift,
    record: Mapping[str, Any],
    expect: Mapping[str, float],
    min_cosine: float | None,
    tolerance: float | None,
) -> None:
    recorded = record.get("drift", {}).get("random", {}).get("cosine")
    if recorded is not None and abs(recorded - drift.cosine) > 1e-3:
        verdict.failures.append(f"cosine is {drift.cosine:.4f}, but {recorded:.4f} when the checkpoint was made")
    if min_cosine is not None and drift.cosine < min_cosine:
        verdict.failures.append(f"cosine {drift.cosine:.4f} is below {min_cosine}")
    if tolerance is not None and drift.max_difference > tolerance:
        verdict.failures.append(f"the largest difference {drift.max_difference:.3g} is above {tolerance:g}")
    for name, wanted in expect.items():
        found = verdict.figures.get(name)
        at_least = name in ("cosine", "agreement")
        if found is None or (found < wanted if at_least else found != wanted):
            verdict.failures.append(f"{name} is {found}, expected {'at least ' if at_least else ''}{wanted}")


def read_record(folder: Path) -> dict[str, Any]:
    """The report that a conversion left in its folder; empty where there is none."""
    path = folder / REPORT
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise HeadsError(f"{path} cannot be read as JSON") from None


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


def sizes(model: PreTrainedModel) -> dict[str, int]:
    """Parameters of the attention and of the model, and numbers cached per token."""
    blocks = [auto.block_size(block) for block in find_blocks(model)]
    return {
        "attention_parameters": sum(parameters for parameters, _ in blocks),
        "model_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "cache_per_token": sum(cache for _, cache in blocks),
    }


def inspect(source: Source) -> dict[str, Any]:
    """What every attention block of a checkpoint is, from its config and the headers of its files alone.

    Raises:
        HeadsError: the checkpoint cannot be read, or its tensors have not the sizes that its config says.
    """
    weights = Weights(source.folder)
    config = read_config(source)
    adapter = adapter_of(config)
    native_config = AutoConfig.for_model(adapter.model_type, **_native_entries(config))
    served = auto.auto_classes(adapter)["AutoModel"]
    with torch.device("meta"):
        native = getattr(adapter.modeling, served)(native_config)
        model = auto.model_class(type(native))(config) if isinstance(config, HeadsConfig) else native
    names = tensor_names(model, weights)
    hosts = {block.name: host_shape(block.module, block.site, block.output) for block in find_blocks(native)}
    rows = []
    for block in find_blocks(model):
        parameters, cache = auto.block_size(block)
        stored = sum(torch.Size(weights.shape(name)).numel() for name in names.by_block.get(block.name, []))
        if stored != parameters:
            raise HeadsError(
                f"{block.name} holds {stored} numbers in the files, but its settings in config.json make {parameters}"
            )
        spec = auto.block_specs(model).get(block.name)
        shape = hosts[block.name]
        rows.append(
            {
                "name": block.name,
                "kind": block.kind,
                "method": spec.method if spec else "standard",
                **(spec.to_config() if spec else {"heads": shape.heads}),
                "parameters": parameters,
                "parameters_before": shape.parameters,
                "cache": cache,
                "cache_before": shape.cache_per_token,
            }
        )
    return {"source": source.given, "model_type": config.model_type, "blocks": rows}


def _native_entries(config: Any) -> dict[str, Any]:
    entries = config.to_dict()
    return {
        name: value
        for name, value in entries.items()
        if name not in ("model_type", "heads", "auto_map", "fusion_config", "architectures", "transformers_version")
    }
