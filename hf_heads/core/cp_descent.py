"""The descent behind the CP decomposition of a query-key tensor: alternating least squares, accelerated and squeezed.

|T - sum_r U M V|^2 is lowered as a function of V and M alone, U being always the best one for them, by L-BFGS whose
first guess is an alternating least squares step. Nearly all sweeps run in float32 and on a copy of the tensor squeezed
to 5/4 rank x heads x 5/4 rank, where they cost a fraction.

What is lowered is damped: + damping sum_r |u_r|^2 |v_r|^2 |m_r|^2. Without that, terms grow large and cancel, which
bfloat16 does not survive, and the last of the error goes into what will not be there on other data.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

_SQUEEZE = 1.25  # width of the squeezed tensor in ranks
_OUTSIDE = 5  # sweeps on the tensor itself after those on a squeezed one
_TRIED = 20  # sweeps from either start before the better one goes on
_PRECISE = 1e-4  # a start with a smaller share of the squared norm lost is not for float32


class _Products(NamedTuple):
    """What the best U and the gradient both need.

    Attributes:
        key_side: K^T V, (heads * head_dim, rank)
        gram_v: V^T V, (rank, rank)
        gram_u: U^T U, (rank, rank)
    """

    key_side: Tensor
    gram_v: Tensor
    gram_u: Tensor


class CPProblem:
    """(|T - sum_r U V M|^2 + damping sum_r |u_r|^2 |v_r|^2 |m_r|^2) / 2 as a function of V and M, for the best U.

    Both are held in one matrix of (key_width + heads, rank), V above M; columns of A and B of all heads stand side by
    side in matrices of (width, heads * head_dim).

    Args:
        query: A, (heads, query_width, head_dim), in the precision in which all is computed.
        key: B, (heads, key_width, head_dim)
        norm: |T|^2 of the tensor whose error is meant, in float64; A and B may be a part of it.
        damping: the penalty on the terms' sizes; 0 for none.
    """

    def __init__(self, query: Tensor, key: Tensor, norm: Tensor, damping: float = 0.0) -> None:
        self.factors, self.norm, self.damping = (query, key), norm, damping
        self.heads, _, self.head_dim = query.shape
        self.query, self.key = (factor.transpose(0, 1).flatten(1) for factor in (query, key))
        self.query_rows, self.key_rows = self.query.T.contiguous(), self.key.T.contiguous()
        self.ridge = 1e-12 if query.dtype == torch.float64 else 1e-6

    def split(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """V (key_width, rank) and M (heads, rank)."""
        return rows[: -self.heads], rows[-self.heads :]

    def best_query(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The best U (query_width, rank), and the squared error that it reaches, with the penalty."""
        return self._solve(rows)[:2]

    def error(self, u: Tensor, rows: Tensor) -> Tensor:
        """The squared error of any U with V and M, without the penalty."""
        v, mixing = self.split(rows)
        right = self.query @ self._mixed(self.key_rows @ v, mixing)
        gram = (v.T @ v) * (mixing.T @ mixing)
        return self.norm - 2 * (u * right).sum(dtype=torch.float64) + ((u.T @ u) * gram).sum(dtype=torch.float64)

    def _damped(self, gram: Tensor) -> Tensor:
        """G + damping diag(G): the penalty in the normal equations of U, of V and of M."""
        return gram + (self.damping * gram.diagonal()).diag() if self.damping else gram

    def _solve(self, rows: Tensor) -> tuple[Tensor, Tensor, _Products]:
        v, mixing = self.split(rows)
        key_side, gram_v = self.key_rows @ v, v.T @ v
        right = self.query @ self._mixed(key_side, mixing)
        gram = self._damped(gram_v * (mixing.T @ mixing))
        u = right @ self._inverse(gram)
        gram_u = u.T @ u
        fit = 2 * (u * right).sum(dtype=torch.float64) - (gram_u * gram).sum(dtype=torch.float64)
        return u, self.norm - fit, _Products(key_side, gram_v, gram_u)

    def _gradient(self, rows: Tensor, u: Tensor, known: _Products) -> tuple[Tensor, Tensor, Tensor]:
        """Gradient by V and M at their best U, and the inverse Hessians (rank, rank) of any row of V and of M."""
        v, mixing = self.split(rows)
        query_side = self.query_rows @ u
        hessian_v = self._damped(known.gram_u * (mixing.T @ mixing))
        hessian_m = self._damped(known.gram_u * known.gram_v)
        right_v = self.key @ self._mixed(query_side, mixing)
        right_m = (query_side * known.key_side).unflatten(0, (self.heads, self.head_dim)).sum(1)
        gradient = torch.cat([v @ hessian_v - right_v, mixing @ hessian_m - right_m])
        return gradient, self._inverse(hessian_v), self._inverse(hessian_m)

    def _mixed(self, side: Tensor, mixing: Tensor) -> Tensor:
        """Every head's rows of (heads * head_dim, rank) times its mixing."""
        return (side.unflatten(0, (self.heads, self.head_dim)) * mixing[:, None]).flatten(0, 1)

    def _inverse(self, gram: Tensor) -> Tensor:
        """Inverse of a positive semi-definite gram, slightly regularised; NaN, not an exception, where that fails.

        One product with an inverse is several times faster than a triangular solve; what it loses in accuracy does no
        harm, since the error is always computed for the factors as they came out.
        """
        diagonal = gram.diagonal()
        ridge = self.ridge * diagonal.clamp_min(1e-6 * float(diagonal.max()))
        return torch.cholesky_inverse(torch.linalg.cholesky_ex(gram + ridge.diag())[0])

    def lowest(self, several: Sequence[Tensor]) -> Tensor:
        """Those V and M that reach the lowest error."""
        return several[int(torch.stack([self.best_query(rows)[1] for rows in several]).argmin())]

    def descend(self, rows: Tensor, sweeps: int, tolerance: float, memory: int = 10) -> Tensor:
        """Lower the error by L-BFGS, which takes an alternating least squares step as its first guess; never raises it.

        Directions do not depend on how columns are scaled, because the guess follows every rescaling.
        """

        def guess(gradient: Tensor) -> Tensor:
            v, mixing = self.split(gradient)
            return torch.cat([v @ inverse_v, mixing @ inverse_m])

        u, error, known = self._solve(rows)
        gradient, inverse_v, inverse_m = self._gradient(rows, u, known)
        pairs: list[tuple[Tensor, Tensor, Tensor]] = []  # steps, changes of the gradient, their products
        errors = [error]
        for _ in range(sweeps):
            direction, shares = gradient, []
            for step, change, product in reversed(pairs):
                shares.append((step * direction).sum() / product)
                direction = direction - shares[-1] * change
            if pairs:
                direction = direction * (pairs[-1][2] / (pairs[-1][1] * guess(pairs[-1][1])).sum())
            direction = guess(direction)
            for (step, change, product), share in zip(pairs, reversed(shares), strict=True):
                direction = direction + (share - (change * direction).sum() / product) * step
            slope = (direction * gradient).sum()
            for length in (1.0, 0.5, 0.25, 0.125, 0.03, 0.01):
                new_rows = rows - length * direction
                new_u, new_error, known = self._solve(new_rows)
                if slope > 0 and new_error < error - 2e-4 * length * slope:
                    break
            else:
                if not pairs:
                    break
                pairs = []  # once more from here, by a plain step
                continue
            new_gradient, inverse_v, inverse_m = self._gradient(new_rows, new_u, known)
            step, change = new_rows - rows, new_gradient - gradient
            product = (step * change).sum()
            if product > 0:
                pairs = [*pairs[1 - memory :], (step, change, product)]
            rows, gradient, error = new_rows, new_gradient, new_error
            errors.append(error)
            # Single sweeps gain unevenly, so that ten are judged together.
            if error <= 1e-14 * self.norm or (len(errors) > 10 and errors[-11] - error < 10 * tolerance * error):
                break
        return rows


def lower(problem: CPProblem, rows: Tensor, sweeps: int, tolerance: float) -> Tensor:
    """V and M with a lower error, in float64; the last sweeps are on the tensor itself and in float64.

    It is squeezed first to the leading directions of either side, which makes a good start even where it loses much,
    then around what was found, which loses nothing of it. Where heads share little, `rows` is the better start, where
    they share much, those directions with a mixing that prefers no head: some sweeps tell.

    Args:
        problem: of the tensor itself, in float64.
        rows: V and M to start from.
        sweeps: at most so many in a row.
        tolerance: see `hf_heads.core.decompositions.cp`.
    """
    # At norm 1 float32 neither overflows nor loses small numbers.
    scale = problem.norm.clamp_min(1e-300).sqrt()
    query, key = problem.factors
    error = problem.best_query(rows)[1]
    dtype = torch.float32 if error > _PRECISE * problem.norm else torch.float64
    size = query.norm() / key.norm().clamp_min(1e-300)
    query, key = query / (scale * size).sqrt(), key * (size / scale).sqrt()
    whole = CPProblem(query.to(dtype), key.to(dtype), problem.norm / scale**2, problem.damping)
    v, mixing = problem.split(rows)
    start = torch.cat([v / v.norm(dim=0).clamp_min(1e-150), mixing]).to(dtype)
    rank = rows.shape[1]
    width = math.ceil(_SQUEEZE * rank)
    squeezes = width < max(query.shape[1], key.shape[1])
    basis_u, basis_v = (leading_directions(*side, max(width, rank)) for side in _sides(*whole.factors))
    starts = [start, torch.cat([basis_v[:, :rank], _any_mixing(whole.heads, rank).to(dtype)])]
    tried = min(sweeps, _TRIED)
    if not squeezes:
        start = whole.lowest([start, *(whole.descend(one, tried, tolerance) for one in starts)])
    else:
        found = whole.lowest([_squeezed(whole, one, basis_u, basis_v, tried, tolerance) for one in starts])
        start = whole.lowest([start, _squeezed(whole, found, basis_u, basis_v, sweeps - tried, tolerance)])
        start = _squeezed_again(whole, start, width, sweeps, tolerance)
        sweeps = min(sweeps, 2 * _OUTSIDE)
    start = whole.descend(start, sweeps, tolerance)
    if dtype == torch.float64:
        return start
    return CPProblem(query, key, whole.norm, whole.damping).descend(start.double(), min(sweeps, _OUTSIDE), tolerance)


def _squeezed_again(whole: CPProblem, rows: Tensor, width: int, sweeps: int, tolerance: float) -> Tensor:
    """V and M after sweeps on the tensor itself, and then on what it is squeezed to around them."""
    rows = whole.descend(rows, min(sweeps, _OUTSIDE), 0.0)
    return _squeezed(whole, rows, *_around(whole, rows, width), sweeps // 3, tolerance)


def _any_mixing(heads: int, rank: int) -> Tensor:
    """A mixing that prefers no head for any column, always the same one, (heads, rank)."""
    return torch.randn(heads, rank, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def _sides(query: Tensor, key: Tensor) -> list[tuple[Tensor, Tensor]]:
    """What `leading_directions` takes for either side."""
    return [(query, key.mT @ key), (key, query.mT @ query)]


def _squeezed(
    whole: CPProblem, rows: Tensor, basis_u: Tensor, basis_v: Tensor, sweeps: int, tolerance: float
) -> Tensor:
    """V and M after sweeps within the span of two orthonormal bases, (width, any) each."""
    query, key = whole.factors
    small = CPProblem(basis_u.T @ query, basis_v.T @ key, whole.norm, whole.damping)
    v, mixing = whole.split(rows)
    v, mixing = small.split(small.descend(torch.cat([basis_v.T @ v, mixing]), sweeps, tolerance))
    return torch.cat([basis_v @ v, mixing])


def _around(whole: CPProblem, rows: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Bases that span U and V, and then the directions of either side that the other side's basis leads to."""
    query, key = whole.factors
    spans = torch.linalg.qr(whole.best_query(rows)[0])[0], torch.linalg.qr(whole.split(rows)[0])[0]
    found = []
    for factor, other, span, opposite in ((query, key, *spans), (key, query, *reversed(spans))):
        side = other.mT @ opposite
        outside = factor - span @ (span.T @ factor)
        more = leading_directions(outside, side @ side.mT, max(width - span.shape[1], 0))
        found.append(torch.linalg.qr(torch.cat([span, more], 1))[0])
    return found[0], found[1]


def leading_directions(factor: Tensor, inner: Tensor, rank: int) -> Tensor:
    """The `rank` leading eigenvectors of sum_h F_h inner_h F_h^T, (width, rank).

    Args:
        factor: F, (heads, width, head_dim)
        inner: (heads, head_dim, head_dim), symmetric and positive semi-definite.
        rank: how many.
    """
    total = (factor @ inner).transpose(0, 1).flatten(1) @ factor.transpose(0, 1).flatten(1).T
    return torch.linalg.eigh(total)[1].flip(1)[:, :rank]
