"""The door for those who write a method or an architecture: what they need, from one place.

A method is a spec, an attention class and a `from_dense`, put together in a `Method` and named under the entry point
group `hf_heads.methods`; an architecture is an `AttentionAdapter` under `hf_heads.architectures`, whose name is the
model type; `contract` checks it on a tiny model. CONTRIBUTING.md takes both step by step.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hf_heads.attention.hosts.blocks import Block, find_blocks
    from hf_heads.attention.hosts.reading import read_output, read_value_output
    from hf_heads.attention.hosts.sites import AttentionAdapter, AttentionSite
    from hf_heads.attention.kernels import Conditions, attend
    from hf_heads.attention.module import HeadsAttention
    from hf_heads.attention.spec import BlockProfile, HeadsSpec, RankHeads, option
    from hf_heads.core.dense import AttentionShape, Biases, DenseAttention, merge_heads, split_heads
    from hf_heads.core.errors import HeadsError
    from hf_heads.core.statistics import BlockStatistics, Moments
    from hf_heads.jobs.contract import Twin, contract
    from hf_heads.methods.base import Converted, Method

_PLACES = {
    "AttentionAdapter": "attention.hosts.sites",
    "AttentionShape": "core.dense",
    "AttentionSite": "attention.hosts.sites",
    "Biases": "core.dense",
    "Block": "attention.hosts.blocks",
    "BlockProfile": "attention.spec",
    "BlockStatistics": "core.statistics",
    "Conditions": "attention.kernels",
    "Converted": "methods.base",
    "DenseAttention": "core.dense",
    "HeadsAttention": "attention.module",
    "HeadsError": "core.errors",
    "HeadsSpec": "attention.spec",
    "Method": "methods.base",
    "Moments": "core.statistics",
    "RankHeads": "attention.spec",
    "Twin": "jobs.contract",
    "attend": "attention.kernels",
    "contract": "jobs.contract",
    "find_blocks": "attention.hosts.blocks",
    "merge_heads": "core.dense",
    "option": "attention.spec",
    "read_output": "attention.hosts.reading",
    "read_value_output": "attention.hosts.reading",
    "split_heads": "core.dense",
}

__all__ = [
    "AttentionAdapter",
    "AttentionShape",
    "AttentionSite",
    "Biases",
    "Block",
    "BlockProfile",
    "BlockStatistics",
    "Conditions",
    "Converted",
    "DenseAttention",
    "HeadsAttention",
    "HeadsError",
    "HeadsSpec",
    "Method",
    "Moments",
    "RankHeads",
    "Twin",
    "attend",
    "contract",
    "find_blocks",
    "merge_heads",
    "option",
    "read_output",
    "read_value_output",
    "split_heads",
]

if not TYPE_CHECKING:  # a type checker must not take unknown names for Any

    def __getattr__(name: str) -> Any:
        if name not in _PLACES:
            raise AttributeError(f"module 'hf_heads.extend' has no attribute '{name}'")
        return getattr(importlib.import_module(f"hf_heads.{_PLACES[name]}"), name)
