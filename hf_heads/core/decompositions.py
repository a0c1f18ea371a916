"""CP and Tucker decompositions of the query-key tensor, computed from its factors. Tensors in, tensors out.

The query-key tensor of a block is T[i, h, j] = sum_d A[h, i, d] B[h, j, d]: width x heads x width, of which only the
per-head factors A and B, both (heads, width, head_dim), are ever held (Cordonnier, Loukas, Jaggi 2020,
arXiv 2006.16362, decompose the tensor itself). All work is done in float64 and is deterministic.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hf_heads.core.errors import HeadsError


@dataclass(frozen=True)
class SharedFactors:
    """A shared query-key space: T[:, h, :] is approximated by U G_h V^T.

    Attributes:
        query: U, (query_width, r1)
        core: G, (heads, r1, r2); for CP (heads, rank): the diagonals.
        key: V, (key_width, r2)
        error: |T - approximation| / |T| in the Frobenius norm.
    """

    query: Tensor
    core: Tensor
    key: Tensor
    error: float

    def to_tensorly(self) -> Any:
        """The same as tensorly's CPTensor or TuckerTensor (of shape width x heads x width) over torch tensors.

        Raises:
            HeadsError: tensorly is not installed.
        """
        try:
            import tensorly  # an extra: only who asks for its tensors needs it
        except ImportError:
            raise HeadsError("tensorly is not installed: pip install 'hf-heads[tensorly]'") from None
        from tensorly.cp_tensor import CPTensor  # an extra
        from tensorly.tucker_tensor import TuckerTensor

        with tensorly.backend_context("pytorch"):
            if self.core.ndim == 2:
                return CPTensor((None, [self.query, self.core, self.key]))
            heads = torch.eye(self.core.shape[0], dtype=self.core.dtype)
            return TuckerTensor((self.core.transpose(0, 1), [self.query, heads, self.key]))


def head_svd(query: Tensor, key: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Singular value decompositions of every A_h B_h^T by QR and a head_dim x head_dim SVD.

    Args:
        query: A, (heads, query_width, head_dim)
        key: B, (heads, key_width, head_dim)

    Returns:
        left (heads, query_width, k), values (heads, k) in falling order, right (heads, key_width, k), where k is the
        smallest of head_dim and the two widths.
    """
    left, left_small = torch.linalg.qr(query)
    right, right_small = torch.linalg.qr(key)
    u, values, vh = torch.linalg.svd(left_small @ right_small.mT, full_matrices=False)
    return left @ u, values, right @ vh.mT


def squared_norm(query: Tensor, key: Tensor) -> Tensor:
    """|T|^2 from the factors: sum_h tr(A_h^T A_h B_h^T B_h)."""
    return ((query.mT @ query) * (key.mT @ key)).sum()


def tail_energy(query: Tensor, key: Tensor) -> Tensor:
    """Energy that is lost when only the r largest singular triplets of all heads are kept.

    An upper bound of the CP error that costs one SVD; entry r of the result is for rank r, entry 0 is |T|^2.
    """
    energy = head_svd(query, key)[1].flatten().square().sort(descending=True).values
    kept = torch.cat([energy.new_zeros(1), energy.cumsum(0)])
    return (kept[-1] - kept).clamp_min(0)


def _inverse(gram: Tensor) -> Tensor:
    """Inverse of a positive semi-definite gram, slightly regularised; NaN, not an exception, where that fails.

    One product with an inverse is several times faster than a triangular solve; what it loses in accuracy does no
    harm, since the error is always computed for the factors as they came out.
    """
    diagonal = gram.diagonal()
    ridge = 1e-12 * diagonal.clamp_min(1e-6 * float(diagonal.max()))
    return torch.cholesky_inverse(torch.linalg.cholesky_ex(gram + ridge.diag())[0])


class _CPProblem:
    """|T - sum_r U V M|^2 / 2 as a function of V and M alone: U is always the best one for them.

    Both are held in one matrix of (key_width + heads, rank), V above M; columns of A and B of all heads stand side by
    side in matrices of (width, heads * head_dim).
    """

    def __init__(self, query: Tensor, key: Tensor) -> None:
        self.heads, _, self.head_dim = query.shape
        self.query = query.transpose(0, 1).flatten(1)
        self.key = key.transpose(0, 1).flatten(1)
        self.norm = squared_norm(query, key)

    def split(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """V (key_width, rank) and M (heads, rank)."""
        return rows[: -self.heads], rows[-self.heads :]

    def best_query(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The best U (query_width, rank), and the squared error that it reaches."""
        v, mixing = self.split(rows)
        right = self.query @ ((self.key.T @ v) * mixing.repeat_interleave(self.head_dim, 0))
        gram = (v.T @ v) * (mixing.T @ mixing)
        u = right @ _inverse(gram)
        return u, self.norm - 2 * (u * right).sum() + ((u.T @ u) * gram).sum()

    def gradient(self, rows: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradient by V and M at their best U, and the inverse Hessians (rank, rank) of any row of V and of M."""
        v, mixing = self.split(rows)
        query_side, key_side = self.query.T @ u, self.key.T @ v
        gram_u = u.T @ u
        hessian_v, hessian_m = gram_u * (mixing.T @ mixing), gram_u * (v.T @ v)
        right_v = self.key @ (query_side * mixing.repeat_interleave(self.head_dim, 0))
        right_m = (query_side * key_side).unflatten(0, (self.heads, self.head_dim)).sum(1)
        gradient = torch.cat([v @ hessian_v - right_v, mixing @ hessian_m - right_m])
        return gradient, _inverse(hessian_v), _inverse(hessian_m)


def _descend(problem: _CPProblem, rows: Tensor, sweeps: int, tolerance: float, memory: int = 10) -> Tensor:
    """Lower the error by L-BFGS, which takes an alternating least squares step as its first guess; never raises it.

    Directions do not depend on how columns are scaled, because the guess follows every rescaling.
    """

    def guess(gradient: Tensor) -> Tensor:
        v, mixing = problem.split(gradient)
        return torch.cat([v @ inverse_v, mixing @ inverse_m])

    u, error = problem.best_query(rows)
    gradient, inverse_v, inverse_m = problem.gradient(rows, u)
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
            new_u, new_error = problem.best_query(new_rows)
            if slope > 0 and new_error < error - 2e-4 * length * slope:
                break
        else:
            if not pairs:
                break
            pairs = []  # once more from here, by a plain step
            continue
        new_gradient, inverse_v, inverse_m = problem.gradient(new_rows, new_u)
        step, change = new_rows - rows, new_gradient - gradient
        product = (step * change).sum()
        if product > 0:
            pairs = [*pairs[1 - memory :], (step, change, product)]
        rows, gradient, error = new_rows, new_gradient, new_error
        errors.append(error)
        # Single sweeps gain unevenly, so that ten are judged together.
        if error <= 1e-14 * problem.norm or (len(errors) > 10 and errors[-11] - error < 10 * tolerance * error):
            break
    return rows


def cp(query: Tensor, key: Tensor, rank: int, sweeps: int = 200, tolerance: float = 1e-4) -> SharedFactors:
    """CP decomposition sum_r U[i, r] M[h, r] V[j, r] of the query-key tensor by accelerated alternating least squares.

    Starts from the `rank` largest singular triplets of all heads, which is exact at rank heads * head_dim, and never
    ends above their error. Nearly all sweeps run on a copy of the tensor squeezed to 5/4 rank x heads x 5/4 rank, where
    they cost a fraction; a few on the tensor itself then recover what lies outside.

    Args:
        query: A, (heads, query_width, head_dim)
        key: B, (heads, key_width, head_dim)
        rank: number of components R.
        sweeps: upper bound on the number of sweeps.
        tolerance: stop when sweeps lower the squared error by less than this share of it each.

    Returns:
        Factors with columns of U and V of equal norms and rows of the core of (heads, rank).
    """
    query, key = query.double().cpu(), key.double().cpu()
    left, values, right = head_svd(query, key)
    heads, count = values.shape
    rank = min(rank, heads * count)
    order = values.flatten().argsort(descending=True, stable=True)[:rank]
    head, column = order // count, order % count
    u = left[head, :, column].T * values[head, column].sqrt()
    v = right[head, :, column].T * values[head, column].sqrt()
    mixing = torch.zeros(heads, rank, dtype=torch.float64)
    mixing[head, torch.arange(rank)] = 1.0

    problem = _CPProblem(query, key)
    error = problem.norm - values.flatten()[order].square().sum()
    if error > 1e-14 * problem.norm and sweeps > 0:
        # Heads that are alike start with equal columns, a saddle that no descent leaves: a fixed nudge does.
        nudge = torch.arange(v.numel(), dtype=torch.float64).square().cos().view_as(v)
        rows = torch.cat([v + 0.1 * v.square().mean(0).sqrt() * nudge, mixing])
        width = math.ceil(1.25 * rank)
        if width < max(query.shape[1], key.shape[1]):
            basis_u = _leading(query, key.mT @ key, width)
            basis_v = _leading(key, query.mT @ query, width)
            small = _CPProblem(basis_u.T @ query, basis_v.T @ key)
            squeezed = _descend(small, torch.cat([basis_v.T @ problem.split(rows)[0], mixing]), sweeps, tolerance)
            squeezed_v, squeezed_mixing = small.split(squeezed)
            lifted = torch.cat([basis_v @ squeezed_v, squeezed_mixing])
            if problem.best_query(lifted)[1] < problem.best_query(rows)[1]:
                rows, sweeps = lifted, min(sweeps, 10)
        rows = _descend(problem, rows, sweeps, tolerance)
        new_u, new_error = problem.best_query(rows)
        if new_error < error:
            u, (v, mixing), error = new_u, problem.split(rows), new_error
            balance = (v.norm(dim=0).clamp_min(1e-150) / u.norm(dim=0).clamp_min(1e-150)).sqrt()
            u, v = u * balance, v / balance
    return SharedFactors(u, mixing, v, float((error.clamp_min(0) / problem.norm.clamp_min(1e-300)).sqrt()))


def tucker(query: Tensor, key: Tensor, ranks: tuple[int, int], sweeps: int = 50) -> SharedFactors:
    """Tucker decomposition T[:, h, :] = U G_h V^T with dense cores, heads left whole.

    Starts from the higher-order SVD and goes on by higher-order orthogonal iteration; both see the tensor only through
    width x width matrices that are summed over the heads.

    Args:
        query: A, (heads, query_width, head_dim)
        key: B, (heads, key_width, head_dim)
        ranks: r1 and r2, the widths of the query's and the key's shared space.
        sweeps: upper bound on the number of iterations.

    Returns:
        Orthonormal U and V, cores of (heads, r1, r2).
    """
    query, key = query.double().cpu(), key.double().cpu()
    norm = squared_norm(query, key)
    u = _leading(query, key.mT @ key, ranks[0])
    v = _leading(key, query.mT @ query, ranks[1])
    captured = norm.new_zeros(())
    for _ in range(sweeps):
        key_side = key.mT @ v
        u = _leading(query, key_side @ key_side.mT, ranks[0])
        query_side = query.mT @ u
        v = _leading(key, query_side @ query_side.mT, ranks[1])
        core = (u.T @ query) @ (key.mT @ v)
        previous, captured = captured, core.square().sum()
        if captured - previous < 1e-7 * norm:
            break
    return SharedFactors(u, core, v, float(((norm - captured).clamp_min(0) / norm.clamp_min(1e-300)).sqrt()))


def _leading(factor: Tensor, inner: Tensor, rank: int) -> Tensor:
    """The `rank` leading eigenvectors of sum_h F_h inner_h F_h^T, (width, rank)."""
    total = torch.einsum("hwd,hde,hve->wv", factor, inner, factor)
    return torch.linalg.eigh(total)[1].flip(1)[:, :rank]


def shared_basis(factors: Tensor, rank: int) -> tuple[Tensor, float]:
    """The `rank` orthonormal directions that capture most of several factors, sum_h |E^T F_h|^2.

    Args:
        factors: F, (heads, width, any)
        rank: number of directions.

    Returns:
        E (width, rank), and the relative Frobenius error of E E^T F_h.
    """
    stacked = factors.double().cpu().transpose(0, 1).flatten(1)
    values, vectors = torch.linalg.eigh(stacked @ stacked.T)
    lost, norm = values[: len(values) - rank].clamp_min(0).sum(), values.clamp_min(0).sum()
    return vectors.flip(1)[:, :rank], float((lost / norm.clamp_min(1e-300)).sqrt())


def low_rank(query: Tensor, key: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """The best approximation of every A_h B_h^T by factors of width `rank` (Eckart-Young, head by head).

    Args:
        query: A, (heads, query_width, head_dim)
        key: B, (heads, key_width, head_dim)
        rank: width of the new factors, at most head_dim.

    Returns:
        New factors (heads, query_width, rank) and (heads, key_width, rank), and the relative Frobenius error.
    """
    left, values, right = head_svd(query.double().cpu(), key.double().cpu())
    roots = values[:, None, :rank].sqrt()
    lost, norm = values[:, rank:].square().sum(), values.square().sum()
    error = float((lost / norm.clamp_min(1e-300)).sqrt())
    return left[..., :rank] * roots, right[..., :rank] * roots, error
