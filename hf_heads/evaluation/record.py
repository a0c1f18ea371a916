"""Records of comparisons, as `hf-heads compare --output` writes them, read and checked; torch is not needed."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_heads.errors import HeadsError

FORMAT = 1
ROLES = ("original", "converted", "control")


@dataclass(frozen=True)
class Metric:
    """The task score of a comparison."""

    name: str
    about: str
    higher_is_better: bool
    examples: int | None


@dataclass(frozen=True)
class Score:
    """A task score, and its difference from the original's, with intervals where they were taken."""

    value: float
    low: float | None
    high: float | None
    difference: float | None
    difference_low: float | None
    difference_high: float | None

    @property
    def clear(self) -> bool | None:
        """Whether the difference's interval leaves out zero; None where there is no interval."""
        if self.difference_low is None or self.difference_high is None:
            return None
        return self.difference_low > 0 or self.difference_high < 0


@dataclass(frozen=True)
class Timing:
    """A speed: of a forward pass where there is a length, of generation where there is none."""

    batch: int
    length: int | None
    milliseconds: float | None
    tokens_per_second: float | None
    ratio: float | None

    @property
    def setting(self) -> str:
        """What was timed, such as `batch 8, length 128`."""
        return f"generation, batch {self.batch}" if self.length is None else f"batch {self.batch}, length {self.length}"


@dataclass(frozen=True)
class BlockRow:
    """An attention block of a model."""

    name: str
    kind: str
    settings: str
    heads: int | None
    parameters: int | None
    parameters_before: int | None
    cache: int | None
    cache_before: int | None
    drift: float | None


@dataclass(frozen=True)
class Model:
    """A model of a comparison.

    Attributes:
        name: as shown.
        role: one of `ROLES`.
        healed: what is recorded of its training after the conversion; None of a one-shot conversion.
        curve: points of that training, each with `seconds` and what was measured.
        drift: how far its outputs are from the original's, by name.
    """

    name: str
    source: str
    role: str
    methods: tuple[str, ...]
    settings: str
    calibration: str | None
    healed: Mapping[str, Any] | None
    curve: tuple[Mapping[str, float], ...]
    attention_parameters: int
    model_parameters: int | None
    cache_per_token: float | None
    multiply_adds: Mapping[int, float]
    timings: tuple[Timing, ...]
    peak_memory: tuple[tuple[int, int, int], ...]  # (batch, length, bytes)
    drift: Mapping[str, float]
    score: Score | None
    blocks: tuple[BlockRow, ...]

    @property
    def method(self) -> str:
        """The methods in one word or two; `standard` where there are none."""
        return " + ".join(self.methods) or "standard"

    @property
    def speed(self) -> float | None:
        """Geometric mean of the speed ratios over all batches and lengths of a forward pass."""
        ratios = [row.ratio for row in self.timings if row.length is not None and row.ratio]
        return math.exp(sum(map(math.log, ratios)) / len(ratios)) if ratios else None


@dataclass(frozen=True)
class Comparison:
    """A file that `hf-heads compare` wrote; `models` begins with the original."""

    original: str
    data: str | None
    date: str
    versions: Mapping[str, str]
    machine: str
    threads: int | None
    device: str
    metric: Metric | None
    models: tuple[Model, ...] = field(repr=False)

    @property
    def reference(self) -> Model:
        """The original."""
        return self.models[0]

    def quality(self, model: Model) -> float | None:
        """The figure by which models are compared: the task score, or the cosine of outputs where there is no task."""
        if self.metric is not None:
            return model.score.value if model.score else None
        return 1.0 if model.role == "original" else model.drift.get("cosine")

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

    def before_healing(self, model: Model) -> int | None:
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
    entries = _read_json(path, "comparison")
    if entries.get("kind") != "comparison":
        raise HeadsError(
            f"'{path}' is no comparison (its kind is {entries.get('kind')!r}); give a file that "
            "`hf-heads compare --output` wrote"
        )
    if entries.get("format") != FORMAT:
        raise HeadsError(f"'{path}' has format {entries.get('format')!r}, this hf-heads reads {FORMAT}; compare again")
    try:
        models = [_Entry(model, f"models[{place}]").model() for place, model in enumerate(entries["models"])]
        top = _Entry(entries, "the record")
        metric = top.inner("metric")
        found = Comparison(
            top.text("original"),
            top.maybe_text("data"),
            top.maybe_text("date") or "",
            {str(name): str(value) for name, value in (entries.get("versions") or {}).items()},
            top.maybe_text("machine") or "",
            top.whole("threads"),
            top.maybe_text("device") or "",
            metric.metric() if metric else None,
            tuple(sorted(models, key=lambda model: model.role != "original")),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise HeadsError(f"'{path}' is no comparison as `hf-heads compare` writes it: {_reason(error)}") from None
    roles = [model.role for model in found.models]
    if roles.count("original") != 1:
        raise HeadsError(f"'{path}' holds {roles.count('original')} originals instead of one; compare again")
    if "converted" not in roles:
        raise HeadsError(f"'{path}' holds no converted models; run `hf-heads compare` again with at least one")
    return found


def read_scores(path: str | Path) -> tuple[dict[str, list[float]], str, str]:
    """The importance of heads by block, the rule, and the data, from what `hf-heads importance --output` wrote.

    Raises:
        HeadsError: the file cannot be read or is something else.
    """
    entries = _read_json(path, "scores")
    try:
        values = {str(name): [float(value) for value in row] for name, row in entries["importance"].items()}
        if not any(values.values()):
            raise ValueError
        return values, str(entries["rule"]), str(entries.get("data") or "")
    except (KeyError, TypeError, ValueError, AttributeError):
        raise HeadsError(
            f"'{path}' does not hold scores of heads; give a file that `hf-heads importance --output` wrote"
        ) from None


def _read_json(path: str | Path, what: str) -> dict[str, Any]:
    try:
        entries = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise HeadsError(f"cannot read the {what} '{path}': {error.strerror}") from None
    except ValueError:
        raise HeadsError(f"the {what} '{path}' is no JSON; give a file that hf-heads wrote") from None
    if not isinstance(entries, dict):
        raise HeadsError(f"the {what} '{path}' is no JSON object; give a file that hf-heads wrote")
    return entries


def _reason(error: Exception) -> str:
    return f"{error} is missing" if isinstance(error, KeyError) else str(error)


class _Entry:
    """A JSON object whose values are asked for by name and kind; errors say where."""

    def __init__(self, entries: Any, where: str) -> None:
        if not isinstance(entries, dict):
            raise TypeError(f"{where} is no object")
        self.entries, self.where = entries, where

    def _get(self, name: str, kinds: tuple[type, ...], word: str) -> Any:
        value = self.entries.get(name)
        if value is not None and (not isinstance(value, kinds) or isinstance(value, bool)):
            raise TypeError(f"{name} in {self.where} is {value!r}, not {word}")
        return value

    def _need(self, name: str, value: Any) -> Any:
        if value is None:
            raise TypeError(f"{name} in {self.where} is missing")
        return value

    def text(self, name: str) -> str:
        return str(self._need(name, self.maybe_text(name)))

    def maybe_text(self, name: str) -> str | None:
        found: str | None = self._get(name, (str,), "a text")
        return found

    def number(self, name: str) -> float | None:
        """None stands for what was not measured, and for what is no finite number."""
        value = self._get(name, (int, float), "a number")
        return None if value is None or not math.isfinite(value) else float(value)

    def whole(self, name: str) -> int | None:
        value = self.number(name)
        return None if value is None else round(value)

    def inner(self, name: str) -> _Entry | None:
        value = self.entries.get(name)
        return None if value is None else _Entry(value, f"{name} in {self.where}")

    def rows(self, name: str) -> list[_Entry]:
        rows = self._get(name, (list,), "a list") or []
        return [_Entry(row, f"{name}[{place}] in {self.where}") for place, row in enumerate(rows)]

    def numbers(self) -> dict[str, float]:
        """All that are numbers."""
        kinds = {name: value for name, value in self.entries.items() if isinstance(value, (int, float))}
        return {name: float(value) for name, value in kinds.items() if math.isfinite(value)}

    def metric(self) -> Metric:
        higher = self.entries.get("higher_is_better", True)
        return Metric(self.text("name"), self.maybe_text("about") or "", bool(higher), self.whole("examples"))

    def score(self) -> Score:
        names = ("value", "low", "high", "difference", "difference_low", "difference_high")
        value, *others = (self.number(name) for name in names)
        return Score(self._need("value", value), *others)

    def timing(self) -> Timing:
        batch, length = self._need("batch", self.whole("batch")), self.whole("length")
        speeds = (self.number(name) for name in ("milliseconds", "tokens_per_second", "ratio"))
        return Timing(batch, length, *speeds)

    def block(self) -> BlockRow:
        return BlockRow(
            name=self.text("name"),
            kind=self.maybe_text("kind") or "",
            settings=self.maybe_text("settings") or "",
            heads=self.whole("heads"),
            parameters=self.whole("parameters"),
            parameters_before=self.whole("parameters_before"),
            cache=self.whole("cache"),
            cache_before=self.whole("cache_before"),
            drift=self.number("drift"),
        )

    def model(self) -> Model:
        role = self.text("role")
        if role not in ROLES:
            raise ValueError(f"role in {self.where} is '{role}', not one of {', '.join(ROLES)}")
        healed, drift, score = (self.inner(name) for name in ("healed", "drift", "score"))
        adds = self.inner("multiply_adds")
        memory = [[row.whole(name) for name in ("batch", "length", "bytes")] for row in self.rows("peak_memory")]
        return Model(
            self.text("name"),
            self.maybe_text("source") or "",
            role,
            tuple(map(str, self._get("methods", (list,), "a list") or ())),
            self.maybe_text("settings") or "",
            self.maybe_text("calibration"),
            healed.entries if healed else None,
            tuple(row.numbers() for row in healed.rows("curve")) if healed else (),
            self._need("attention_parameters", self.whole("attention_parameters")),
            self.whole("model_parameters"),
            self.number("cache_per_token"),
            {int(length): count for length, count in adds.numbers().items()} if adds else {},
            tuple(row.timing() for name in ("latency", "generation") for row in self.rows(name)),
            tuple((row[0] or 0, row[1] or 0, row[2]) for row in memory if row[2] is not None),
            drift.numbers() if drift else {},
            score.score() if score else None,
            tuple(row.block() for row in self.rows("blocks")),
        )
