"""The record of a comparison: `hf-heads compare` fills and writes it, tables, cards and pages read it; no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from hf_heads.core.errors import HeadsError
from hf_heads.io.checkpoints.json_files import as_record, read_json, without_nan

FORMAT = 1
Role = Literal["original", "converted", "control"]


@dataclass(frozen=True)
class Metric:
    """The task score of a comparison."""

    name: str
    about: str = ""
    higher_is_better: bool = True
    examples: int | None = None


@dataclass(frozen=True)
class Score:
    """A figure over examples, its difference to the original's on the same examples, and their 95 % intervals.

    Attributes:
        value: the figure over all examples.
        low, high: ends of its interval.
        difference: this value minus the original's.
        difference_low, difference_high: ends of the interval of the difference, both on the same drawn examples.
    """

    value: float
    low: float | None = None
    high: float | None = None
    difference: float | None = None
    difference_low: float | None = None
    difference_high: float | None = None

    @property
    def clear(self) -> bool | None:
        """Whether the difference's interval leaves out zero; None where there is no interval."""
        if self.difference_low is None or self.difference_high is None:
            return None
        return self.difference_low > 0 or self.difference_high < 0


def busy_warning(load: float | None, cores: int | None) -> str:
    """A sentence where other work ran on the machine while models were timed; else empty."""
    if load is None or cores is None or load <= cores:
        return ""
    return f"the machine was busy while models were timed (load {load:.1f} on {cores} cores): time them anew"


@dataclass(frozen=True)
class Latency:
    """How long a forward pass takes.

    Attributes:
        batch: examples at a time.
        length: tokens of each, padding none; of a text-to-text model, of source and target each.
        milliseconds: median of one forward pass.
        tokens_per_second: batch * length / seconds; of images, their patches and the class token.
        ratio: the original's milliseconds / this model's: above 1 this model is faster.
        images_per_second: of image models.
        ratio_low, ratio_high: the middle half of the ratios of single rounds lies between these.
    """

    batch: int
    length: int
    milliseconds: float
    tokens_per_second: float
    ratio: float
    images_per_second: float | None = None
    ratio_low: float | None = None
    ratio_high: float | None = None

    @property
    def setting(self) -> str:
        """What was timed."""
        return f"batch {self.batch}, length {self.length}"


@dataclass(frozen=True)
class Generation:
    """How fast a text-to-text model generates, greedily and with a cache.

    Attributes:
        batch: examples at a time.
        tokens_per_second: new tokens of all examples together.
        ratio: this model's tokens per second / the original's: above 1 this model is faster.
        ratio_low, ratio_high: the middle half of the ratios of single rounds lies between these.
    """

    batch: int
    tokens_per_second: float
    ratio: float
    ratio_low: float | None = None
    ratio_high: float | None = None

    @property
    def setting(self) -> str:
        """What was timed."""
        return f"generation, batch {self.batch}"


@dataclass(frozen=True)
class Memory:
    """The most that a forward pass holds at a time above what was held before, in bytes, its output included."""

    batch: int
    length: int
    bytes: int


@dataclass(frozen=True)
class BlockRow:
    """One attention block of a model.

    Attributes:
        name, kind: see `hf_heads.attention.hosts.blocks.Block`.
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


@dataclass(frozen=True, kw_only=True)
class ModelRow:
    """What was found of one model.

    Attributes:
        name: the last part of `source`; numbered where names are not unique.
        source: as given; a folder by its name alone.
        role: what it is in the comparison.
        attention_parameters, model_parameters, cache_per_token: see `hf_heads.io.checkpoints.inspection.sizes`.
        methods, settings: of its converted blocks.
        calibration: what its report says it was calibrated on.
        healed: what its report says of a distillation; None of a one-shot conversion.
        command: by which its report says that it was converted.
        multiply_adds: of one forward pass of one example, by its length.
        latency, generation, peak_memory: at each batch and length; empty where they were not measured.
        drift: figures of `hf_heads.jobs.evaluation.drift.Drift` against the original; None of the original.
        cosine_by_length: of the outputs on texts of so many tokens, by their number; empty where none were measured.
        cosine_by_precision: of the outputs in a lower precision to the model's own in float32; empty where none was
            measured.
        score: of the task, None without one.
        blocks: a row for every attention block.
    """

    name: str
    source: str = ""
    role: Role
    attention_parameters: int
    model_parameters: int = 0
    cache_per_token: int = 0
    methods: tuple[str, ...] = ()
    settings: str = ""
    calibration: str | None = None
    healed: Mapping[str, Any] | None = None
    command: str | None = None
    multiply_adds: Mapping[int, int] = field(default_factory=dict)
    latency: tuple[Latency, ...] = ()
    generation: tuple[Generation, ...] = ()
    peak_memory: tuple[Memory, ...] = ()
    drift: Mapping[str, float] | None = None
    cosine_by_length: Mapping[int, float] = field(default_factory=dict)
    cosine_by_precision: Mapping[str, float] = field(default_factory=dict)
    score: Score | None = None
    blocks: tuple[BlockRow, ...] = ()

    @property
    def method(self) -> str:
        """The methods in one word or two; `standard` where there are none."""
        return " + ".join(self.methods) or "standard"

    @property
    def timings(self) -> tuple[Latency | Generation, ...]:
        """All that was timed."""
        return (*self.latency, *self.generation)

    @property
    def ratios(self) -> list[float]:
        """How many times as fast as the original: generating where that was timed, else a forward pass, by setting."""
        return [row.ratio for row in (self.generation or self.latency) if row.ratio > 0]

    @property
    def speed(self) -> float | None:
        """Geometric mean of the ratios; None where nothing was timed."""
        return math.exp(sum(map(math.log, self.ratios)) / len(self.ratios)) if self.ratios else None

    @property
    def curve(self) -> list[dict[str, float]]:
        """Points of the training after the conversion, each with `seconds` and what was measured."""
        points = (self.healed or {}).get("curve")
        return [
            {name: value for name, value in point.items() if isinstance(value, (int, float)) and math.isfinite(value)}
            for point in (points if isinstance(points, list) else [])
            if isinstance(point, dict)
        ]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """An original, its converted models in the order in which they were given, and the control.

    Attributes:
        original: the original as given; a folder by its name alone.
        data: what the drift was measured on.
        date: ISO 8601.
        versions: of the packages, by name.
        machine, threads, device: what it ran on.
        metric: the task score; None without one.
        load, cores: the highest load of the machine before and after the timing, and its cores; None where nothing was
            timed, or the system does not say.
        lengths, batches: what multiply-adds were counted for, and the batches timed.
        models: a row for each model, the original first.
    """

    original: str
    data: str = ""
    date: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    machine: str = ""
    threads: int = 0
    device: str = ""
    load: float | None = None
    cores: int | None = None
    metric: Metric | None = None
    lengths: tuple[int, ...] = ()
    batches: tuple[int, ...] = ()
    models: tuple[ModelRow, ...] = field(repr=False)

    @property
    def reference(self) -> ModelRow:
        """The original."""
        return self.models[0]

    @property
    def busy(self) -> str:
        """A sentence where other work ran on the machine while it was timed; else empty."""
        return busy_warning(self.load, self.cores)

    def quality(self, model: ModelRow) -> float | None:
        """The figure by which models are compared: the task score, or the cosine of outputs where there is no task."""
        if self.metric is not None:
            return model.score.value if model.score else None
        return 1.0 if model.role == "original" else (model.drift or {}).get("cosine")

    @property
    def sign(self) -> float:
        """1 where a higher figure of quality is better, -1 where a lower one is."""
        return -1.0 if self.metric is not None and not self.metric.higher_is_better else 1.0

    def front(self) -> list[int]:
        """The numbers of the models that no other beats in attention parameters and quality, the smallest first."""
        placed = {
            number: (model.attention_parameters, self.sign * quality)
            for number, model in enumerate(self.models)
            if (quality := self.quality(model)) is not None
        }
        numbers = list(placed)
        return [numbers[place] for place in pareto_front(list(placed.values()))]

    def before_healing(self, model: ModelRow) -> int | None:
        """The number of the one-shot model that a healed one began as: the only one of its method, settings, size."""
        if model.healed is None:
            return None
        same = (model.methods, model.settings, model.attention_parameters)
        alike = [
            number
            for number, other in enumerate(self.models)
            if other.healed is None and (other.methods, other.settings, other.attention_parameters) == same
        ]
        return alike[0] if len(alike) == 1 else None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"format": FORMAT, "kind": "comparison", **without_nan(asdict(self))}


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """The places of the points (size, quality) that no other point beats, the smallest and best first.

    A point is beaten by one of at most its size and at least its quality that differs in one of the two.
    """
    front: list[int] = []
    for index in sorted(range(len(points)), key=lambda place: (points[place][0], -points[place][1])):
        if not front or points[index][1] > points[front[-1]][1] or points[index] == points[front[-1]]:
            front.append(index)
    return front


def read_comparison(path: str | Path) -> Comparison:
    """Read what `hf-heads compare --output` wrote.

    Raises:
        HeadsError: the file cannot be read, is something else, or holds no converted model.
    """
    entries = read_json(path, "comparison")
    if entries.get("kind") != "comparison":
        raise HeadsError(
            f"'{path}' is not a comparison (its kind is {entries.get('kind')!r}); give a file that "
            "`hf-heads compare --output` wrote"
        )
    if entries.get("format") != FORMAT:
        raise HeadsError(f"'{path}' has format {entries.get('format')!r}, this hf-heads reads {FORMAT}; compare again")
    found = as_record(Comparison, entries, f"'{path}' is not a comparison as `hf-heads compare` writes it")
    roles = [model.role for model in found.models]
    if roles.count("original") != 1:
        raise HeadsError(f"'{path}' holds {roles.count('original')} originals instead of one; compare again")
    if "converted" not in roles:
        raise HeadsError(f"'{path}' holds no converted models; run `hf-heads compare` again with at least one")
    return replace(found, models=tuple(sorted(found.models, key=lambda model: model.role != "original")))
