"""The handful of conversions that are tried on a model, from mild to strong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hf_heads.attention.spec import HeadsSpec
from hf_heads.core.dense import AttentionShape
from hf_heads.jobs.recommendation.record import Point
from hf_heads.methods.registry import about, all_methods

_KEPT = (0.9, 0.75, 0.5)  # shares of the heads
_SHARES = (2, 4, 8)  # of the width of queries and keys


def candidates(shapes: Sequence[AttentionShape]) -> list[HeadsSpec]:
    """Settings to try on a model whose blocks have these sizes; they need not fit each of them."""
    heads = min(shape.heads for shape in shapes)
    width = min(shape.heads * shape.head_dim for shape in shapes)
    wanted: list[tuple[str, dict[str, Any]]] = [("pruned", {"keep": keep}) for keep in _KEPT]
    for share in _SHARES:
        wanted.append(("collab", {"rank": max(1, width // share)}))
        if (rank := width // share // heads * heads) and share < max(_SHARES):
            wanted.append(("low-rank", {"rank": rank}))
    held = min(shape.memory_heads for shape in shapes)
    groups = sorted({held // 4 if held % 4 == 0 else 1, 1}, reverse=True)
    wanted += [("mhe", {"groups": count}) for count in groups if count < held]
    if heads % 2 == 0:
        wanted.append(("mgk", {"merge": 2}))
    return [about(method).spec(**settings) for method, settings in wanted if method in all_methods()]


def settings_of(point: Point) -> HeadsSpec:
    """The settings that a recommended point stands for."""
    return about(point.method).spec(**{name.replace("-", "_"): value for name, value in point.settings.items()})
