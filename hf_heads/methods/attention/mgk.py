"""The forward of a mixture of Gaussian keys (arXiv 2110.08678)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn
from transformers import initialization as init

from hf_heads.attention.kernels import Conditions
from hf_heads.attention.mixture import centred, hard_attention, linear_attention, mixture_attention, responsibilities
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
            self.prior_logits = nn.Parameter(torch.empty(heads, *spec.prior_shape))
        elif spec.priors == "em":
            self.register_buffer("running_prior", torch.full((heads, *spec.prior_shape), 1 / spec.components))
        if spec.learns_sigma:
            self.log_precision = nn.Parameter(torch.empty(heads))  # log of sqrt(head_dim) / sigma^2
            self.norm_coefficient = nn.Parameter(torch.empty(heads))  # beta

    def init_weights(self) -> None:
        spec = self.spec
        if spec.mixture == "smgk":
            # As the paper's authors start: the first key is the position's own, the others are near it.
            drawn = torch.empty_like(self.shifts).normal_(std=0.5)
            drawn[:, 0] = 0
            init.copy_(self.shifts, drawn)
        if spec.priors == "learned":
            init.zeros_(self.prior_logits)
        elif spec.priors == "em":
            init.constant_(self.running_prior, 1 / spec.components)
        if spec.learns_sigma:
            init.zeros_(self.log_precision)
            init.ones_(self.norm_coefficient)

    def log_priors(self, like: Tensor, source: int) -> Tensor:
        """log pi, (heads, components, source or 1) in float32 at least.

        Args:
            like: of the device and type of the scores.
            source: number of keys.
        """
        spec = self.spec
        if spec.priors == "learned":
            found = _wide(self.prior_logits).log_softmax(1)
        elif spec.priors == "em":
            used = self._prior_used if _recomputing() and self._prior_used is not None else self.running_prior
            found = _wide(used).clamp_min(1e-6).log()
        else:
            found = _wide(like.new_full((self.shape.heads, spec.components), -math.log(spec.components)))
        if spec.positions is None:
            return found[..., None]
        if source > spec.positions:
            raise HeadsError(f"there are priors for {spec.positions} positions, not for {source}: give shorter inputs")
        return found[..., :source]

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
        priors = self.log_priors(query, key.shape[-2])
        if spec.kernel == "linear":
            return linear_attention(query, key, value, priors, conditions)
        precision, beta = self._kernel(query)
        if spec.query_count == 1:
            query, key = centred(query, key, beta)
        norms = _wide(key).square().sum(-1)  # (batch, heads, components, source)
        additive = priors - (0.5 * precision * beta)[:, None, None] * norms
        query = query * (precision / self.scaling).to(query.dtype)[:, None, None, None]
        if spec.assignment == "hard":
            return hard_attention(query, key, value, self.scaling, additive, conditions)
        if spec.priors == "em" and self.training and not _recomputing():
            self._move_priors(query, key, additive, conditions)
        return mixture_attention(query, key, value, self.scaling, additive, conditions)

    def _kernel(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """1 / sigma^2 and beta, (heads,) each, in float32 at least."""
        if self.spec.learns_sigma:
            return _wide(self.log_precision).exp() * self.scaling, _wide(self.norm_coefficient)
        ones = _wide(like.new_ones(self.shape.heads))
        return ones * self.shape.head_dim**-0.5, ones

    @torch.no_grad()
    def _move_priors(self, query: Tensor, key: Tensor, additive: Tensor, conditions: Conditions) -> None:
        """pi_jr = N_jr / N (eq. 11), N_jr the queries that component r of position j answers for, N all that see j.

        One prior for all positions is the same with sums over j.
        """
        own = self.kind != "cross"
        answered, seen = responsibilities(query, key, self.scaling, additive, conditions, own)
        seen = seen[:, None].expand(len(answered), 1, -1)
        if self.spec.positions is None:
            answered, seen = answered.sum(-1), seen.sum(-1)
        moved = torch.where(seen > 0, answered / seen.clamp_min(1), 0).to(self.running_prior)
        before = self.running_prior
        if self.spec.positions is not None:
            before = before[..., : moved.shape[-1]]
        moved = torch.where(seen > 0, moved, before)
        if self.spec.positions is not None:
            moved = torch.cat([moved, self.running_prior[..., moved.shape[-1] :]], -1)
        # A new tensor: a compiled backward pass, too, may compute once more what this forward made of the old one.
        self._prior_used, self.running_prior = self.running_prior, moved

    def to_dense(self, output: nn.Linear) -> DenseAttention:
        raise HeadsError("a mixture of Gaussian keys is no standard attention: convert the original instead")


def _recomputing() -> bool:
    """Whether a backward pass runs this forward again (gradient checkpointing): it must repeat what the first one did.

    Compilers know about checkpointing themselves, and cannot trace the question.
    """
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def _wide(tensor: Tensor) -> Tensor:
    """The same in float32, or float64 where it is."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
