"""`HeadsAttention`: the one forward that every method shares, mixed into the host's own attention class."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor, nn
from transformers import Cache

from hf_heads.attention.hosts.parts import hook
from hf_heads.attention.hosts.reading import argument_names, host_scale, host_shape
from hf_heads.attention.hosts.sites import AttentionSite, Kind
from hf_heads.attention.kernels import Conditions, attend, shared_scores
from hf_heads.core.dense import AttentionShape, DenseAttention

if TYPE_CHECKING:
    from hf_heads.attention.spec import HeadsSpec


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
    arguments: ClassVar[tuple[str, ...]] = ("hidden_states", "attention_mask")  # of the host's forward, by position
    scaling: float
    config: Any

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for base in cls.__bases__:
            if issubclass(base, nn.Module) and base is not nn.Module and not issubclass(base, HeadsAttention):
                cls.arguments = argument_names(base)

    def __init__(self, host: nn.Module, site: AttentionSite, kind: Kind, output: nn.Linear, spec: HeadsSpec) -> None:
        nn.Module.__init__(self)
        for name, value in vars(host).items():
            if not name.startswith("_"):
                setattr(self, name, value)
        before, scaling = _shape_and_scale(host, site, output)
        names = ("attention_dropout", "attn_dropout", "dropout")
        dropout = next((getattr(host, name) for name in names if hasattr(host, name)), 0.0)
        self.attention_dropout = dropout.p if isinstance(dropout, nn.Dropout) else float(dropout)
        self.is_causal = kind == "causal"
        self.site = site
        self.kind = kind
        self.spec = spec
        self.scaling = scaling
        self.shape: AttentionShape = spec.reshape(before)
        self._take_over(host)
        if "value" not in self.replaces:
            self.add_module(site.value, self._fitting_value(getattr(host, site.value, None)))
        self.build(self.shape)

    def _take_over(self, host: nn.Module) -> None:
        """Keep what the host has beside the projections that are replaced: norms, dropout, tables of positions."""
        goes = {*self.site.projections, self.site.query, self.site.key, self.site.value, "attention_dropout"}
        before = getattr(host, "kept", None)  # of a block that was converted before, what it had kept itself
        for name, child in host.named_children():
            if name not in goes and (before is None or name in before):
                self.add_module(name, child)
        self.kept = tuple(name for name, _ in self.named_children())

    def _fitting_value(self, value: nn.Linear | None) -> nn.Linear:
        """The host's value projection, or a new one where its size is not (or no longer) the block's."""
        width = self.shape.memory_heads * self.shape.value_dim
        if value is not None and value.out_features == width:
            return value
        return linear(self.shape.key_width, width, bias=self.shape.biases.value)

    @property
    def shared(self) -> tuple[str, ...]:
        """Names of the parameters and submodules that several heads share, which training has to move with care."""
        return ()

    @property
    def shared_values(self) -> tuple[str, int] | None:
        """The projection of values that heads share, and how many times larger than it acts it is; None without."""
        return None

    @property
    def inertia(self) -> int:
        """How many times larger the parameters of `shared` are than they act: a step of Adam moves them less by it."""
        return 1

    @property
    def score_scaling(self) -> float:
        """What products of queries and keys are multiplied by: the host's scale, less what inertia has added."""
        return self.scaling

    # What a method brings.

    def build(self, shape: AttentionShape) -> None:
        """Create the method's parameters, uninitialised, on the current default device and in the default dtype."""
        raise NotImplementedError

    def init_weights(self) -> None:
        """Start the parameters that are not in a Linear (those transformers initialises), for training from scratch."""

    def init_projections(self) -> None:
        """Start those parameters of a Linear that must start otherwise than transformers starts them."""

    def project_query(self, hidden_states: Tensor) -> Tensor:
        """(batch, target, query_width) to queries (batch, heads, target, width)."""
        raise NotImplementedError

    def project_memory(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, source, key_width) to keys and values as they are cached, but for `pack_memory`.

        Both have the same number of heads, since static caches hold equal numbers: (batch, n, source, any width).
        """
        raise NotImplementedError

    def pack_memory(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values with equal numbers of heads, for the cache, once keys are turned by their positions."""
        return key, value

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
        conditions: Conditions,
    ) -> tuple[Tensor, Tensor | None]:
        """Attention itself, by default softmax attention, see `attend`."""
        return attend(query, key, value, self.score_scaling, bias, conditions)

    def scores(self, hidden_states: Tensor, memory: Tensor) -> Tensor:
        """Scores before mask and softmax, where the attention is plain softmax attention.

        Args:
            hidden_states: (batch, target, query_width)
            memory: (batch, source, key_width)

        Returns:
            (batch, heads, target, source)
        """
        key, _, bias = self.unpack_memory(*self.project_memory(memory))
        return shared_scores(self.project_query(hidden_states), key, self.score_scaling, bias)

    def fixed(self, name: str) -> Tensor | None:
        """Which entries of a parameter a refinement must leave as they are, True there; None where all may change."""
        return None

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
    def implementation(self) -> str | None:
        """`eager`, which returns attention weights, or another."""
        return self.config._attn_implementation  # the name by which every host's forward reads it

    @property
    def value_projection(self) -> nn.Linear:
        """The host's value projection, for methods that keep it."""
        return getattr(self, self.site.value)

    def split_value(self, memory: Tensor) -> Tensor:
        """The host's own values, (batch, heads of keys and values, source, value_dim)."""
        value = self.value_projection(memory)
        return value.unflatten(-1, (self.shape.memory_heads, -1)).transpose(1, 2)

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Attention as the host calls it, under the host's own names of the arguments.

        Args:
            args: as the host's forward takes them, `hidden_states` (batch, target, query_width) first.
            kwargs: among them the mask that transformers builds for the implementation at hand (additive, boolean or
                None), the key-side inputs of cross-attention, and a cache of transformers, of any kind and name.

        Returns:
            The block's output (batch, target, output_width), or the merged heads where the host projects outside of
            the module, and the attention weights (batch, heads, target, source) in `eager`, else None.
        """
        given = {**dict(zip(self.arguments, args, strict=False)), **kwargs}
        context, weights = self.attend(given)
        return self.finish(context, weights, given)

    def attend(self, given: Mapping[str, Any]) -> tuple[Tensor, Tensor | None]:
        """What goes into the output projection, (batch, target, heads * value_dim), and the weights as returned.

        Args:
            given: the arguments of `forward` by name.
        """
        hidden_states, memory, across = self._seen(given)
        cache = next((value for value in given.values() if isinstance(value, Cache)), None)
        past = self._past(cache) if self.site.bias is not None else 0
        key, value = self._memory(memory, across, cache, given)
        if not self.shape.heads:
            return self._without_heads(hidden_states, key)
        query, key, value, bias, conditions = self._prepared(hidden_states, key, value, past, given)
        context, weights = self.core(query, key, value, bias, conditions)
        return self.finish_context(context).transpose(1, 2).flatten(2), weights

    def attended(self, given: Mapping[str, Any]) -> Tensor:
        """What each head attends to: its weights' mean of the memory itself, (batch, heads, target, key_width).

        Args:
            given: the arguments of `forward` by name, without a cache.
        """
        hidden_states, memory, across = self._seen(given)
        key, value = self._memory(memory, across, None, given)
        query, key, _, bias, conditions = self._prepared(hidden_states, key, value, 0, given)
        wide = memory[:, None].expand(-1, self.shape.heads, -1, -1)
        return self.core(query, key, wide, bias, conditions)[0]

    def _seen(self, given: Mapping[str, Any]) -> tuple[Tensor, Tensor, bool]:
        """What asks, what is asked, and whether these are two."""
        hidden_states: Tensor = given["hidden_states"]
        memory = given.get(self.site.memory) if self.site.memory else None
        return hidden_states, hidden_states if memory is None else memory, memory is not None

    def _prepared(
        self, hidden_states: Tensor, key: Tensor, value: Tensor, past: int, given: Mapping[str, Any]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Conditions]:
        """Queries, keys, values, the term on the scores and the conditions, as `core` takes them."""
        query = self.project_query(hidden_states)
        if self.site.encode is not None:
            query = hook(self.site.encode)(self, "query", query, given)
        source = key.shape[-2]
        key, value, bias = self.unpack_memory(key, value)
        if (constant := self.row_term(query)) is not None:
            bias = constant if bias is None else bias + constant
        causal = self.is_causal if given.get("is_causal") is None else given["is_causal"]
        dropout = self.attention_dropout if self.training else 0.0
        conditions = Conditions(self.of_own_heads(given.get(self.site.mask)), causal, dropout, self.implementation)
        if self.site.bias is not None:
            term = cast(Tensor, self.of_own_heads(hook(self.site.bias)(self, given, past, query.shape[-2], source)))
            mask = conditions.additive(query, source)
            # Two that forbid the same key must not add up to -inf, whose gradient is NaN where all components have it.
            both = term if mask is None else (mask + term).clamp_min(torch.finfo(term.dtype).min)
            conditions = conditions._replace(mask=both)
        return query, key, value, bias, conditions

    def of_own_heads(self, term: Tensor | None) -> Tensor | None:
        """A term on the scores of the host's heads as one for those that stand here, in their order.

        Args:
            term: (batch or 1, the host's heads or 1, target or 1, source), as positions make it; or of other shape,
                the same for all heads.
        """
        places = getattr(self.spec, "kept", None)
        places = getattr(self.spec, "order", None) if places is None else places
        if term is None or places is None or term.ndim < 4 or term.shape[1] == 1:
            return term
        return term[:, list(places)]

    def finish(self, context: Tensor, weights: Tensor | None, given: Mapping[str, Any]) -> tuple[Any, ...]:
        """What `forward` returns, from what `attend` returned and was given."""
        if self.site.output_inside:
            context = self.get_submodule(self.site.output)(context)
        if self.site.after is not None:
            context = hook(self.site.after)(self, context, given)
        if self.site.returns is not None:
            return hook(self.site.returns)(self, context, weights, given)
        return context, weights

    def _without_heads(self, hidden_states: Tensor, key: Tensor) -> tuple[Tensor, Tensor | None]:
        """What a block whose heads are all gone gives the output projection, of which the bias is left."""
        batch, target = hidden_states.shape[:2]
        eager = self.implementation == "eager"
        weights = hidden_states.new_zeros(batch, 0, target, key.shape[-2]) if eager else None
        return hidden_states.new_zeros(batch, target, 0), weights

    def _past(self, cache: Any) -> int:
        """How many tokens a cache holds before this call."""
        return 0 if cache is None else int(cache.get_seq_length(getattr(self, self.site.index)))

    def _cached_memory(self, source: Tensor, given: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """`project_memory`; without heads one zero per position, by which a cache knows how many it holds."""
        if self.shape.heads:
            key, value = self.project_memory(source)
            key = key if self.site.encode is None else hook(self.site.encode)(self, "key", key, given)
            return self.pack_memory(key, value)
        return source.new_zeros(source.shape[0], 1, source.shape[1], 1), source.new_zeros(
            source.shape[0], 1, source.shape[1], 0
        )

    def _memory(
        self, source: Tensor, cross: bool, past_key_values: Any, given: Mapping[str, Any]
    ) -> tuple[Tensor, Tensor]:
        """Keys and values as cached: made from `source`, or taken from the cache where they are there already."""
        if past_key_values is None:
            return self._cached_memory(source, given)
        index = getattr(self, self.site.index)
        both = hasattr(past_key_values, "is_updated")  # an encoder-decoder pair of caches
        cache = past_key_values
        if both:
            cache = past_key_values.cross_attention_cache if cross else past_key_values.self_attention_cache
            if cross and past_key_values.is_updated.get(index):
                layer = cache.layers[index]
                return layer.keys, layer.values
        key, value = cache.update(*self._cached_memory(source, given), index)
        if both and cross:
            past_key_values.is_updated[index] = True
        return key, value


def _shape_and_scale(host: nn.Module, site: AttentionSite, output: nn.Linear) -> tuple[AttentionShape, float]:
    """The sizes of the module that is replaced, and the factor on its scores."""
    if isinstance(host, HeadsAttention):
        return host.shape, host.scaling
    return host_shape(host, site, output), host_scale(host, site)


def linear(inputs: int, outputs: int, bias: bool = True) -> nn.Linear:
    """An uninitialised nn.Linear; its sizes may be zero, for blocks without heads."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Initializing zero-element tensors")
        return nn.Linear(inputs, outputs, bias=bias)
