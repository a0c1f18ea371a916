"""Mixture of Gaussian keys: several keys per position and head, in log space (arXiv 2110.08678)."""

from __future__ import annotations

from hf_heads.methods.attention.mgk import MgkAttention
from hf_heads.methods.mgk.conversion import from_dense
from hf_heads.methods.settings.mgk import ABOUT, MgkSpec

METHOD = ABOUT.method(MgkAttention, from_dense)
__all__ = ["METHOD", "MgkSpec"]
