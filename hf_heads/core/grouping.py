"""Groups of heads that can share projections: tensors in, groups out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Groups = list[list[int]]


def captured_energy(factors: Tensor, rank: int) -> float:
    """max sum_h |P F_h|^2 over projections P of some rank.

    Args:
        factors: F, (heads, width, any)
        rank: of the projection.
    """
    stacked = factors.transpose(0, 1).flatten(1)
    return float(torch.linalg.eigvalsh(stacked.T @ stacked)[-rank:].sum())


def balanced_groups(items: Sequence[Sequence[int]], count: int, energy: Callable[[Sequence[int]], float]) -> Groups:
    """Groups of equal size with the largest sum of energies, by exchanges of pairs from neighbours on; deterministic.

    Args:
        items: what is grouped: heads, or groups of heads, as lists of heads.
        count: number of groups; it divides the number of items.
        energy: of a list of heads.
    """
    size = len(items) // count
    groups = [[list(item) for item in items[begin : begin + size]] for begin in range(0, len(items), size)]

    def total(group: Sequence[Sequence[int]]) -> float:
        return energy([head for item in group for head in item])

    energies = [total(group) for group in groups]
    improved = size > 1
    while improved:
        improved = False
        for one in range(count):
            for other in range(one + 1, count):
                for here in range(size):
                    for there in range(size):
                        a, b = list(groups[one]), list(groups[other])
                        a[here], b[there] = b[there], a[here]
                        new = total(a), total(b)
                        if sum(new) > (energies[one] + energies[other]) * (1 + 1e-9):
                            groups[one], groups[other] = a, b
                            energies[one], energies[other] = new
                            improved = True
    return [[head for item in group for head in item] for group in groups]
