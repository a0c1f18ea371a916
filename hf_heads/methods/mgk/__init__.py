"""Mixture of Gaussian keys: several keys per position and head, in log space (arXiv 2110.08678)."""

from __future__ import annotations

from hf_heads.methods.base import Method
from hf_heads.methods.mgk.attention import MgkAttention
from hf_heads.methods.mgk.conversion import from_dense
from hf_heads.methods.settings.mgk import MgkSpec

METHOD = Method(
    MgkSpec,
    MgkAttention,
    from_dense,
    "several Gaussian keys for every position and head; merges heads into one",
    "Nguyen et al. 2022, arXiv 2110.08678",
)
