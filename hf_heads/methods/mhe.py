"""Head embeddings: heads share one head's projections and are told apart by embeddings (arXiv 2310.07911)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import cached_property, partial

import torch
from torch import Tensor

from hf_heads.core.decompositions import cp, shared_basis
from hf_heads.core.dense import DenseAttention, merge_heads
from hf_heads.core.errors import HeadsError
from hf_heads.core.gauge import INERTIA, balance, reach, rms
from hf_heads.core.grouping import balanced_groups, captured_energy
from hf_heads.core.narrow_values import ValueMaps, square_root
from hf_heads.core.shared_keys import KeyPlanes
from hf_heads.core.statistics import BlockStatistics
from hf_heads.core.whitening import score_factors
from hf_heads.methods.attention.mhe import MheAttention
from hf_heads.methods.base import Converted
from hf_heads.methods.settings.mhe import ABOUT, MheSpec, ResolvedMhe


class _Whitened:
    """A block's scores and values as the data sees them, head by head, in float64.

    Attributes:
        query, key: factors of the scores of [x, 1] against y, (heads, query_width + 1, head_dim + 1) and (heads,
            key_width, head_dim + 1); queries are weighted by how much their head's attention moves the output. Of x
            alone, where the block has no biases.
        query_inverse: (query_width + 1, rows of query), what undoes their whitening.
        mean_row: (rows of query,), which combination of rows the mean query is.
        value: factors with the energy of the value-output maps, (heads, key_width, value_dim).
    """

    def __init__(self, dense: DenseAttention, statistics: BlockStatistics) -> None:
        self.dense, self.statistics = dense.double(), statistics
        self.width = dense.value.shape[2]
        query, self.key, self.query_inverse, self.key_inverse, self.mean_row = score_factors(dense, statistics)
        # Without a bias of the output, the mean token is as much to be kept as all else.
        self.centred = dense.biases.output
        self.key_root, self.value_inverse = statistics.key.square_root(centred=self.centred)
        weights = statistics.head_weights
        self.weights = query.new_ones(len(query)) if weights is None else weights
        self.query = query * self.weights[:, None, None]
        maps = self.dense.output.cpu() @ self.dense.output.cpu().mT
        self.value = self.key_root @ self.dense.value.cpu() @ square_root(maps)

    @cached_property
    def score_sides(self) -> tuple[Tensor, Tensor]:
        """The scores as seen from queries and from keys, (heads, width, head_dim + 1), each of energy 1."""
        sides = ((self.query, self.key), (self.key, self.query))
        query, key = (one @ square_root(other.mT @ other) for one, other in sides)
        return query / query.norm(), key / key.norm()

    def score_energy(self, group: Sequence[int]) -> float:
        """The share of the scores that common directions of one head's width can capture on either side."""
        sides = self.score_sides
        return sum(captured_energy(side[list(group)], self.width) for side in sides) / len(sides)

    def value_energy(self, group: Sequence[int]) -> float:
        """The share of the value-output maps that common directions of one head's width can capture."""
        return captured_energy(self.value[list(group)], self.width) / float(self.value.square().sum())


def group_heads(whitened: _Whitened, groups_qk: int, groups_v: int) -> list[int]:
    """An order of the heads in which those that share projections are neighbours, on both sides."""
    sides = ((groups_qk, whitened.score_energy), (groups_v, whitened.value_energy))
    return _grouped(sides, [[head] for head in range(len(whitened.query))])


def _grouped(sides: Sequence[tuple[int, Callable[[Sequence[int]], float]]], items: list[list[int]]) -> list[int]:
    """The order of `group_heads`: by numbers of groups and what a group can keep, of heads that stay together."""
    groups_qk, groups_v = (groups for groups, _ in sides)
    for count in sorted({groups_qk, groups_v}, reverse=True):
        measures = [energy for groups, energy in sides if groups == count]
        items = balanced_groups(items, count, partial(_total, measures))
    return [head for group in items for head in group]


def _total(measures: Sequence[Callable[[Sequence[int]], float]], group: Sequence[int]) -> float:
    return sum(measure(group) for measure in measures)


def from_dense(dense: DenseAttention, statistics: BlockStatistics, spec: ResolvedMhe) -> Converted:
    """Shared projections and embeddings of a block.

    Queries and keys of a group are a CP decomposition of rank head_dim of its heads' scores, biases included (mul), or
    the best bilinear form that all of them can share (add), or the best key for queries of each head's own. Values of a
    group are projected to the directions that its heads' value-output maps read most from the data; the output
    projection is then the best for them.

    Raises:
        HeadsError: queries are shared otherwise than keys, or by heads that nothing would tell apart.
    """
    if spec.memory is not None:
        raise HeadsError(f"memory {spec.memory} is for training from scratch: leave it out of a conversion")
    own = spec.query_groups == spec.heads
    if not own and (spec.query_groups != spec.groups_qk or not spec.has_embeddings):
        said = f"with {spec.groups_qk} of keys" if spec.has_embeddings else "without embeddings"
        raise HeadsError(
            f"{spec.query_groups} groups of queries {said} are for training from scratch: a conversion takes as many "
            f"as heads, groups_q {spec.heads}, or embeddings and as many as of keys"
        )
    if own and (spec.groups_qk < spec.heads or not spec.has_embeddings):
        return _with_own_queries(dense, statistics, spec)
    whitened = _Whitened(dense, statistics)
    order = group_heads(whitened, spec.groups_qk, spec.groups_v)
    share = _multiplied_scores if spec.variant == "mul" else _added_scores
    queries, keys, embeddings, score_errors = zip(
        *(share(whitened, part) for part in _parts(order, spec.groups_qk)), strict=True
    )
    values, outputs, value_errors = zip(
        *(_shared_values(whitened, part) for part in _parts(order, spec.groups_v)), strict=True
    )
    value, output = torch.cat(values, -1), torch.cat(outputs)  # (key_width, groups * d), (heads, d, output_width)
    # Rows of attention sum to one, so that the mean token's error is a constant of the output.
    mean = statistics.key.mean
    full = torch.einsum("d,hde->he", mean, whitened.dense.value.cpu()) + whitened.dense.value_bias.cpu()
    lost = torch.einsum("he,hed->d", full, whitened.dense.output.cpu())
    kept = (mean @ value).view(spec.groups_v, -1).repeat_interleave(len(order) // spec.groups_v, 0)
    output_bias = whitened.dense.output_bias.cpu()
    if whitened.centred:
        output_bias = output_bias + lost - torch.einsum("he,hed->d", kept, output)
    query, key = torch.cat(queries, -1), torch.cat(keys, -1)  # (query_width + 1, groups * d), (key_width, groups * d)
    query, key, embedding = _balanced(dense, statistics, spec, query, key, torch.cat(embeddings))
    nothing = torch.zeros(len(order), whitened.width, dtype=torch.float64)
    weights = {
        "shared_query.weight": query[:-1].T,
        "shared_query.bias": query[-1],
        "shared_key.weight": key.T,
        "shared_key.bias": torch.zeros(spec.groups_qk * whitened.width, dtype=torch.float64),
        "shared_value.weight": value.T,
        "shared_value.bias": torch.zeros(spec.groups_v * whitened.width, dtype=torch.float64),
        "query_embedding": embedding,
        "key_embedding": nothing,
        "value_embedding": nothing,
        "output.weight": output.flatten(0, 1).T,
        "output.bias": output_bias,
    }
    weights, inertia = _heavier(weights, spec)
    squares = (sum(one**2 for one in errors) / len(errors) for errors in (score_errors, value_errors))
    error = (sum(squares) / 2) ** 0.5
    decided = dataclasses.replace(spec, order=tuple(order), inertia=inertia)
    return Converted(weights, error, decided)


def _heavier(weights: dict[str, Tensor], spec: ResolvedMhe) -> tuple[dict[str, Tensor], int]:
    """What heads share, stored so many times larger than it acts."""
    inertia = spec.inertia or INERTIA
    sides = {"query": spec.query_groups, "key": spec.groups_qk, "value": spec.groups_v}
    shared = [one for side, n in sides.items() if n < spec.heads for one in (f"shared_{side}.", f"{side}_embedding")]
    return {name: one * inertia if name.startswith((*shared,)) else one for name, one in weights.items()}, inertia


def _with_own_queries(dense: DenseAttention, statistics: BlockStatistics, spec: ResolvedMhe) -> Converted:
    """Fewer key and value heads: one key for the heads of a group, and values of the directions that they read most.

    Embeddings start at zero: heads need none.
    """
    keys, values = KeyPlanes(dense, statistics), ValueMaps(dense, statistics)
    whole = float(values.factors.square().sum())

    def value_energy(group: Sequence[int]) -> float:
        return captured_energy(values.factors[list(group)], dense.value.shape[2]) / max(whole, 1e-300)

    sides = ((spec.groups_qk, keys.energy), (spec.groups_v, value_energy))
    order = _grouped(sides, _together(dense, max(spec.groups_qk, spec.groups_v)))
    shared = [keys.shared(part) for part in _parts(order, spec.groups_qk)]
    narrow = values.narrowed(_parts(order, spec.groups_v), dense.value.shape[2])
    queries = [torch.cat([one.query, one.query_bias[:, None]], 1) for one in shared]
    query = torch.cat(queries).transpose(0, 1).flatten(1)  # (query_width + 1, heads * d)
    key, nothing = torch.cat([one.key for one in shared], -1), query.new_zeros(spec.heads, dense.value.shape[2])
    if not dense.turned:
        query, key, _ = _balanced(dense, statistics, spec, query, key, query.new_zeros(spec.heads, 1))
    weights = {
        "shared_query.weight": query[:-1].T,
        "shared_query.bias": query[-1],
        "shared_key.weight": key.T,
        "shared_key.bias": torch.cat([one.key_bias for one in shared]),
        "shared_value.weight": merge_heads(narrow.value),
        "shared_value.bias": narrow.value_bias.flatten(),
        "output.weight": narrow.output.flatten(0, 1).T,
        "output.bias": narrow.output_bias,
    }
    lost = sum(one.lost for one in shared) / sum(one.energy for one in shared)
    error = ((lost + narrow.error**2) / 2) ** 0.5
    decided = dataclasses.replace(spec, order=tuple(order))
    if not spec.has_embeddings:
        return Converted(weights, error, decided)
    weights |= dict.fromkeys(("query_embedding", "key_embedding", "value_embedding"), nothing)
    weights, inertia = _heavier(weights, spec)
    return Converted(weights, error, dataclasses.replace(decided, inertia=inertia))


def _together(dense: DenseAttention, groups: int) -> list[list[int]]:
    """Heads that are grouped as one: those that read one key and value head, where groups can be made of such."""
    heads = range(len(dense.query))
    if dense.shared is not None:
        read = [[head for head in heads if dense.shared[head] == one] for one in sorted(set(dense.shared))]
        if len(read) % groups == 0 and len({len(one) for one in read}) == 1:
            return read
    return [[head] for head in heads]


def _balanced(
    dense: DenseAttention, statistics: BlockStatistics, spec: ResolvedMhe, query: Tensor, key: Tensor, embedding: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and query embeddings at the scale at which steps of training go equally far on both sides."""
    shared, spread = (
        one.T.unflatten(0, (groups, -1)).mT.repeat_interleave(spec.heads // groups, 0)
        for one, groups in ((query, spec.query_groups), (key, spec.groups_qk))
    )
    weight, bias, sizes = shared[:, :-1], shared[:, -1], rms(spread, statistics.key)
    if spec.variant == "mul":
        own = 1 + embedding
        weight, bias, sizes = weight * own[:, None], bias * own, sizes * own.abs()
    else:
        bias = bias + embedding
    by_key = rms(weight, statistics.query, bias).sum(-1).mean()
    c = balance(sizes.sum(-1).mean(), by_key, reach(dense, statistics))
    return query * c, key / c, embedding if spec.variant == "mul" else embedding * c


def _parts(order: Sequence[int], groups: int) -> list[list[int]]:
    size = len(order) // groups
    return [list(order[begin : begin + size]) for begin in range(0, len(order), size)]


def _multiplied_scores(whitened: _Whitened, part: Sequence[int]) -> tuple[Tensor, Tensor, Tensor, float]:
    """Query (query_width + 1, d) with its bias as last row, key (key_width, d), query embeddings (heads, d), error."""
    heads, width, scale = list(part), whitened.width, whitened.dense.scale
    factors = cp(whitened.query[heads], whitened.key[heads], width)
    mixing = factors.core / whitened.weights[heads][:, None]
    size = mixing.square().mean(0).sqrt().clamp_min(1e-150) * torch.where(mixing.sum(0) < 0, -1.0, 1.0)
    query = whitened.query_inverse @ factors.query * size / scale
    key = whitened.key_inverse @ factors.key
    query, key, mixing = (_widened(one, width) for one in (query, key, mixing / size))
    return query, key, mixing - 1, factors.error


def _added_scores(whitened: _Whitened, part: Sequence[int]) -> tuple[Tensor, Tensor, Tensor, float]:
    """The same for embeddings that are added: one bilinear form for all heads, and for each what it wants of keys."""
    heads, width, scale = list(part), whitened.width, whitened.dense.scale
    squares = whitened.weights[heads].square()
    # Queries are weighted once already; the mean form that fits best weighs every head by its squared weight.
    mean = torch.einsum("hde,hfe,h->df", whitened.query[heads], whitened.key[heads], whitened.weights[heads])
    left, values, right = torch.linalg.svd(mean / squares.sum(), full_matrices=False)
    roots = values[:width].sqrt()
    shared, spread = left[:, :width] * roots, right[:width].T * roots
    scores = whitened.query[heads] @ whitened.key[heads].mT / whitened.weights[heads][:, None, None]
    apart = scores - shared @ spread.T
    # What each head wants of keys beyond the common form, whatever the query: that of the mean query.
    content = whitened.mean_row @ apart
    embeddings = content @ torch.linalg.pinv(spread).T
    apart = apart - whitened.mean_row[:, None] * (embeddings @ spread.T)[:, None]
    query = whitened.query_inverse @ shared / scale
    key = whitened.key_inverse @ spread
    query, key, embeddings = (_widened(one, width) for one in (query, key, embeddings / scale))
    return query, key, embeddings, float((apart.square().sum() / scores.square().sum().clamp_min(1e-300)).sqrt())


def _shared_values(whitened: _Whitened, part: Sequence[int]) -> tuple[Tensor, Tensor, float]:
    """Value projection (key_width, d), output maps (heads, d, output_width), error."""
    heads = list(part)
    basis, error = shared_basis(whitened.value[heads], whitened.width)
    maps = whitened.key_root @ whitened.dense.value[heads].cpu() @ whitened.dense.output[heads].cpu()
    return whitened.value_inverse @ basis, basis.T @ maps, error


def _widened(matrix: Tensor, width: int) -> Tensor:
    """Zero columns up to a width."""
    return torch.nn.functional.pad(matrix, (0, width - matrix.shape[-1]))


METHOD = ABOUT.method(
    MheAttention, from_dense, ("shared_query.weight", "shared_query.bias", "shared_key.weight", "query_embedding")
)

__all__ = ["METHOD", "MheAttention", "MheSpec", "from_dense", "group_heads"]
