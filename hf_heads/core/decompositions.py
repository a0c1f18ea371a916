"""CP and Tucker decompositions of the query-key tensor, computed from its factors. Tensors in, tensors out.

The query-key tensor of a block is T[i, h, j] = sum_d A[h, i, d] B[h, j, d]: width x heads x width, of which only the
per-head factors A and B, both (heads, width, head_dim), are ever held (Cordonnier, Loukas, Jaggi 2020,
arXiv 2006.16362, decompose the tensor itself). All work is done in float64 and is deterministic.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hf_heads.core.cp_descent import CPProblem, leading_directions, lower
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
            raise HeadsError("tensorly is not installed: pip install tensorly") from None
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


DAMPING = 1e-3  # of CP; what it costs in error on the data at hand is within what other data differs by


def cp(
    query: Tensor, key: Tensor, rank: int, sweeps: int = 100, tolerance: float = 1e-4, damping: float = DAMPING
) -> SharedFactors:
    """CP decomposition sum_r U[i, r] M[h, r] V[j, r] of the query-key tensor, see `hf_heads.core.cp_descent`.

    Starts from the `rank` largest singular triplets of all heads, which is exact at rank heads * head_dim, and never
    ends above their error.

    Args:
        query: A, (heads, query_width, head_dim)
        key: B, (heads, key_width, head_dim)
        rank: number of components R.
        sweeps: upper bound on the number of sweeps in a row.
        tolerance: stop when sweeps lower the squared error by less than this share of it each.
        damping: penalty on sum_r |u_r|^2 |v_r|^2 |m_r|^2, against large terms that cancel; at most the share of the
            squared norm that the singular triplets lose, so that near a lossless rank it does no harm.

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

    norm = squared_norm(query, key)
    error = norm - values.flatten()[order].square().sum()
    if error > 1e-14 * norm and sweeps > 0:
        problem = CPProblem(query, key, norm, min(damping, float(error / norm)))
        # Heads that are alike start with equal columns, a saddle that no descent leaves: a fixed nudge does.
        nudge = torch.arange(v.numel(), dtype=torch.float64).square().cos().view_as(v)
        rows = lower(problem, torch.cat([v + 0.1 * v.square().mean(0).sqrt() * nudge, mixing]), sweeps, tolerance)
        new_u, _ = problem.best_query(rows)
        new_error = problem.error(new_u, rows)
        if new_error < error:
            u, (v, mixing), error = new_u, problem.split(rows), new_error
            balance = (v.norm(dim=0).clamp_min(1e-150) / u.norm(dim=0).clamp_min(1e-150)).sqrt()
            u, v = u * balance, v / balance
    return SharedFactors(u, mixing, v, float((error.clamp_min(0) / norm.clamp_min(1e-300)).sqrt()))


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
    u = leading_directions(query, key.mT @ key, ranks[0])
    v = leading_directions(key, query.mT @ query, ranks[1])
    captured = norm.new_zeros(())
    for _ in range(sweeps):
        key_side = key.mT @ v
        u = leading_directions(query, key_side @ key_side.mT, ranks[0])
        query_side = query.mT @ u
        v = leading_directions(key, query_side @ query_side.mT, ranks[1])
        core = (u.T @ query) @ (key.mT @ v)
        previous, captured = captured, core.square().sum()
        if captured - previous < 1e-7 * norm:
            break
    return SharedFactors(u, core, v, float(((norm - captured).clamp_min(0) / norm.clamp_min(1e-300)).sqrt()))


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
