"""Mixture of Gaussian keys: several keys per position and head, in log space (arXiv 2110.08678)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Self

import torch
from torch import Tensor, nn
from transformers import initialization as init

from ..adapters import merge_heads
from ..attention import HeadsAttention
from ..decompositions import shared_basis
from ..dense import AttentionShape, DenseAttention
from ..errors import HeadsError
from ..grouping import balanced_groups
from ..mixture import centred, hard_attention, linear_attention, mixture_attention
from ..moments import BlockStatistics
from .base import Converted, HeadsSpec, Method, option
from .shared_rank import score_factors


@dataclass(frozen=True)
class MgkSpec(HeadsSpec):
    """A mixture of Gaussian keys.

    Position j has M keys k_jr for every head, and query i attends to it by

        a_ij ~ sum_r pi_r exp(s_ijr),   s_ijr = (q_i k_jr - beta |k_jr|^2 / 2) / sigma^2

    which is the paper's exp(-|q_i - k_jr|^2 / 2 sigma^2) at beta = 1, and the host's dot product at beta = 0.

    Attributes:
        components: M, keys for a position and head.
        mixture: mgk (a projection for every component) or smgk (one projection and a shift for every component).
        assignment: soft (the sum over components) or hard (the largest of them).
        priors: pi learned, fixed (equal), or em: running means of the components' shares in the attention.
        kernel: softmax, or linear (features elu + 1 in the place of the exponential).
        merge: turn so many heads into one, each a component of it.
        queries: of merged heads: each its own (exact scores, nothing saved), or one shared (saves a query).
        values: of merged heads: full (all of them side by side) or shared (one head's width).
        shift: size of the differences between components that start equal, as a share of the keys' own size. None is
            0.01 for mgk, which moves the output a little, and 0.5 for smgk, whose shifts drop out of the softmax as
            long as beta is 0.
        norm: beta at the start.
        order: heads of the host by place, where heads were merged.
    """

    method: ClassVar[str] = "mgk"
    components: int = option(2, "keys for every position and head")
    mixture: str = option("mgk", "a projection (mgk) or a shift (smgk) for every key", choices=("mgk", "smgk"))
    assignment: str = option("soft", "sum over a position's keys, or the largest", choices=("soft", "hard"))
    priors: str = option("learned", "of the keys of a position", choices=("learned", "fixed", "em"))
    kernel: str = option("softmax", "exponential, or features that make it linear", choices=("softmax", "linear"))
    merge: int = option(1, "heads that become one, each a key of it")
    queries: str = option("own", "of merged heads: one each, or one for all", choices=("own", "shared"))
    values: str = option("full", "of merged heads: all, or one head's width", choices=("full", "shared"))
    shift: float | None = option(None, "size of what tells keys apart that start equal", stored=False)
    norm: float = option(0.0, "beta at the start: 0 is the host's dot product, 1 the paper's kernel", stored=False)
    order: tuple[int, ...] | None = option(None, "the host's heads by place", command=False)

    def resolve(self, shape: AttentionShape, where: str = "the block", before: HeadsSpec | None = None) -> Self:
        for name, least in (("components", 1), ("merge", 1), ("shift", 0)):
            if (getattr(self, name) or 0) < least:
                raise HeadsError(f"{name} {getattr(self, name)} is too small; {where} takes {least} or more")
        if self.merge == 1:
            if self.queries != "own" or self.values != "full":
                raise HeadsError("queries and values say how heads are merged: give merge as well")
            return dataclasses.replace(self, heads=self.heads or shape.heads)
        if self.heads not in (None, shape.heads // self.merge):
            raise HeadsError(f"merge {self.merge} decides the number of heads itself; leave out heads")
        if shape.heads % self.merge:
            raise HeadsError(f"merge {self.merge} does not divide the {shape.heads} heads of {where}")
        if self.mixture != "mgk" or self.kernel != "softmax":
            raise HeadsError("heads are merged into mgk with the softmax kernel: leave out mixture and kernel")
        if self.components not in (2, self.merge):
            raise HeadsError(f"merge {self.merge} makes {self.merge} components; leave out components")
        return dataclasses.replace(self, heads=shape.heads // self.merge, components=self.merge)

    def reshape(self, shape: AttentionShape) -> AttentionShape:
        widened = self.merge if self.values == "full" else 1
        return dataclasses.replace(shape, heads=self.heads or shape.heads, value_dim=shape.value_dim * widened)

    @property
    def query_count(self) -> int:
        """Queries of a head: one, or one for every component."""
        return self.merge if self.queries == "own" else 1

    def parameters(self, shape: AttentionShape) -> int:
        heads, softmax = shape.heads, self.kernel == "softmax"
        query = heads * self.query_count * shape.head_dim * (shape.query_width + shape.bias)
        keys = self.components if self.mixture == "mgk" else 1
        key = heads * keys * shape.head_dim * (shape.key_width + shape.bias)
        shifts = heads * self.components * shape.head_dim if self.mixture == "smgk" else 0
        priors = heads * self.components if self.priors == "learned" else 0
        return query + key + shifts + priors + 2 * heads * softmax + shape.value_parameters

    def cache_per_token(self, shape: AttentionShape) -> int:
        keys = self.components if self.mixture == "mgk" else 1
        return shape.heads * (keys * shape.head_dim + shape.value_dim)


class MgkAttention(HeadsAttention):
    """Softmax attention over all components of all positions; what is cached is one entry for a position."""

    replaces: ClassVar[tuple[str, ...]] = ("query", "key", "value")
    spec: MgkSpec
    shifts: Tensor
    running_prior: Tensor
    _prior_used: Tensor | None = None  # by the last forward in training, before it moved the running ones

    def build(self, shape: AttentionShape) -> None:
        spec, heads = self.spec, shape.heads
        keys = spec.components if spec.mixture == "mgk" else 1
        self.component_query = nn.Linear(shape.query_width, heads * spec.query_count * shape.head_dim, bias=shape.bias)
        self.component_key = nn.Linear(shape.key_width, heads * keys * shape.head_dim, bias=shape.bias)
        self.component_value = nn.Linear(shape.key_width, heads * shape.value_dim, bias=shape.bias)
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
        mask: Tensor | None,
        causal: bool,
        dropout: float,
    ) -> tuple[Tensor, Tensor | None]:
        spec = self.spec
        key = self.components_of(key)
        query = query.unflatten(-1, (spec.query_count, -1)).transpose(2, 3)  # (batch, heads, 1 or components, ...)
        implementation = self.config._attn_implementation
        priors = self.log_priors(query.device)
        if spec.kernel == "linear":
            return linear_attention(query, key, value, priors, mask, causal, dropout, implementation == "eager")
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
            return hard_attention(query, key, value, self.scaling, additive, mask, causal, dropout, implementation)
        watch = self._watch if spec.priors == "em" and self.training else None
        return mixture_attention(
            query, key, value, self.scaling, additive, mask, causal, dropout, implementation, watch
        )

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


def from_dense(dense: DenseAttention, statistics: BlockStatistics, spec: MgkSpec) -> Converted:
    """The exact start: beta 0, equal priors, components that start as the host's key; or heads merged into one."""
    assert spec.heads is not None
    if spec.heads * spec.merge != dense.shape.heads:
        raise HeadsError(f"{spec.heads} heads cannot be made of {dense.shape.heads}: give merge")
    constants = {"log_precision": torch.zeros(spec.heads), "norm_coefficient": torch.full((spec.heads,), spec.norm)}
    constants = constants if spec.kernel == "softmax" else {}
    if spec.priors == "learned":
        constants["prior_logits"] = torch.zeros(spec.heads, spec.components)
    elif spec.priors == "em":
        constants["running_prior"] = torch.full((spec.heads, spec.components), 1 / spec.components)
    if spec.merge == 1:
        return Converted({**constants, **_unmerged(dense, spec)}, 0.0)
    weights, error, order = _merged(dense, statistics, spec)
    return Converted({**constants, **weights}, error, dataclasses.replace(spec, order=tuple(order)))


def _unmerged(dense: DenseAttention, spec: MgkSpec) -> dict[str, Tensor]:
    """The host's own projections; components differ by small amounts that cancel to first order in the attention."""
    if dense.content_bias.any():
        raise HeadsError("this block's scores have a content bias, which a mixture of keys has no place for")
    weights = {
        "component_query.weight": merge_heads(dense.query),
        "component_query.bias": dense.query_bias.flatten(),
        "component_value.weight": merge_heads(dense.value),
        "component_value.bias": dense.value_bias.flatten(),
        "output.weight": dense.output.flatten(0, 1).T,
        "output.bias": dense.output_bias,
    }
    heads, _, head_dim = dense.key.shape
    default = 0.5 if spec.mixture == "smgk" else 0.01
    offsets = _offsets(spec.components, heads, head_dim) * (default if spec.shift is None else spec.shift)
    if spec.mixture == "smgk":
        size = dense.key.double().square().sum(1).mean().sqrt().cpu()
        weights["component_key.weight"] = merge_heads(dense.key)
        weights["component_key.bias"] = dense.key_bias.flatten()
        weights["shifts"] = offsets.transpose(0, 1) * size
        return weights
    key = dense.key.cpu()[:, None] * (1 + offsets.transpose(0, 1)[:, :, None])  # (heads, components, width, head_dim)
    bias = dense.key_bias.cpu()[:, None] * (1 + offsets.transpose(0, 1))
    weights["component_key.weight"] = merge_heads(key.flatten(0, 1).to(dense.key.dtype))
    weights["component_key.bias"] = bias.flatten()
    return weights


def _offsets(components: int, heads: int, head_dim: int) -> Tensor:
    """Fixed numbers of size about one whose sum over the components is zero, (components, heads, head_dim)."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(components, heads, head_dim, generator=generator, dtype=torch.float64)
    return drawn - drawn.mean(0)


def match_heads(dense: DenseAttention, statistics: BlockStatistics, size: int) -> list[list[int]]:
    """Groups of heads whose attention is most alike on the calibration data; by their scores without any."""
    gram = statistics.attention_gram
    if gram is None:
        query, key, *_ = score_factors(dense, statistics)
        scores = (query @ key.mT).flatten(1)
        gram = torch.nn.functional.normalize(scores, dim=-1)
        gram = gram @ gram.T
    items = [[head] for head in range(dense.shape.heads)]
    return balanced_groups(items, len(items) // size, partial(_likeness, gram))


def _likeness(gram: Tensor, group: Sequence[int]) -> float:
    return float(gram[list(group)][:, list(group)].sum() - gram[list(group), list(group)].sum())


def _merged(
    dense: DenseAttention, statistics: BlockStatistics, spec: MgkSpec
) -> tuple[dict[str, Tensor], float, list[int]]:
    """Merged heads: tensors, the relative error of what had to be shared, the host's heads by place."""
    if dense.content_bias.any():
        raise HeadsError("this block's scores have a content bias, which a mixture of keys has no place for")
    groups = match_heads(dense, statistics, spec.merge)
    order = [head for group in groups for head in group]
    double = dense.double()
    query, query_bias, key, key_bias, value, value_bias, output = (
        getattr(double, name).cpu()[order]
        for name in ("query", "query_bias", "key", "key_bias", "value", "value_bias", "output")
    )
    output_bias, errors = double.output_bias.cpu(), []
    if spec.queries == "shared":
        query, query_bias, key, error = _shared_queries(double, statistics, groups)
        key_bias, priors = torch.zeros_like(key_bias), torch.zeros(len(order))
        errors.append(error)
    else:
        key_bias, priors = _balancing_bias(statistics, order, query, query_bias, key_bias, dense.scale)
    if spec.values == "shared":
        value, output, change, error = _shared_values(double, statistics, groups)
        value_bias, output_bias = torch.zeros(len(groups), value.shape[-1]), output_bias + change
        errors.append(error)
    weights = {
        "component_query.weight": merge_heads(query),
        "component_query.bias": query_bias.flatten(),
        "component_key.weight": merge_heads(key),
        "component_key.bias": key_bias.flatten(),
        "component_value.weight": merge_heads(value),
        "component_value.bias": value_bias.flatten(),
        "output.weight": output.flatten(0, 1).T,
        "output.bias": output_bias,
    }
    priors = priors.view(len(groups), -1)
    if spec.priors == "learned":
        weights["prior_logits"] = priors - priors.mean(1, keepdim=True)
    elif spec.priors == "em":
        weights["running_prior"] = priors.softmax(-1)
    # Even with exact scores the attention of merged heads is a compromise, which the refit is told by this.
    gram = statistics.attention_gram
    if gram is not None:
        apart = sum(float((gram[h, h] + gram[g, g]) / 2 - gram[h, g]) for group in groups for h in group for g in group)
        errors.append((max(apart, 0.0) / spec.merge / max(float(gram.trace()), 1e-300)) ** 0.5)
    squares = torch.tensor(errors or [1.0], dtype=torch.float64).square()
    return weights, float(squares.mean().sqrt()), order


def _balancing_bias(
    statistics: BlockStatistics, order: Sequence[int], query: Tensor, query_bias: Tensor, key_bias: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Key biases and log priors (heads,) that give every head of a group about the same say in the merged attention.

    Softmax's denominators differ from head to head and from query to query. What of their logarithm is linear in the
    query is taken back by the key's bias, which a head of its own would not feel, and its mean by the prior.
    """
    priors = torch.zeros(len(order), dtype=torch.float64)
    if statistics.log_sums is None or statistics.log_sum_cross is None:
        return torch.zeros_like(key_bias), priors
    covariance = statistics.query.covariance
    inner = query.mT @ covariance @ query  # (heads, head_dim, head_dim)
    ridge = 1e-3 * inner.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-12)
    inner = inner + ridge[:, None, None] * torch.eye(inner.shape[-1], dtype=torch.float64)
    wanted = -torch.einsum("hdw,dh->hw", query, statistics.log_sum_cross[:, list(order)])
    bias = torch.linalg.solve(inner, wanted)
    mean = torch.einsum("d,hdw->hw", statistics.query.mean, query) + query_bias
    priors = -statistics.log_sums[list(order)] - (mean * bias).sum(-1)
    return bias / scale, priors


def _shared_queries(
    dense: DenseAttention, statistics: BlockStatistics, groups: Sequence[Sequence[int]]
) -> tuple[Tensor, Tensor, Tensor, float]:
    """One query for the heads of each group, the best for all their scores; biases included.

    Returns:
        Queries (groups, query_width, head_dim), their biases, keys (heads, key_width, head_dim), relative error.
    """
    width = dense.query.shape[2]
    query, key, query_inverse, key_inverse, _ = score_factors(dense, statistics)
    if (weights := statistics.head_weights) is not None:
        query = query * weights[:, None, None]
    queries, keys, lost, norm = [], [], 0.0, 0.0
    for group in groups:
        scores = query[list(group)] @ key[list(group)].mT  # (heads, query_width + 1, key_width)
        left, values, right = torch.linalg.svd(torch.cat(list(scores), -1), full_matrices=False)
        roots = values[:width].sqrt()
        queries.append(query_inverse @ (left[:, :width] * roots) / dense.scale)
        own = (right[:width] * roots[:, None]).unflatten(1, (len(group), -1)).permute(1, 2, 0)
        if weights is not None:
            own = own / weights[list(group)][:, None, None]
        keys.append(key_inverse @ own)
        lost, norm = lost + float(values[width:].square().sum()), norm + float(values.square().sum())
    found = torch.stack(queries)
    return found[:, :-1], found[:, -1], torch.cat(keys), (lost / max(norm, 1e-300)) ** 0.5


def _shared_values(
    dense: DenseAttention, statistics: BlockStatistics, groups: Sequence[Sequence[int]]
) -> tuple[Tensor, Tensor, Tensor, float]:
    """One head's width of values for each group, as for head embeddings.

    Returns:
        Values (groups, key_width, value_dim), output maps (groups, value_dim, output_width), what the output's bias
        gains (output_width,), relative error.
    """
    root, inverse = statistics.key.square_root()
    value, output = dense.value.cpu(), dense.output.cpu()
    values, outputs, squares = [], [], []
    for group in groups:
        # Merged heads have one attention, so that only the sum of their maps counts.
        maps = (root @ value[list(group)] @ output[list(group)]).sum(0)
        basis, error = shared_basis(maps[None], value.shape[2])
        values.append(inverse @ basis)
        outputs.append(basis.T @ maps)
        squares.append(error**2)
    found, new = torch.stack(values), torch.stack(outputs)
    mean = statistics.key.mean
    before = torch.einsum("d,hde,hew->w", mean, value, output) + torch.einsum(
        "he,hew->w", dense.value_bias.cpu(), output
    )
    change = before - torch.einsum("d,hde,hew->w", mean, found, new)
    return found, new, change, (sum(squares) / len(squares)) ** 0.5


METHOD = Method(
    MgkSpec,
    MgkAttention,
    from_dense,
    "several Gaussian keys for every position and head; merges heads into one",
    "Nguyen et al. 2022, arXiv 2110.08678",
)
