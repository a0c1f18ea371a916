"""The forward of a mixture of Gaussian keys (arXiv 2110.08678)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn
from transformers import initialization as init

from hf_heads.attention.kernels import Conditions
from hf_heads.attention.mixture import centred, hard_attention, linear_attention, mixture_attention
from hf_heads.attention.module import HeadsAttention
from hf_heads.core.dense import AttentionShape, DenseAttention
from hf_heads.core.errors import HeadsError

if TYPE_CHECKING:
    from hf_heads.methods.settings.mgk import ResolvedMgk


class MgkAttention(HeadsAttention):
    """Softmax attention over all components of all positions; what is cached is one entry for a position."""

    replaces: ClassVar[tuple[str, ...]] = ("query", "key", "value")
    spec: ResolvedMgk
    shifts: Tensor
    running_prior: Tensor
    _prior_used: Tensor | None = None  # by the last forward in training, before it moved the running ones

    @property
    def shared(self) -> tuple[str, ...]:
        sides = {"component_query": self.spec.queries, "component_value": self.spec.values}
        return tuple(name for name, which in sides.items() if self.spec.merge > 1 and which == "shared")

    def build(self, shape: AttentionShape) -> None:
        spec, heads = self.spec, shape.heads
        keys = spec.components if spec.mixture == "mgk" else 1
        biases, queries = shape.biases, heads * spec.query_count
        key_bias = biases.key or spec.merge > 1  # by which merged heads are balanced
        self.component_query = nn.Linear(shape.query_width, queries * shape.head_dim, bias=biases.query)
        self.component_key = nn.Linear(shape.key_width, heads * keys * shape.head_dim, bias=key_bias)
        self.component_value = nn.Linear(shape.key_width, heads * shape.value_dim, bias=biases.value)
        if spec.mixture == "smgk":
            self.shifts = nn.Parameter(torch.empty(heads, spec.components, shape.head_dim))
        if spec.priors == "learned":
            self.prior_logits = nn.Parameter(torch.empty(heads, spec.components))
        elif spec.priors == "em":
            self.register_buffer("running_prior", torch.full((heads, spec.components), 1 / spec.components))
        if spec.kernel == "softmax":
            self.log_precision = nn.Parameter(torch.empty(heads))  # log of sqrt(head_dim) / sigma^2
            self.norm_coefficient = nn.Parameter(torch.empty(heads))  # beta

    def init_weights(self) -> None:
        spec = self.spec
        if spec.mixture == "smgk":
            init.normal_(self.shifts, mean=0.0, std=1.0)
        if spec.priors == "learned":
            init.zeros_(self.prior_logits)
        elif spec.priors == "em":
            init.constant_(self.running_prior, 1 / spec.components)
        if spec.kernel == "softmax":
            init.zeros_(self.log_precision)
            init.ones_(self.norm_coefficient)

    def log_priors(self, device: torch.device | None = None) -> Tensor:
        """log pi, (heads, components) in float32; `device` is for those that are no tensors of the module."""
        if self.spec.priors == "learned":
            return self.prior_logits.float().log_softmax(-1)
        if self.spec.priors == "em":
            used = self._prior_used if _recomputing() and self._prior_used is not None else self.running_prior
            return used.float().clamp_min(1e-6).log()
        equal = -math.log(self.spec.components)
        return torch.full((self.shape.heads, self.spec.components), equal, device=device)

    def project_query(self, hidden_states: Tensor) -> Tensor:
        return self.component_query(hidden_states).unflatten(-1, (self.shape.heads, -1)).transpose(1, 2)

    def project_memory(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        heads = self.shape.heads
        key = self.component_key(memory).unflatten(-1, (heads, -1)).transpose(1, 2)
        return key, self.component_value(memory).unflatten(-1, (heads, -1)).transpose(1, 2)

    def components_of(self, key: Tensor) -> Tensor:
        """Cached keys as keys of components, (batch, heads, components, source, head_dim)."""
        if self.spec.mixture == "mgk":
            return key.unflatten(-1, (self.spec.components, -1)).transpose(2, 3)
        return key[:, :, None] + self.shifts[:, :, None]

    def core(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        bias: Tensor | None,
        conditions: Conditions,
    ) -> tuple[Tensor, Tensor | None]:
        spec = self.spec
        key = self.components_of(key)
        query = query.unflatten(-1, (spec.query_count, -1)).transpose(2, 3)  # (batch, heads, 1 or components, ...)
        priors = self.log_priors(query.device)
        if spec.kernel == "linear":
            return linear_attention(query, key, value, priors, conditions)
        precision = self.log_precision.float().exp() * self.scaling
        if spec.query_count == 1:
            query, key = centred(query, key, self.norm_coefficient)
        norms = (
            key.to(torch.promote_types(key.dtype, torch.float32)).square().sum(-1)
        )  # (batch, heads, components, source)
        coefficient = (0.5 * precision * self.norm_coefficient.float())[:, None, None]
        additive = priors[:, :, None] - coefficient * norms
        query = query * (precision / self.scaling).to(query.dtype)[:, None, None, None]
        if spec.assignment == "hard":
            return hard_attention(query, key, value, self.scaling, additive, conditions)
        watch = self._watch if spec.priors == "em" and self.training else None
        return mixture_attention(query, key, value, self.scaling, additive, conditions, watch)

    def _watch(self, weights: Tensor) -> None:
        """Move the priors towards the components' shares in weights (batch, heads, target, components, source)."""
        if _recomputing():
            return
        with torch.no_grad():
            shares = weights.float().sum(-1).mean((0, 2))
            moved = self.running_prior.lerp((shares / shares.sum(-1, keepdim=True)).to(self.running_prior), 0.1)
        # A new tensor: a compiled backward pass, too, may compute once more what this forward made of the old one.
        self._prior_used, self.running_prior = self.running_prior, moved

    def to_dense(self, output: nn.Linear) -> DenseAttention:
        raise HeadsError("a mixture of Gaussian keys is no standard attention: convert the original instead")


def _recomputing() -> bool:
    """Whether a backward pass runs this forward again (gradient checkpointing): it must repeat what the first one did.

    Compilers know about checkpointing themselves, and cannot trace the question.
    """
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1
