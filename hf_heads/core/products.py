"""How fast this processor multiplies in a precision; not every one has products in bfloat16."""

from __future__ import annotations

import time
import warnings

import torch

from hf_heads.core.errors import HeadsWarning
from hf_heads.core.vocabulary import BFLOAT16

_SLOW = 2  # times as long as float32; what is nearer may be noise


def warn_where_slow(precision: str) -> None:
    """Say where products in bfloat16 take the processor much longer than in float32, before hours are spent on it.

    Args:
        precision: what is asked for; only bfloat16 is looked at, which every processor computes somehow.
    """
    if precision != BFLOAT16:
        return
    times = product_seconds(torch.bfloat16) / product_seconds(torch.float32)
    if times >= _SLOW:
        warnings.warn(
            f"products in bfloat16 take this processor {times:.0f} times as long as in float32: take float32",
            HeadsWarning,
            stacklevel=3,
        )


def product_seconds(dtype: torch.dtype, tries: int = 5) -> float:
    """Seconds of a product of 64 x 256 and 256 x 256 numbers on the processor, the best of some tries."""
    left, right = torch.ones(64, 256, dtype=dtype), torch.ones(256, 256, dtype=dtype)
    taken = []
    for _ in range(tries):
        started = time.perf_counter()
        left @ right
        taken.append(time.perf_counter() - started)
    return min(taken)
