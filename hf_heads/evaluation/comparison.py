"""What a comparison of checkpoints found: the record that `hf-heads compare` writes and reports are drawn from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from hf_heads.core.intervals import Score
from hf_heads.evaluation.costs import Generation, Latency, Memory

FORMAT = 1


@dataclass(frozen=True)
class BlockRow:
    """One attention block of a model.

    Attributes:
        name, kind: see `hf_heads.hosts.blocks.Block`.
        settings: method and settings in words.
        heads: heads that it has.
        parameters, cache: its parameters, and the numbers it caches for a token; `_before` are the architecture's own.
        drift: |a - b|^2 / |b|^2 of its output a and the original's b on the same inputs of the models.
    """

    name: str
    kind: str
    settings: str
    heads: int
    parameters: int
    parameters_before: int
    cache: int
    cache_before: int
    drift: float | None = None


@dataclass(frozen=True)
class ModelRow:
    """What was found of one model.

    Attributes:
        name: the last part of `source`; the whole where names are not unique.
        source: as given.
        role: original, converted or control.
        methods, settings: of its converted blocks.
        calibration: what its report says it was calibrated on.
        healed: what its report says of a distillation.
        attention_parameters, model_parameters, cache_per_token: see `verification.sizes`.
        multiply_adds: of one forward pass of one example, by its length.
        latency, generation, peak_memory: at each batch and length; empty where they were not measured.
        drift: figures of `hf_heads.evaluation.drift.Drift` against the original; None of the original.
        score: of the task, None without one.
        blocks: a row for every attention block.
    """

    name: str
    source: str
    role: str
    attention_parameters: int
    model_parameters: int
    cache_per_token: int
    methods: tuple[str, ...] = ()
    settings: str = "standard"
    calibration: str | None = None
    healed: Mapping[str, Any] | None = None
    multiply_adds: Mapping[str, int] = field(default_factory=dict)
    latency: tuple[Latency, ...] = ()
    generation: tuple[Generation, ...] = ()
    peak_memory: tuple[Memory, ...] = ()
    drift: Mapping[str, float] | None = None
    score: Score | None = None
    blocks: tuple[BlockRow, ...] = ()


@dataclass(frozen=True)
class Comparison:
    """An original, its converted models in the order in which they were given, and the control.

    Attributes:
        original: the original as given.
        data: what the drift was measured on.
        date: ISO 8601.
        versions: of the packages, by name.
        machine, threads, device: what it ran on.
        metric: name, about, higher_is_better and examples of the task score; None without one.
        lengths, batches: what multiply-adds were counted for, and the batches timed.
        models: a row for each model, the original first.
    """

    original: str
    data: str
    date: str
    versions: Mapping[str, str]
    machine: str
    threads: int
    device: str
    metric: Mapping[str, Any] | None
    lengths: tuple[int, ...]
    batches: tuple[int, ...]
    models: tuple[ModelRow, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"format": FORMAT, "kind": "comparison", **asdict(self)}
