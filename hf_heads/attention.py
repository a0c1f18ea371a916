"""`HeadsAttention`: the one forward that every method shares, mixed into the host's own attention class."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from .adapters import AttentionSite, Kind, host_shape
from .dense import AttentionShape, DenseAttention

if TYPE_CHECKING:
    from .methods.base import HeadsSpec


class HeadsAttention(nn.Module):
    """Attention with re-parametrized heads, in the place of a host's attention module.

    A method derives from this class, names the host's projections that it replaces and makes queries, keys and
    values; caches, masks, the choice of kernel and the output projection are the same for all methods. The class that
    enters a model derives from the method's class *and* from the host's, because transformers finds the modules whose
    attention weights it returns by `isinstance`.

    Args:
        host: the module that is replaced; its plain attributes and the projections that stay are taken over.
        site: where the architecture keeps what.
        kind: self, causal or cross.
        output: the host's output projection, inside or outside of the module.
        spec: the block's settings, resolved for its shape.
    """

    replaces: ClassVar[tuple[str, ...]] = ("query", "key")
    layer_idx: int | None
    scaling: float
    config: Any

    def __init__(self, host: nn.Module, site: AttentionSite, kind: Kind, output: nn.Linear, spec: HeadsSpec) -> None:
        nn.Module.__init__(self)
        for name, value in vars(host).items():
            if not name.startswith("_"):
                setattr(self, name, value)
        before = host.shape if isinstance(host, HeadsAttention) else host_shape(host, site, output)
        dropout = getattr(host, "attention_dropout", getattr(host, "dropout", 0.0))
        self.attention_dropout = dropout.p if isinstance(dropout, nn.Dropout) else float(dropout)
        self.is_causal = kind == "causal"
        self.site = site
        self.kind = kind
        self.spec = spec
        self.shape: AttentionShape = spec.reshape(before)
        stays = {site.output} if site.output_inside else set()
        if "value" not in self.replaces:
            stays.add(site.value)
        for name, child in host.named_children():
            if name in stays or not any(True for _ in child.parameters()):
                self.add_module(name, child)
        if "value" not in self.replaces:
            self.add_module(site.value, self._fitting_value(getattr(self, site.value, None)))
        self.build(self.shape)

    def _fitting_value(self, value: nn.Linear | None) -> nn.Linear:
        """The host's value projection, or a new one where its size is not (or no longer) the block's."""
        width = self.shape.heads * self.shape.value_dim
        if value is not None and value.out_features == width:
            return value
        return linear(self.shape.key_width, width, bias=self.shape.bias)

    # What a method brings.

    def build(self, shape: AttentionShape) -> None:
        """Create the method's parameters, uninitialised, on the current default device and in the default dtype."""
        raise NotImplementedError

    def init_weights(self) -> None:
        """Start the parameters that are not in a Linear (those transformers initialises), for training from scratch."""

    def project_query(self, hidden_states: Tensor) -> Tensor:
        """(batch, target, query_width) to queries (batch, heads, target, width)."""
        raise NotImplementedError

    def project_memory(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, source, key_width) to keys and values as they are cached.

        Both have the same number of heads, since static caches hold equal numbers: (batch, n, source, any width).
        """
        raise NotImplementedError

    def unpack_memory(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Cached keys and values to (batch, heads or 1, source, width) each, and an additive term on the scores."""
        return key, value, None

    def row_term(self, query: Tensor) -> Tensor | None:
        """A term on the scores that is the same for all keys, (batch, heads, target, 1); softmax drops it."""
        return None

    def core(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        bias: Tensor | None,
        mask: Tensor | None,
        causal: bool,
        dropout: float,
    ) -> tuple[Tensor, Tensor | None]:
        """Attention itself, by default softmax attention, see `attend`."""
        return attend(
            query,
            key,
            value,
            scaling=self.scaling,
            bias=bias,
            mask=mask,
            causal=causal,
            dropout=dropout,
            implementation=self.config._attn_implementation,
        )

    def finish_context(self, context: Tensor) -> Tensor:
        """What is done to the heads' contexts (batch, heads, target, any width) before the output projection."""
        return context

    def to_dense(self, output: nn.Linear) -> DenseAttention:
        """The block as a neutral record, so that it can be converted again.

        Raises:
            HeadsError: the method's attention is not expressible as standard attention.
        """
        raise NotImplementedError

    # What all methods share.

    @property
    def value_projection(self) -> nn.Linear:
        """The host's value projection, for methods that keep it."""
        return getattr(self, self.site.value)

    def split_value(self, memory: Tensor) -> Tensor:
        """The host's own values, (batch, heads, source, value_dim)."""
        value = self.value_projection(memory)
        return value.unflatten(-1, (self.spec.heads, -1)).transpose(1, 2)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Attention as the hosts call it.

        Args:
            hidden_states: (batch, target, query_width)
            attention_mask: what transformers builds for the implementation at hand: additive, boolean or None.
            past_key_values: a cache of transformers, of any kind.
            kwargs: the key-side inputs of cross-attention under the host's name for them; the rest is not used.

        Returns:
            The block's output (batch, target, output_width), or the merged heads where the host projects outside of
            the module, and the attention weights (batch, heads, target, source) in `eager`, else None.
        """
        memory = kwargs.pop(self.site.memory, None) if self.site.memory else None
        key, value = self._memory(hidden_states if memory is None else memory, memory is not None, past_key_values)
        if not self.shape.heads:
            return self._without_heads(hidden_states, key)
        query = self.project_query(hidden_states)
        key, value, bias = self.unpack_memory(key, value)
        if (constant := self.row_term(query)) is not None:
            bias = constant if bias is None else bias + constant
        causal = self.is_causal if kwargs.get("is_causal") is None else kwargs["is_causal"]
        dropout = self.attention_dropout if self.training else 0.0
        context, weights = self.core(query, key, value, bias, attention_mask, causal, dropout)
        context = self.finish_context(context).transpose(1, 2).flatten(2)
        if self.site.output_inside:
            context = getattr(self, self.site.output)(context)
        return context, weights

    def _without_heads(self, hidden_states: Tensor, key: Tensor) -> tuple[Tensor, Tensor | None]:
        """The output of a block whose heads are all gone: the output projection's bias."""
        batch, target = hidden_states.shape[:2]
        context = hidden_states.new_zeros(batch, target, 0)
        if self.site.output_inside:
            context = getattr(self, self.site.output)(context)
        eager = self.config._attn_implementation == "eager"
        return context, hidden_states.new_zeros(batch, 0, target, key.shape[-2]) if eager else None

    def _cached_memory(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """`project_memory`; without heads one zero per position, by which a cache knows how many it holds."""
        if self.shape.heads:
            return self.project_memory(source)
        return source.new_zeros(source.shape[0], 1, source.shape[1], 1), source.new_zeros(
            source.shape[0], 1, source.shape[1], 0
        )

    def _memory(self, source: Tensor, cross: bool, past_key_values: Any) -> tuple[Tensor, Tensor]:
        """Keys and values as cached: made from `source`, or taken from the cache where they are there already."""
        if past_key_values is None:
            return self._cached_memory(source)
        both = hasattr(past_key_values, "is_updated")  # an encoder-decoder pair of caches
        cache = past_key_values
        if both:
            cache = past_key_values.cross_attention_cache if cross else past_key_values.self_attention_cache
            if cross and past_key_values.is_updated.get(self.layer_idx):
                layer = cache.layers[self.layer_idx]
                return layer.keys, layer.values
        key, value = cache.update(*self._cached_memory(source), self.layer_idx)
        if both and cross:
            past_key_values.is_updated[self.layer_idx] = True
        return key, value


def linear(inputs: int, outputs: int, bias: bool = True) -> nn.Linear:
    """An uninitialised nn.Linear; its sizes may be zero, for blocks without heads."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Initializing zero-element tensors")
        return nn.Linear(inputs, outputs, bias=bias)


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


# Which exact way is the fastest was measured (scripts/ways.py). It is decided by shape, device and gradient mode
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
