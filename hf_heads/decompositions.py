"""CP and Tucker decompositions of the query-key tensor, computed from its factors. Tensors in, tensors out.

The query-key tensor of a block is T[i, h, j] = sum_d A[h, i, d] B[h, j, d]: width x heads x width, of which only the
per-head factors A and B, both (heads, width, head_dim), are ever held (Cordonnier, Loukas, Jaggi 2020,
arXiv 2006.16362, decompose the tensor itself). All work is done in float64 and is deterministic.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


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


def _solve(gram: Tensor, right_hand_side: Tensor) -> Tensor:
    """Rows X of X gram = right_hand_side for a positive semi-definite gram, slightly regularised."""
    ridge = 1e-12 * gram.diagonal().mean().clamp_min(1e-300)
    factor = torch.linalg.cholesky(gram + ridge * torch.eye(gram.shape[0], dtype=gram.dtype))
    return torch.cholesky_solve(right_hand_side.T, factor).T


class _CPProblem:
    """The quantities of one alternating least squares problem; columns of A and B of all heads stand side by side."""

    def __init__(self, query: Tensor, key: Tensor) -> None:
        heads, _, head_dim = query.shape
        self.heads = heads
        self.query = query.transpose(0, 1).flatten(1)  # (query_width, heads * head_dim)
        self.key = key.transpose(0, 1).flatten(1)
        self.head_of = torch.arange(heads).repeat_interleave(head_dim)
        self.norm = squared_norm(query, key)

    def side(self, own: Tensor, other: Tensor, other_factor: Tensor, mixing: Tensor) -> Tensor:
        """The best factor of one side, given the other side's factor and the mixing."""
        projected = (other.T @ other_factor) * mixing[self.head_of]
        gram = (other_factor.T @ other_factor) * (mixing.T @ mixing)
        return _solve(gram, own @ projected)

    def mixing(self, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """The best mixing (heads, rank) for two factors, and the squared error that it reaches."""
        products = (self.query.T @ u) * (self.key.T @ v)
        right = products.new_zeros(self.heads, u.shape[1]).index_add_(0, self.head_of, products)
        mixing = _solve((u.T @ u) * (v.T @ v), right)
        return mixing, self.norm - (mixing * right).sum()


def cp(query: Tensor, key: Tensor, rank: int, sweeps: int = 200, tolerance: float = 1e-5) -> SharedFactors:
    """CP decomposition sum_r U[i, r] M[h, r] V[j, r] of the query-key tensor by alternating least squares.

    Starts from the `rank` largest singular triplets of all heads, which is exact at rank heads * head_dim; each sweep
    costs O(width^2 * rank) and never makes the error larger. Steps are extrapolated and kept only when they help.

    Args:
        query: A, (heads, query_width, head_dim)
        key: B, (heads, key_width, head_dim)
        rank: number of components R.
        sweeps: upper bound on the number of sweeps.
        tolerance: stop when a sweep lowers the relative error by less than this share of it.

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
    error = problem.norm - values.flatten().square()[order].sum()
    floor = 1e-14 * problem.norm
    step, previous = 1.0, None
    for _ in range(sweeps if error > floor else 0):
        new_u = problem.side(problem.query, problem.key, v, mixing)
        new_v = problem.side(problem.key, problem.query, new_u, mixing)
        new_mixing, new_error = problem.mixing(new_u, new_v)
        if previous is not None:
            # One point further along the line of the last two sweeps, kept only if it is better.
            far_u = new_u + step * (new_u - previous[0])
            far_v = new_v + step * (new_v - previous[1])
            far_mixing, far_error = problem.mixing(far_u, far_v)
            if far_error < new_error:
                new_u, new_v, new_mixing, new_error = far_u, far_v, far_mixing, far_error
                step = min(step * 1.5, 16.0)
            else:
                step = max(step / 2, 0.5)
        gain = float((error - new_error) / error.clamp_min(floor))
        previous = (u, v)
        u, v, mixing, error = new_u, new_v, new_mixing, torch.minimum(error, new_error)
        balance = (v.norm(dim=0) / u.norm(dim=0).clamp_min(1e-300)).sqrt()
        u, v = u * balance, v / balance
        previous = (previous[0] * balance, previous[1] / balance)
        if error <= floor or (0 <= gain < tolerance):
            break
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
