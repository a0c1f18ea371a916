"""Collab on rotary positions, frequency by frequency, beside keys that heads share and queries of their own.

A pair of channels that a position turns is a complex number; scores are sums over pairs of q conj(k) exp(i theta (m -
n)), so only what is complex linear within one pair may be shared. Of each pair the heads' scores are a tensor (query
side, heads, key side), whose complex CP decomposition of rank R is collab: R queries and R keys for all heads, mixed
for each by R complex numbers. mhe's merge keeps R keys and gives each head a query of its own for them, the best one.
The error is that of scores on text, squared, as a share of what they are, over all blocks of SmolLM2-135M (see
`grouped`); pairs get their planes by what these gain. No R queries and keys lose less than the R best directions of
either side: that bound is there beside what alternating least squares finds.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch import Tensor

from hf_heads.attention.hosts.blocks import find_blocks
from hf_heads.core.narrow_values import square_root
from hf_heads.core.shared_keys import KeyPlanes
from hf_heads.core.statistics import Moments
from hf_heads.jobs.conversion.statistics import statistics_of
from hf_heads.jobs.conversion.stepping import Stepper
from hf_heads.modeling.blocks import read_block
from studies.grouped import batches, original, texts
from studies.shared.inputs import TEXT
from studies.shared.running import add_folders, save, shown

SHARES = (1.5, 1.0, 0.5, 1 / 3, 0.25)  # of what grouped queries cache
STARTS, STEPS = 2, 60


def add_options(parser: argparse.ArgumentParser) -> None:
    add_folders(parser, "data", "work")
    parser.add_argument("--length", type=int, default=96, help="tokens of a text (default 96)")
    parser.add_argument("--samples", type=int, default=12, help="texts of the statistics (default 12)")
    parser.add_argument("--held-out", type=int, default=16, help="texts before them, which `grouped` measures on")


def cores(planes: KeyPlanes, root: Tensor) -> Tensor:
    """The weighted scores of every pair of channels as a small tensor, complex (pairs, heads, heads, heads).

    Args:
        planes: of a block.
        root: of the second moment of [x, 1], (width + 1, width + 1).
    """
    queries = planes.weights[:, None, None] * (root.to(planes.queries.dtype) @ planes.queries)
    keys = root.to(planes.keys.dtype) @ planes.keys
    query, key = (_small(one.permute(2, 1, 0)) for one in (queries, keys))  # (pairs, directions, heads)
    return torch.einsum("pih,pjh->pihj", query, key.conj())


def _small(sides: Tensor) -> Tensor:
    """The same products with one another in as few directions as all pairs need."""
    _, sizes, right = torch.linalg.svd(sides, full_matrices=False)
    count = int((sizes > 1e-10 * sizes[:, :1]).sum(1).max())
    return sizes[:, :count, None] * right[:, :count]


def bounds(tensor: Tensor, rank: int) -> Tensor:
    """What CP decompositions of some tensors lose at least, squared, (tensors,)."""
    sides = (torch.linalg.svdvals(tensor.movedim(place, 1).flatten(2)) for place in (1, 3))
    return torch.stack([one[:, rank:].square().sum(1) for one in sides]).amax(0)


def cp_errors(tensor: Tensor, rank: int) -> Tensor:
    """What the best CP decompositions of some tensors lose, squared, (tensors,); alternating least squares."""
    best = torch.full((len(tensor),), torch.inf, dtype=torch.float64)
    generator = torch.Generator().manual_seed(rank)
    for _ in range(STARTS):
        sides = [
            torch.randn(len(tensor), size, rank, dtype=tensor.dtype, generator=generator) for size in tensor.shape[1:]
        ]
        for _ in range(STEPS):
            for place, spec in enumerate(("pihj,phr,pjr->pir", "pihj,pir,pjr->phr", "pihj,pir,phr->pjr")):
                first, second = (one for other, one in enumerate(sides) if other != place)
                gram = (first.mT @ first.conj()) * (second.mT @ second.conj())
                ridge = 1e-12 * gram.diagonal(dim1=1, dim2=2).real.sum(1)[:, None, None] + 1e-300
                gram = gram + ridge * torch.eye(rank, dtype=gram.dtype)
                wanted = torch.einsum(spec, tensor, first.conj(), second.conj())
                sides[place] = torch.linalg.solve(gram, wanted, left=False)
        made = torch.einsum("pir,phr,pjr->pihj", *sides)
        best = torch.minimum(best, (tensor - made).abs().square().sum((1, 2, 3)))
    return best


def second_root(moments: Moments) -> Tensor:
    """The root of the second moment of [x, 1], (width + 1, width + 1)."""
    second = torch.zeros(moments.width + 1, moments.width + 1, dtype=torch.float64)
    second[:-1, :-1] = moments.covariance + torch.outer(moments.mean, moments.mean)
    second[:-1, -1] = second[-1, :-1] = moments.mean
    second[-1, -1] = 1.0
    return square_root(second)


def spend(errors: Tensor, planes: int) -> tuple[float, int]:
    """What is left of errors (ranks from 0, pairs) where so many planes go to the pairs that gain most, one by one.

    And the number of pairs that have any.
    """
    gains = errors[:-1] - errors[1:]
    found, left = float(errors[0].sum()), gains.clone()
    have = torch.zeros(errors.shape[1], dtype=torch.long)
    for _ in range(planes):
        now = torch.where(have < len(left), left.gather(0, have.clamp_max(len(left) - 1)[None])[0], -torch.inf)
        place = int(now.argmax())
        found -= float(now[place])
        have[place] += 1
    return found, int((have > 0).sum())


def run(options: argparse.Namespace) -> None:
    model, tokenizer = original(options.work)
    rows = texts(options.data / TEXT, tokenizer, options.length)
    data = batches(rows[options.held_out : options.held_out + options.samples])
    config = model.config
    heads, groups, width = config.num_attention_heads, config.num_key_value_heads, config.hidden_size
    tensors, alike = [], []
    blocks = find_blocks(model)
    with Stepper(model, data, [block.name for block in blocks]) as stepper:
        for block in blocks:
            dense = read_block(block)
            statistics = statistics_of(block, dense, stepper.at(block.name))
            planes = KeyPlanes(dense, statistics)
            tensors.append(cores(planes, second_root(statistics.query)))
            alike.append(planes.alike)
    pairs = tensors[0].shape[0]
    energy = torch.stack([one.abs().square().sum((1, 2, 3)) for one in tensors])
    assert torch.allclose(energy.sum(1), torch.stack([one.diagonal(dim1=1, dim2=2).real.sum() for one in alike]))
    merged = torch.stack([torch.linalg.eigvalsh(one).clamp_min(0.0) for one in alike])  # (blocks, pairs, heads)
    own = torch.stack([merged[..., : heads - rank].sum(-1) for rank in range(groups + 1)])
    flat = torch.cat(tensors)
    ranks = range(1, 2 * groups + 1)
    least = torch.stack([energy, *(bounds(flat, rank).view_as(energy) for rank in ranks)])
    cp = torch.stack([energy, *(cp_errors(flat, rank).view_as(energy) for rank in ranks)])
    found: list[dict[str, Any]] = []
    for share in SHARES:
        count = round(share * groups * pairs)
        row: dict[str, Any] = {"share": share, "cache": 2 * count}
        for name, errors in (("collab", cp), ("least", least), ("own", own)):
            spent = [spend(errors[:, block], min(count, pairs * (len(errors) - 1))) for block in range(len(blocks))]
            used = sum(pairs_used for _, pairs_used in spent) / len(blocks)
            row[name] = sum(lost for lost, _ in spent) / float(energy.sum())
            sides = 2 * width * heads * used if name == "own" else 2 * width * count
            row[f"{name}_parameters"] = round(sides + 2 * (width + heads) * count)
        found.append(shown(row))
    exact = {
        "cache": 2 * pairs * heads,
        "grouped": 2 * pairs * groups,
        "parameters": 2 * pairs * width * (heads + groups),
    }
    save("rotary_collab", {"rows": found, "exact": exact, "blocks": len(blocks)}, options)
