"""What numbers that people give may be: finite, whole, within bounds; torch is not needed."""

from __future__ import annotations

import math
import re
import sys
from dataclasses import dataclass
from typing import Any, cast

from hf_heads.core.errors import HeadsError


@dataclass(frozen=True)
class Number:
    """The numbers that a setting takes; NaN and infinity are never among them.

    Attributes:
        least, most: its bounds, both included.
        whole: whether it counts something.
        above: whether `least` itself is left out.
    """

    least: float = -math.inf
    most: float = math.inf
    whole: bool = False
    above: bool = False

    def __str__(self) -> str:
        kind = "whole number" if self.whole else "number"
        if math.isinf(self.least):
            return f"a finite {kind}" if math.isinf(self.most) else f"a {kind} up to {_short(self.most)}"
        start = f"a {kind} {'above' if self.above else 'from'} {_short(self.least)}"
        return start if math.isinf(self.most) else f"{start} to {_short(self.most)}"

    def allows(self, value: object) -> bool:
        """Whether a value is such a number; `True` and `False` are none."""
        if type(value) is not int and (self.whole or type(value) is not float):
            return False
        if not abs(value) <= sys.float_info.max:  # Python compares integers of any size
            return False
        return self.least <= value <= self.most and not (self.above and value == self.least)

    def check(self, name: str, value: object) -> None:
        """Refuse anything else.

        Raises:
            HeadsError: says what `name` is, and what it may be.
        """
        if not self.allows(value):
            raise HeadsError(f"{name} is {shown(value)}, expected {self}")


def _short(bound: float) -> str:
    return f"{int(bound):,}" if bound == int(bound) else f"{bound:g}"


def shown(value: Any) -> str:
    """A value for one line of an error, cut where it is long; Python refuses to write integers of many digits."""
    try:
        text = repr(value)
    except ValueError:
        return "a number of thousands of digits"
    return text if len(text) <= 60 else f"{text[:57]}..."


_UNITS = {None: 1, "TB": 10**12, "GB": 10**9, "MB": 10**6, "KB": 10**3}


def byte_count(name: str, value: object) -> int:
    """A size such as `5GB` or `500MB` in bytes, as transformers reads it; a whole number is one of bytes.

    Raises:
        HeadsError: says what `name` is, and what it may be.
    """
    size: object = value
    if isinstance(value, str):
        found = re.fullmatch(r"([0-9]{1,15}) ?([KMGT]B)?", value.strip().upper())
        size = int(found[1]) * _UNITS[found[2]] if found else None
    if not Number(1, whole=True).allows(size):
        raise HeadsError(f"{name} is {shown(value)}, expected a size: 5GB, 500MB, 200KB, or a whole number of bytes")
    return cast(int, size)


SEED = Number(0, 2**32 - 1, whole=True)  # what NumPy takes, which shuffles data sets
EXAMPLES = Number(1, 1_000_000, whole=True)  # that are read, made or scored
COSINE = Number(-1, 1)
SHARE = Number(0, 1)
