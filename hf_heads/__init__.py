"""hf-heads: re-parametrizes the attention heads of pretrained checkpoints and hands them back as ordinary ones.

Importing this package is what lets `AutoModel.from_pretrained` load converted checkpoints.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from hf_heads.errors import HeadsError
from hf_heads.modeling.registration import register
from hf_heads.vocabulary import VERSION

if TYPE_CHECKING:
    from hf_heads import compat, extend, methods, models
    from hf_heads.attention.spec import HeadsSpec
    from hf_heads.checkpoints.sources import resolve_source
    from hf_heads.compat import prune_heads
    from hf_heads.conversion.checkpoint import convert_checkpoint
    from hf_heads.conversion.convert import convert
    from hf_heads.conversion.planning import heads_config
    from hf_heads.conversion.recipes import load_recipe
    from hf_heads.conversion.request import ConversionRequest
    from hf_heads.data.choice import CalibrationChoice
    from hf_heads.distillation.checkpoint import distill_checkpoint
    from hf_heads.distillation.settings import DistillSettings
    from hf_heads.distillation.trainer import DistillTrainer
    from hf_heads.evaluation.choices import Choices
    from hf_heads.evaluation.compare import compare_checkpoints
    from hf_heads.hosts.blocks import find_blocks
    from hf_heads.methods.settings.collab import CollabSpec
    from hf_heads.methods.settings.low_rank import LowRankSpec
    from hf_heads.methods.settings.mgk import MgkSpec
    from hf_heads.methods.settings.mhe import MheSpec
    from hf_heads.methods.settings.pruned import PrunedSpec
    from hf_heads.scoring.ablation import ablate
    from hf_heads.scoring.masks import head_mask
    from hf_heads.scoring.ranking import rank_heads
    from hf_heads.scoring.scores import load_scores

__version__ = VERSION

# Where a name is found when it is first asked for; what type checkers see stands above, and a test compares the two.
_PLACES = {
    "CalibrationChoice": "data.choice",
    "Choices": "evaluation.choices",
    "CollabSpec": "methods.settings.collab",
    "ConversionRequest": "conversion.request",
    "DistillSettings": "distillation.settings",
    "DistillTrainer": "distillation.trainer",
    "HeadsSpec": "attention.spec",
    "LowRankSpec": "methods.settings.low_rank",
    "MgkSpec": "methods.settings.mgk",
    "MheSpec": "methods.settings.mhe",
    "PrunedSpec": "methods.settings.pruned",
    "ablate": "scoring.ablation",
    "compare_checkpoints": "evaluation.compare",
    "convert": "conversion.convert",
    "convert_checkpoint": "conversion.checkpoint",
    "distill_checkpoint": "distillation.checkpoint",
    "find_blocks": "hosts.blocks",
    "head_mask": "scoring.masks",
    "heads_config": "conversion.planning",
    "load_recipe": "conversion.recipes",
    "load_scores": "scoring.scores",
    "prune_heads": "compat",
    "rank_heads": "scoring.ranking",
    "resolve_source": "checkpoints.sources",
}
_MODULES = ("compat", "extend", "methods", "models")

__all__ = [
    "CalibrationChoice",
    "Choices",
    "CollabSpec",
    "ConversionRequest",
    "DistillSettings",
    "DistillTrainer",
    "HeadsError",
    "HeadsSpec",
    "LowRankSpec",
    "MgkSpec",
    "MheSpec",
    "PrunedSpec",
    "__version__",
    "ablate",
    "compare_checkpoints",
    "compat",
    "convert",
    "convert_checkpoint",
    "distill_checkpoint",
    "extend",
    "find_blocks",
    "head_mask",
    "heads_config",
    "load_recipe",
    "load_scores",
    "methods",
    "models",
    "prune_heads",
    "rank_heads",
    "resolve_source",
]


if not TYPE_CHECKING:  # a type checker must not take unknown names for Any

    def __getattr__(name: str) -> Any:
        if name in _MODULES:
            return importlib.import_module(f"hf_heads.{name}")
        if name not in _PLACES:
            raise AttributeError(f"module 'hf_heads' has no attribute '{name}'")
        value = globals()[name] = getattr(importlib.import_module(f"hf_heads.{_PLACES[name]}"), name)
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})


register()
