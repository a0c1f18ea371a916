"""hf-heads: re-parametrizes the attention heads of pretrained checkpoints and hands them back as ordinary ones.

Importing this package is what lets `AutoModel.from_pretrained` load converted checkpoints.
"""

from __future__ import annotations

import importlib
from typing import Any

from hf_heads.errors import HeadsError
from hf_heads.modeling.registration import register

__version__ = "0.1.0"
_PUBLIC = {
    "CollabSpec": "methods.collab",
    "DistillSettings": "distillation.settings",
    "DistillTrainer": "distillation.trainer",
    "HeadsSpec": "attention.spec",
    "LowRankSpec": "methods.low_rank",
    "MgkSpec": "methods.mgk",
    "MheSpec": "methods.mhe",
    "PrunedSpec": "methods.pruned",
    "ablate": "scoring.ablation",
    "compare_checkpoints": "evaluation.compare",
    "convert": "conversion.convert",
    "head_mask": "scoring.masks",
    "heads_config": "conversion.planning",
    "load_recipe": "conversion.recipes",
    "load_scores": "scoring.scores",
    "prune_heads": "compat",
    "rank_heads": "scoring.ranking",
}
_MODULES = ("compat", "methods", "models")
__all__ = ["HeadsError", "__version__", *_MODULES, *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f".{name}", __name__)
    if name not in _PUBLIC:
        raise AttributeError(f"module 'hf_heads' has no attribute '{name}'")
    value = getattr(importlib.import_module(f".{_PUBLIC[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


register()
