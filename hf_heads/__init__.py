"""hf-heads: re-parametrizes the attention heads of pretrained checkpoints and hands them back as ordinary ones.

Importing this package is what lets `AutoModel.from_pretrained` load converted checkpoints.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from hf_heads.core.errors import HeadsError
from hf_heads.core.vocabulary import VERSION
from hf_heads.modeling.registration import register

if TYPE_CHECKING:
    from hf_heads import compat, extend, methods, models
    from hf_heads.attention.hosts.blocks import find_blocks
    from hf_heads.attention.spec import HeadsSpec
    from hf_heads.compat import prune_heads
    from hf_heads.io.checkpoints.sources import resolve_source
    from hf_heads.io.data.choice import CalibrationChoice
    from hf_heads.jobs.conversion.checkpoint import convert_checkpoint
    from hf_heads.jobs.conversion.convert import convert
    from hf_heads.jobs.conversion.planning import heads_config
    from hf_heads.jobs.conversion.recipes import load_recipe
    from hf_heads.jobs.conversion.request import ConversionRequest
    from hf_heads.jobs.distillation.checkpoint import distill_checkpoint
    from hf_heads.jobs.distillation.settings import DistillSettings
    from hf_heads.jobs.distillation.several import distill_checkpoints
    from hf_heads.jobs.distillation.trainer import DistillTrainer
    from hf_heads.jobs.evaluation.choices import Choices
    from hf_heads.jobs.evaluation.compare import compare_checkpoints
    from hf_heads.jobs.finetuning.callback import ConvertCallback
    from hf_heads.jobs.finetuning.dynamics import HeadDynamicsCallback
    from hf_heads.jobs.finetuning.factors import freeze_factors, parameter_groups
    from hf_heads.jobs.recommendation.recommend import recommend
    from hf_heads.jobs.scoring.ablation import ablate
    from hf_heads.jobs.scoring.masks import head_mask
    from hf_heads.jobs.scoring.ranking import rank_heads
    from hf_heads.jobs.scoring.scores import load_scores
    from hf_heads.methods.settings.collab import CollabSpec
    from hf_heads.methods.settings.low_rank import LowRankSpec
    from hf_heads.methods.settings.mgk import MgkSpec
    from hf_heads.methods.settings.mhe import MheSpec
    from hf_heads.methods.settings.pruned import PrunedSpec
    from hf_heads.modeling.attentions import pad_attentions

__version__ = VERSION

# Where a name is found when it is first asked for; what type checkers see stands above, and a test compares the two.
_PLACES = {
    "CalibrationChoice": "io.data.choice",
    "Choices": "jobs.evaluation.choices",
    "CollabSpec": "methods.settings.collab",
    "ConversionRequest": "jobs.conversion.request",
    "ConvertCallback": "jobs.finetuning.callback",
    "DistillSettings": "jobs.distillation.settings",
    "DistillTrainer": "jobs.distillation.trainer",
    "HeadDynamicsCallback": "jobs.finetuning.dynamics",
    "HeadsSpec": "attention.spec",
    "LowRankSpec": "methods.settings.low_rank",
    "MgkSpec": "methods.settings.mgk",
    "MheSpec": "methods.settings.mhe",
    "PrunedSpec": "methods.settings.pruned",
    "ablate": "jobs.scoring.ablation",
    "compare_checkpoints": "jobs.evaluation.compare",
    "convert": "jobs.conversion.convert",
    "convert_checkpoint": "jobs.conversion.checkpoint",
    "distill_checkpoint": "jobs.distillation.checkpoint",
    "distill_checkpoints": "jobs.distillation.several",
    "find_blocks": "attention.hosts.blocks",
    "freeze_factors": "jobs.finetuning.factors",
    "head_mask": "jobs.scoring.masks",
    "heads_config": "jobs.conversion.planning",
    "load_recipe": "jobs.conversion.recipes",
    "load_scores": "jobs.scoring.scores",
    "pad_attentions": "modeling.attentions",
    "parameter_groups": "jobs.finetuning.factors",
    "prune_heads": "compat",
    "rank_heads": "jobs.scoring.ranking",
    "recommend": "jobs.recommendation.recommend",
    "resolve_source": "io.checkpoints.sources",
}
_MODULES = ("compat", "extend", "methods", "models")

__all__ = [
    "CalibrationChoice",
    "Choices",
    "CollabSpec",
    "ConversionRequest",
    "ConvertCallback",
    "DistillSettings",
    "DistillTrainer",
    "HeadDynamicsCallback",
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
    "distill_checkpoints",
    "extend",
    "find_blocks",
    "freeze_factors",
    "head_mask",
    "heads_config",
    "load_recipe",
    "load_scores",
    "methods",
    "models",
    "pad_attentions",
    "parameter_groups",
    "prune_heads",
    "rank_heads",
    "recommend",
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
