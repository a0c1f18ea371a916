"""The refit of a converted block's output projection to the original's output."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hf_heads.attention.hosts.blocks import Block
from hf_heads.core.batches import token_rows
from hf_heads.jobs.conversion.stepping import Stop, call_block


@dataclass(frozen=True)
class Refit:
    """A new output projection, and what it gained.

    Attributes:
        weight: (output_width, heads * value_dim)
        bias: (output_width,)
        ridge: strength of the pull towards the projection before, chosen by cross-validation.
        gain: share of the block's squared output error that it removes on calibration data it was not fitted to.
    """

    weight: Tensor
    bias: Tensor
    ridge: float
    gain: float


_FOLDS = 4
_RIDGES = tuple(10.0**exponent for exponent in range(-5, 3))


def refit_output(
    block: Block, stops: Iterable[Stop], original_block: Block, original_stops: Iterable[Stop]
) -> Refit | None:
    """Refit the output projection of a converted block to what the original model's block puts out.

    Ridge regression from the converted heads' context to the original block's output, plus what the earlier blocks'
    errors have moved the residual stream by. The pull towards the present projection is chosen by cross-validation
    over parts of the calibration data, so that little data changes little.

    Args:
        block: of the converted model, with the method's module in place.
        stops: batches that wait there.
        original_block: the same block of the model before conversion.
        original_stops: the same batches there.

    Returns:
        The new projection, or None where no refit does better on unseen data than the present one.
    """
    linear = block.output
    weight, bias = linear.weight.detach(), linear.bias.detach()
    width = linear.in_features + 1
    grams = torch.zeros(_FOLDS, width, width, dtype=torch.float64)
    crosses = torch.zeros(_FOLDS, width, linear.out_features, dtype=torch.float64)
    errors = torch.zeros(_FOLDS, dtype=torch.float64)
    module, site = original_block.module, original_block.site
    for stop, original_stop in zip(stops, original_stops, strict=True):
        mask = stop.batch.get(block.site.query_mask)
        wanted, *others = call_block(module, original_stop)
        target = wanted if site.output_inside else original_block.output(wanted)
        with _captured_input(linear) as inputs:
            output, *rest = call_block(block.module, stop)
        context = inputs[0] if block.site.output_inside else output
        stop.result = partial(_result, linear if block.site.output_inside else nn.Identity(), context, rest)
        original_stop.result = partial(_result, nn.Identity(), wanted, others)  # last: both may be the same stop
        for fold in range(_FOLDS):  # whole sequences are left out together
            rows = None if mask is None else mask[fold::_FOLDS]
            known = token_rows(context[fold::_FOLDS], rows).double()
            missing = token_rows(target[fold::_FOLDS], rows).double() - known @ weight.double().T - bias.double()
            known = torch.cat([known, known.new_ones(known.shape[0], 1)], -1)
            grams[fold] += (known.T @ known).cpu()
            crosses[fold] += (known.T @ missing).cpu()
            errors[fold] += missing.square().sum().cpu()
    if not (grams[:, -1, -1] > 0).all():  # too few sequences to leave any out
        return None
    ridge, gain = _cross_validate(grams, crosses, errors)
    if ridge is None:
        return None
    change = _ridge_solve(grams.sum(0), crosses.sum(0), [ridge])[0]
    change = change.to(weight.device, weight.dtype)
    return Refit(weight + change[:-1].T, bias + change[-1], ridge, gain)


def _result(projection: nn.Module, context: Tensor, rest: Sequence[Any]) -> tuple[Any, ...]:
    """What a block gives, with the projection as it is by then."""
    return projection(context), *rest


def _ridge_solve(gram: Tensor, cross: Tensor, ridges: Sequence[float]) -> list[Tensor]:
    """Solutions of (G + ridge * mean diagonal * I) X = C for several ridges, from one eigendecomposition."""
    values, vectors = torch.linalg.eigh(gram)
    projected = vectors.T @ cross
    mean = values.clamp_min(0).mean()
    return [vectors @ (projected / (values.clamp_min(0) + ridge * mean)[:, None]) for ridge in ridges]


def _cross_validate(grams: Tensor, crosses: Tensor, errors: Tensor) -> tuple[float | None, float]:
    """The ridge with the least error on left-out folds, and the share of the error that it removes there."""
    lost = torch.zeros(len(_RIDGES), dtype=torch.float64)
    for fold in range(_FOLDS):
        solutions = _ridge_solve(grams.sum(0) - grams[fold], crosses.sum(0) - crosses[fold], _RIDGES)
        for index, solution in enumerate(solutions):
            explained = 2 * (solution * crosses[fold]).sum() - (solution * (grams[fold] @ solution)).sum()
            lost[index] += errors[fold] - explained
    gains = 1 - lost / errors.sum().clamp_min(1e-300)
    best = int(gains.argmax())
    gain = float(gains[best])
    # Below this the numbers are rounding: a lossless conversion has nothing to refit.
    significant = gain > 1e-3 and float(errors.sum()) > 1e-12
    return (_RIDGES[best], gain) if significant else (None, 0.0)


class _captured_input:
    """Collects the inputs of a module within a `with` block."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __enter__(self) -> list[Tensor]:
        inputs: list[Tensor] = []
        self.handle = self.module.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
        return inputs

    def __exit__(self, *_: Any) -> None:
        self.handle.remove()
