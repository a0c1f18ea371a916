"""The refit of shared values: what heads attend to is known once their scores are, and values can be fitted to that."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from operator import itemgetter
from typing import cast

import torch
from torch import Tensor, nn

from hf_heads.attention.hosts.blocks import Block
from hf_heads.attention.module import HeadsAttention
from hf_heads.core.alternating import Attended, alternate
from hf_heads.jobs.conversion.refit import target_of
from hf_heads.jobs.conversion.stepping import Stop, real_queries
from hf_heads.jobs.team import Team

ENTRIES = 80_000_000  # numbers of all contexts of a block together, at most
ROWS = 16_384  # at most
_HELD_OUT = 5  # one sequence in so many is watched, not fitted


def refit_values(
    block: Block,
    stops: Callable[[], Iterable[Stop]],
    original_block: Block,
    original_stops: Iterable[Stop],
    token_weights: Mapping[int, Tensor] | None = None,
    team: Team | None = None,
) -> tuple[dict[str, Tensor], float]:
    """Fit a block's shared values, with its output projection, to what the original's block puts out.

    Args:
        block: of the converted model, with the method's module in place and its scores as they stay.
        stops: hands out the batches that wait there.
        original_block: the same block of the model before conversion.
        original_stops: the same batches there.
        token_weights: what errors at each token count for, (batch, target), by the `id` of the batch; None: all alike.
        team: the processes that share the batches.

    Returns:
        The new tensors by name, and the share of the block's squared output error that they remove on sequences that
        they are not fitted to. None, and 0, where no others do better there, where no values are shared, and where the
        block has no bias that would keep what all tokens have in common.
    """
    module = cast(HeadsAttention, block.module)
    if module.shared_values is None or block.output.bias is None:
        return {}, 0.0
    name, factor = module.shared_values
    linear = cast(nn.Linear, module.get_submodule(name))
    team = team or Team()
    data = _attended(block, module, stops, original_block, original_stops, token_weights, team)
    width = block.output.in_features // module.shape.heads
    value = linear.weight.detach().cpu().float().unflatten(0, (-1, width)).mT / factor
    output = block.output.weight.detach().cpu().float().T.contiguous()
    found = team.once(partial(alternate, data, value, output))
    if found is None:
        return {}, 0.0
    weights = {
        f"{name}.weight": found.value.mT.flatten(0, 1) * factor,
        "output.weight": found.output.T.contiguous(),
        "output.bias": found.bias,
    }
    if linear.bias is not None:
        weights[f"{name}.bias"] = torch.zeros_like(linear.bias)
    return weights, found.gain


def _attended(
    block: Block,
    module: HeadsAttention,
    stops: Callable[[], Iterable[Stop]],
    original_block: Block,
    original_stops: Iterable[Stop],
    token_weights: Mapping[int, Tensor] | None,
    team: Team,
) -> Attended:
    """Queries of all sequences, as many as there is room for."""
    own = {stop.place: tuple(stop.hidden_states.shape[:2]) for stop in stops()}
    shapes = dict(sorted(item for share in team.gather(own) for item in share.items()))
    total = sum(rows * length for rows, length in shapes.values())
    width = module.shape.key_width * module.shape.heads
    share = min(1.0, min(ROWS, ENTRIES // max(width, 1)) / max(total, 1))
    dice = torch.Generator().manual_seed(0)
    noise = {place: torch.rand(shape, generator=dice) for place, shape in shapes.items()}  # others' too
    parts: dict[int, tuple[Tensor, ...]] = {}
    for stop, original_stop in zip(stops(), original_stops, strict=True):
        real = real_queries(block, stop)
        target, _ = target_of(stop, original_block, original_stop)
        rows, length = target.shape[:2]
        drawn = noise[stop.place] < share
        chosen = drawn if real is None else drawn & real.cpu()
        weights = torch.ones(rows, length) if token_weights is None else token_weights[id(stop.batch)].cpu()
        watched = (torch.arange(rows) % _HELD_OUT == 0)[:, None].expand(rows, length)
        found = module.attended(stop.arguments).transpose(1, 2), target, weights, watched
        parts[stop.place] = tuple(one.cpu()[chosen] for one in found)
    every = sorted((item for several in team.gather(parts) for item in several.items()), key=itemgetter(0))
    contexts, targets, weights, watched = (torch.cat(part) for part in zip(*(part for _, part in every), strict=True))
    return Attended(contexts.float(), targets.float(), weights.float(), watched)
