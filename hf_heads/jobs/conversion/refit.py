"""The refit of a converted block's output projection to the original's output."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from hf_heads.attention.hosts.blocks import Block
from hf_heads.attention.module import HeadsAttention
from hf_heads.core.batches import token_rows
from hf_heads.jobs.conversion.stepping import Stop, call_block, real_queries
from hf_heads.jobs.team import Team


@dataclass(frozen=True)
class Refit:
    """A new output projection, and what it gained.

    Attributes:
        weight: (output_width, heads * value_dim)
        bias: (output_width,); None where the projection has none.
        ridge: strength of the pull towards the projection before, chosen by cross-validation.
        gain: share of the block's squared output error that it removes on calibration data it was not fitted to.
    """

    weight: Tensor
    bias: Tensor | None
    ridge: float
    gain: float


_FOLDS = 4
_RIDGES = tuple(10.0**exponent for exponent in range(-5, 3))


def refit_output(
    block: Block,
    stops: Iterable[Stop],
    original_block: Block,
    original_stops: Iterable[Stop],
    token_weights: Mapping[int, Tensor] | None = None,
    team: Team | None = None,
) -> Refit | None:
    """Refit the output projection of a converted block to what the original model's block puts out.

    Ridge regression from the converted heads' context to the original block's output, plus what the earlier blocks'
    errors have moved the residual stream by, where that stream is known. The pull towards the present projection is
    chosen by cross-validation over parts of the calibration data, so that little data changes little.

    Args:
        block: of the converted model, with the method's module in place.
        stops: batches that wait there.
        original_block: the same block of the model before conversion.
        original_stops: the same batches there.
        token_weights: what errors at each token count for, (batch, target), by the `id` of the batch; None: all alike.
        team: the processes that share the batches.

    Returns:
        The new projection, or None where no refit does better on unseen data than the present one.
    """
    team, linear, module = team or Team(), block.output, cast(HeadsAttention, block.module)
    weight, bias = linear.weight.detach(), linear.bias
    shift = 0.0 if bias is None else bias.detach().double()
    width = linear.in_features + (bias is not None)
    grams = torch.zeros(_FOLDS, width, width, dtype=torch.float64)
    crosses = torch.zeros(_FOLDS, width, linear.out_features, dtype=torch.float64)
    errors, counts = (torch.zeros(_FOLDS, dtype=torch.float64) for _ in range(2))
    size = torch.zeros((), dtype=torch.float64)
    for stop, original_stop in zip(stops, original_stops, strict=True):
        real = real_queries(block, stop)
        target, wanted = target_of(stop, original_block, original_stop)
        context, weights = module.attend(stop.arguments)
        stop.result = partial(module.finish, context, weights, stop.arguments)
        original_stop.result = partial(_same, wanted)  # last: both may be the same stop
        for fold in range(_FOLDS):  # whole sequences are left out together
            rows = None if real is None else real[fold::_FOLDS]
            known = token_rows(context[fold::_FOLDS], rows).double()
            missing = token_rows(target[fold::_FOLDS], rows).double() - known @ weight.double().T - shift
            if bias is not None:
                known = torch.cat([known, known.new_ones(known.shape[0], 1)], -1)
            if token_weights is not None:
                roots = token_rows(token_weights[id(stop.batch)][fold::_FOLDS, :, None], rows).double().sqrt()
                known, missing = known * roots, missing * roots
            grams[fold] += (known.T @ known).cpu()
            crosses[fold] += (known.T @ missing).cpu()
            errors[fold] += missing.square().sum().cpu()
            counts[fold] += len(known)
        size += float(target.square().sum())
    grams, crosses, errors, counts, size = team.sum(grams, crosses, errors, counts, size)
    if not (counts > 0).all():  # too few sequences to leave any out
        return None
    (lost,) = team.sum(_lost(grams, crosses, errors, team.share(_FOLDS)))
    return team.once(partial(_refitted, linear, grams.sum(0), crosses.sum(0), lost, float(errors.sum()), float(size)))


def _refitted(linear: nn.Linear, gram: Tensor, cross: Tensor, lost: Tensor, error: float, size: float) -> Refit | None:
    """The new projection on the CPU, by what `refit_output` has summed up; None where it gains nothing."""
    gains = 1 - lost / max(error, 1e-300)
    gain, ridge = float(gains.max()), _RIDGES[int(gains.argmax())]
    # Below this the numbers are rounding: a lossless conversion has nothing to refit.
    if not (gain > 1e-3 and error > 1e-12 * size):
        return None
    weight = linear.weight.detach().cpu()
    change = _ridge_solve(gram, cross, ridge).to(weight.dtype)
    if linear.bias is None:
        return Refit(weight + change.T, None, ridge, gain)
    return Refit(weight + change[:-1].T, linear.bias.detach().cpu() + change[-1], ridge, gain)


def target_of(stop: Stop, original_block: Block, original_stop: Stop) -> tuple[Tensor, tuple[Any, ...]]:
    """What a converted block should put out, (batch, target, output_width), and what the original's module returns.

    Args:
        stop: the batch at the converted block.
        original_block: the same block of the model before conversion.
        original_stop: the batch there.
    """
    with _captured_output(original_block.output) as outputs:
        result = call_block(original_block.module, original_stop)
    target = outputs[0] if outputs else original_block.output(result[0])
    if stop.residual is not None and original_stop.residual is not None:
        target = target + (original_stop.residual - stop.residual)
    return target, result


def _same(result: Any) -> Any:
    return result


def _ridge_solve(gram: Tensor, cross: Tensor, ridge: float) -> Tensor:
    """The solution of (G + ridge * mean diagonal * I) X = C."""
    values, vectors = torch.linalg.eigh(gram)
    values = values.clamp_min(0)
    return vectors @ ((vectors.T @ cross) / (values + ridge * values.mean())[:, None])


def _lost(grams: Tensor, crosses: Tensor, errors: Tensor, folds: Iterable[int]) -> Tensor:
    """The error that each ridge leaves on these folds, left out in turn, summed.

    With G = V diag(g) V^T of the other folds the solution for a ridge is V diag(d) P, d = 1 / (g + ridge) and
    P = V^T C, which removes 2 sum_i d_i (P o V^T C_f 1)_i - d^T (V^T G_f V o P P^T) d of the left-out fold's error.
    """
    lost = torch.zeros(len(_RIDGES), dtype=torch.float64)
    gram, cross = grams.sum(0), crosses.sum(0)
    for fold in folds:
        values, vectors = torch.linalg.eigh(gram - grams[fold])
        values = values.clamp_min(0)
        projected = vectors.T @ (cross - crosses[fold])
        linear = (projected * (vectors.T @ crosses[fold])).sum(1)
        quadratic = (vectors.T @ grams[fold] @ vectors) * (projected @ projected.T)
        for index, ridge in enumerate(_RIDGES):
            inverse = 1 / (values + ridge * values.mean())
            lost[index] += errors[fold] - 2 * inverse @ linear + inverse @ quadratic @ inverse
    return lost


class _captured_output:
    """Collects the outputs of a module within a `with` block."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __enter__(self) -> list[Tensor]:
        outputs: list[Tensor] = []
        self.handle = self.module.register_forward_hook(lambda _, __, output: outputs.append(output))
        return outputs

    def __exit__(self, *_: Any) -> None:
        self.handle.remove()
