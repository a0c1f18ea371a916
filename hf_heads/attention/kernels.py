"""Softmax attention with shared keys or values, an additive term on the scores, and any widths."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scaling: float,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    causal: bool = False,
    dropout: float = 0.0,
    implementation: str | None = "eager",
) -> tuple[Tensor, Tensor | None]:
    """Softmax attention with shared keys or values, an additive term on the scores, and any widths.

    Args:
        query: (batch, heads, target, width)
        key: (batch, n, source, width); n divides the heads, and neighbouring heads share.
        value: (batch, n, source, value_dim), with an n of its own.
        scaling: factor on the scores; the additive term is not scaled.
        bias: broadcastable to (batch, heads, target, source).
        mask: additive or boolean (True attends), broadcastable to (batch, heads, target, source).
        causal: the module is causal; only used when there is no mask, as in transformers.
        dropout: probability of dropping an attention weight.
        implementation: `eager` returns the weights; `sdpa` takes the fastest exact way.

    Returns:
        Context (batch, heads, target, value_dim) and the weights or None.
    """
    if implementation != "eager" and fused_is_faster(query, key, value, bias):
        return _fused(query, key, value, scaling, mask, causal, dropout), None
    additive = _additive(mask, causal, query, key)
    if implementation != "eager" and pieces_are_faster(query, key):
        return _in_pieces(query, key, value, scaling, bias, additive), None
    weights = _weights(query, key, scaling, bias, additive).to(value.dtype)
    weights = nn.functional.dropout(weights, dropout, training=dropout > 0)
    return _fold(weights, value), weights if implementation == "eager" else None


# Which exact way is the fastest was measured (`scripts/run.py ways`). It is decided by shape, device and gradient mode
# alone, never by a stopwatch at run time, so that results repeat.

_LONG = 64  # keys
_PIECE = 2**18  # scores of a piece: with their exponentials they stay in a core's cache


def fused_is_faster(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> bool:
    """Whether torch's fused attention wins: it wants equal widths and no additive term.

    Heads that share short keys are faster as one matrix product.
    """
    shared = key.shape[1] < query.shape[1] or value.shape[1] < query.shape[1]
    # A choice by length would bind an exported program to lengths on the same side as its example.
    long = exporting() or key.shape[-2] >= _LONG or query.device.type != "cpu"
    return bias is None and query.shape[-1] <= value.shape[-1] and (long or not shared)


def exporting() -> bool:
    """Whether torch.export, or the ONNX export on top of it, is tracing."""
    asked = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)  # the first one since torch 2.7
    return bool(asked())


def pieces_are_faster(query: Tensor, key: Tensor) -> bool:
    """Whether to make the scores piece by piece: on a CPU, if there are many and no backward pass wants them."""
    plain = query.device.type == "cpu" and not torch.is_grad_enabled() and not torch.compiler.is_compiling()
    return plain and query[..., 0].numel() * key.shape[-2] > 4 * _PIECE  # fewer are not worth the gathering


def _weights(query: Tensor, key: Tensor, scaling: float, bias: Tensor | None, additive: Tensor | None) -> Tensor:
    """Attention weights (batch, heads, target, source), the softmax in float32."""
    scores = _fold(query * scaling, key.mT)
    for term in (bias, additive):
        if term is not None:
            scores = scores + term if torch.is_grad_enabled() else scores.add_(term)
    return scores.softmax(-1, dtype=torch.float32)


def _in_pieces(
    query: Tensor, key: Tensor, value: Tensor, scaling: float, bias: Tensor | None, additive: Tensor | None
) -> Tensor:
    """The same as softmax attention at once, over pieces of the batch, or of one example's targets, at a time."""
    batch, heads, target, _ = query.shape
    source = key.shape[-2]
    output = value.new_empty(batch, heads, target, value.shape[-1])
    examples = max(1, _PIECE // (heads * target * source))
    targets = target if heads * target * source <= _PIECE else max(16, _PIECE // (heads * source))
    for first in range(0, batch, examples):
        rows = slice(first, first + examples)
        for begin in range(0, target, targets):
            columns = slice(begin, begin + targets)
            weights = _weights(
                query[rows, :, columns],
                key[rows],
                scaling,
                _part(bias, rows, columns),
                _part(additive, rows, columns),
            )
            output[rows, :, columns] = _fold(weights.to(value.dtype), value[rows])
    return output


def _part(term: Tensor | None, rows: slice, columns: slice) -> Tensor | None:
    """A piece of something broadcastable to (batch, heads, target, source)."""
    if term is None:
        return None
    term = term[(None,) * (4 - term.ndim)]
    term = term if term.shape[0] == 1 else term[rows]
    return term if term.shape[2] == 1 else term[:, :, columns]


def _fold(left: Tensor, right: Tensor) -> Tensor:
    """left @ right, (batch, heads, target, a) and (batch, n, a, b); heads that share `right` become its rows."""
    if right.shape[1] == left.shape[1]:
        return left @ right
    batch, heads, target, _ = left.shape
    folded = left.reshape(batch, right.shape[1], -1, left.shape[-1]) @ right
    return folded.view(batch, heads, target, right.shape[-1])


def _additive(mask: Tensor | None, causal: bool, query: Tensor, key: Tensor) -> Tensor | None:
    """The mask as something to add to the scores; a causal one is built where transformers leaves it to the kernel."""
    target, source = query.shape[-2], key.shape[-2]
    if mask is None:
        if not causal or target == 1:
            return None
        mask = torch.ones(target, source, dtype=torch.bool, device=query.device).tril()
    if mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=query.dtype).masked_fill(~mask, torch.finfo(query.dtype).min)
    return mask


def _fused(
    query: Tensor, key: Tensor, value: Tensor, scaling: float, mask: Tensor | None, causal: bool, dropout: float
) -> Tensor:
    """Torch's fused attention; queries and keys are padded to the values' width, since it wants equal widths."""
    target, source = query.shape[-2], key.shape[-2]
    causal = causal and mask is None and target > 1
    if causal and source > target:
        key, value = key[:, :, :target], value[:, :, :target]  # an empty static cache beyond the prompt
    missing = value.shape[-1] - query.shape[-1]
    if missing > 0:
        query, key = nn.functional.pad(query, (0, missing)), nn.functional.pad(key, (0, missing))
    heads, shared = query.shape[1], max(key.shape[1], value.shape[1])
    if mask is None and not causal and shared < heads:
        # Heads that share become so many more queries; with a mask, repeating the keys costs less than the mask.
        key, value = _repeated(key, shared), _repeated(value, shared)
        folded = query.reshape(query.shape[0], shared, -1, query.shape[-1])
        context = nn.functional.scaled_dot_product_attention(folded, key, value, dropout_p=dropout, scale=scaling)
        return context.reshape(query.shape[0], heads, target, -1)
    key, value = _repeated(key, heads), _repeated(value, heads)
    return nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, dropout_p=dropout, is_causal=causal, scale=scaling
    )


def _repeated(shared: Tensor, heads: int) -> Tensor:
    """(batch, n, source, width) for `heads` heads; one for all is not copied."""
    if shared.shape[1] == heads:
        return shared
    return (
        shared.expand(-1, heads, -1, -1)
        if shared.shape[1] == 1
        else shared.repeat_interleave(heads // shared.shape[1], 1)
    )
