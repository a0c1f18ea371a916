"""What stands in the place of multi-head attention when a model is trained from scratch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import hf_heads

# For a number of heads, and the longest input.
Maker = Callable[[int, int], hf_heads.HeadsSpec | None]


def mixture(heads: int, longest: int, **settings: Any) -> hf_heads.HeadsSpec:
    """Two Gaussian keys in half of the heads as arXiv 2110.08678 has them: a fixed kernel, priors of every position."""
    return hf_heads.MgkSpec(heads=heads // 2, components=2, sigma="fixed", positions=longest, **settings)


def linear(heads: int, longest: int, share: int = 1, keys: int = 1) -> hf_heads.HeadsSpec:
    """Linear attention of a share of the heads; with several keys priors of every position."""
    priors: dict[str, Any] = {"priors": "fixed"} if keys == 1 else {"positions": longest}
    return hf_heads.MgkSpec(heads=heads // share, components=keys, kernel="linear", **priors)


SOFTMAX: dict[str, Maker] = {
    "softmax h": lambda heads, longest: None,
    "softmax h/2": lambda heads, longest: hf_heads.PrunedSpec(kept=tuple(range(heads // 2))),
}
GAUSSIAN: dict[str, Maker] = {"mgk h/2": mixture, "smgk h/2": partial(mixture, mixture="smgk")}
E_STEPS: dict[str, Maker] = {
    "hard-E h/2": lambda heads, longest: hf_heads.MgkSpec(
        heads=heads // 2, components=2, sigma="fixed", assignment="hard"
    ),
    "soft-E h/2": partial(mixture, priors="em"),
}
LINEAR: dict[str, Maker] = {
    "linear h": linear,
    "linear h/2": partial(linear, share=2),
    "mlk h/2": partial(linear, share=2, keys=2),
}
# Of arXiv 2310.07911: heads that share one projection, and its controls.
SHARED: dict[str, Maker] = {
    "mhe-mul": lambda heads, longest: hf_heads.MheSpec(variant="mul"),
    "mhe-add": lambda heads, longest: hf_heads.MheSpec(variant="add"),
    "mqa": lambda heads, longest: hf_heads.MheSpec(variant="none", groups_q=heads),
    "sha": lambda heads, longest: hf_heads.MheSpec(variant="none"),
    "skv": lambda heads, longest: hf_heads.MheSpec(variant="none", memory="skv"),
    "el": lambda heads, longest: hf_heads.MheSpec(variant="none", memory="el"),
}
