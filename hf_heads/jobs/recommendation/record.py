"""What a recommendation consists of: conversions with what they save and what they lose, and the one that is best."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

Goal = Literal["balanced", "speed", "cache", "parameters"]
GOALS: dict[Goal, str] = {
    "balanced": "speed and attention parameters alike, and the cache where the model has one (the default)",
    "speed": "time of a forward pass on this machine, or of generating where that is what the model does",
    "cache": "numbers cached per token",
    "parameters": "parameters of the attention",
}
SAMPLES = 128  # to convert on, unless more is asked for: a trial need not be as good as what is made in the end
MAX_DROP = 0.02
WORTH = 1.05  # what saves less than a twentieth is not worth a conversion


@dataclass(frozen=True)
class Point:
    """One conversion of the model.

    Attributes:
        method: its name.
        settings: its options on the command line, by name.
        command: makes this checkpoint, with the defaults of `convert`, which keep at least as much.
        lost: what was measured on inputs that the conversion did not see: 1 - cosine of the outputs to the original's,
            or the share of predictions that changed; by the inputs' name.
        promised: the highest of these with its uncertainty, which other data of the same kind should not exceed.
        parameters, cache: how many times fewer the attention has than the original's.
        speed: how many times faster; below one is slower.
        speed_low: the same in the slower quarter of the rounds.
        seconds: of the conversion.
    """

    method: str
    settings: Mapping[str, Any]
    command: str
    lost: Mapping[str, float]
    promised: float
    parameters: float
    cache: float
    speed: float
    speed_low: float
    seconds: float

    def gain(self, goal: Goal, caches: bool) -> float:
        """How many times better than the original for a goal; what is not certain counts at its lower end.

        Args:
            goal: what is wanted.
            caches: the model has a cache, which then counts for `balanced`.
        """
        parts = {
            "speed": [self.speed_low],
            "cache": [self.cache],
            "parameters": [self.parameters],
            "balanced": [self.speed_low, self.parameters, *([self.cache] if caches else [])],
        }[goal]
        return math.prod(parts) ** (1 / len(parts))


@dataclass(frozen=True)
class Recommendation:
    """What to do with a model.

    Attributes:
        source: the model.
        data: what was converted and measured on.
        measure: what `lost` means for this model.
        goal, max_drop: as asked for.
        caches: the model has a cache of keys and values.
        timed: what the speed was measured with.
        points: all conversions, the one with most gain first.
        frontier: places in `points` of those that no other beats in what is lost and in the gain.
        recommended: the place of the best one that loses at most `max_drop`, None where nothing helps.
        left_out: methods that were not tried, with the reason.
        busy: a warning where other programs ran beside the timing, else empty.
    """

    source: str
    data: str
    measure: str
    goal: Goal
    max_drop: float
    caches: bool
    timed: str
    points: tuple[Point, ...]
    frontier: tuple[int, ...]
    recommended: int | None
    left_out: Mapping[str, str]
    busy: str

    @property
    def best(self) -> Point | None:
        """The recommended point."""
        return None if self.recommended is None else self.points[self.recommended]

    @property
    def reason(self) -> str:
        """Why this point, or why none, in a line."""
        if self.best is not None:
            return (
                f"{self.best.gain(self.goal, self.caches):.2f} x for {self.goal}, at most {self.best.promised:.4f} lost"
            )
        fitting = [one for one in self.points if one.promised <= self.max_drop]
        if not fitting:
            least = min((one.promised for one in self.points), default=math.nan)
            return f"nothing loses at most {self.max_drop:g}; the least is {least:.4f}"
        most = max(one.gain(self.goal, self.caches) for one in fitting)
        return f"nothing that loses at most {self.max_drop:g} gains for {self.goal}: at best {most:.2f} x"

    def to_dict(self) -> dict[str, Any]:
        """All of it, for machines."""
        gains = [one.gain(self.goal, self.caches) for one in self.points]
        points = [{**asdict(one), "gain": gain} for one, gain in zip(self.points, gains, strict=True)]
        return {**asdict(self), "points": points, "reason": self.reason}


def chosen(points: Sequence[Point], goal: Goal, caches: bool, max_drop: float) -> tuple[tuple[int, ...], int | None]:
    """The frontier of points in order of their gain, the largest first, and the best of it that loses little enough."""
    frontier: list[int] = []
    least = math.inf
    for place, point in enumerate(points):
        if point.promised < least:
            frontier.append(place)
            least = point.promised
    for place in frontier:
        if points[place].promised <= max_drop and points[place].gain(goal, caches) >= WORTH:
            return tuple(frontier), place
    return tuple(frontier), None
