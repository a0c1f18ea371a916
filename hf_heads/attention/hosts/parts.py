"""What single architectures compute around their attention, named by rows of the table."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from hf_heads.attention.hosts.sites import AttentionAdapter, Hook


def hook(found: Hook) -> Callable[..., Any]:
    """The function that a row names."""
    return found if callable(found) else getattr(sys.modules[__name__], found)


def named(found: Hook) -> Callable[..., Any] | None:
    """The function that a row gives or names, or None where it names none."""
    return found if callable(found) else getattr(sys.modules[__name__], found, None)


def resolved(adapter: AttentionAdapter) -> AttentionAdapter:
    """A row with functions in the place of their names."""
    hooks = ("scale", "interleaved", "encode", "bias", "after", "returns")
    sites = []
    for site in adapter.sites:
        named = {name: getattr(site, name) for name in hooks}
        found = {name: globals()[one] for name, one in named.items() if isinstance(one, str) and one in globals()}
        sites.append(replace(site, **found))
    return replace(adapter, sites=tuple(sites), also=None if adapter.also is None else hook(adapter.also))


def no_scale(host: Any) -> float:
    """Scores as they are, in GPT-Neo."""
    return 1.0


def root_of_head_dim(host: Any) -> float:
    """The usual factor, of a host that does not keep it."""
    return host.head_dim**-0.5


def root_of_attention_head_size(host: Any) -> float:
    """The usual factor, of a host that scales its queries by it and has no attribute for it."""
    return host.attention_head_size**-0.5


def made_head_by_head(host: Any) -> bool:
    """Whether GPT-BigCode's projection makes queries, keys and values head by head: where each head has its own."""
    return not host.multi_query


def patch_noise(config: Any, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The numbers by which a masked autoencoder chooses its patches: the same ones for all who are compared."""
    if "noise" in batch:
        return {}
    size, patch = ((one, one) if isinstance(one, int) else tuple(one) for one in (config.image_size, config.patch_size))
    count = (size[0] // patch[0]) * (size[1] // patch[1])
    generator = torch.Generator().manual_seed(len(batch["pixel_values"]))
    return {"noise": torch.rand(len(batch["pixel_values"]), count, generator=generator)}


def resid_dropout(module: Any, output: Tensor, given: Mapping[str, Any]) -> Tensor:
    """Dropout behind the output projection, as in GPT-2."""
    return module.resid_dropout(output)


def out_drop(module: Any, output: Tensor, given: Mapping[str, Any]) -> Tensor:
    """The same under ModernBERT's name."""
    return module.out_drop(output)


def residual_and_norm(module: Any, output: Tensor, given: Mapping[str, Any]) -> Tensor:
    """The residual connection and the norm, which ALBERT has inside of its attention."""
    return module.LayerNorm(given["hidden_states"] + module.output_dropout(output))


def residual(module: Any, output: Tensor, given: Mapping[str, Any]) -> Tensor:
    """The residual connection, which BLOOM has inside of its attention."""
    return given["residual"] + torch.nn.functional.dropout(output, module.hidden_dropout, module.training)


def alibi(module: Any, given: Mapping[str, Any], past: int, target: int, source: int) -> Tensor:
    """BLOOM's linear biases, (batch, heads, 1, source)."""
    found = given["alibi"]
    return found.view(len(given["hidden_states"]), -1, *found.shape[1:])


def local_window(module: Any, given: Mapping[str, Any], past: int, target: int, source: int) -> Tensor:
    """What GPT-Neo's layers may see: all before, or the last few, (1, 1, target, source)."""
    states = given["hidden_states"]
    place = torch.arange(past, past + target, device=states.device)[:, None]
    behind = place - torch.arange(source, device=states.device)
    seen = behind >= 0
    if module.attention_type == "local":
        seen = seen & (behind < module.config.window_size)
    return states.new_zeros(1, 1, target, source).masked_fill(~seen, torch.finfo(states.dtype).min)


def relative_positions(module: Any, given: dict[str, Any], past: int, target: int, source: int) -> Tensor:
    """T5's bias, (1, heads, target, source): made by the first layer and handed on from one to the next."""
    if given.get("position_bias") is None:
        states = given["hidden_states"]
        if module.has_relative_attention_bias:
            made = module.compute_bias(target, source, device=states.device, past_seen_tokens=past)
        else:
            made = states.new_zeros(1, module.n_heads, target, source)
        given["position_bias"] = made
    return given["position_bias"]


def with_positions(module: Any, output: Tensor, weights: Tensor | None, given: Mapping[str, Any]) -> tuple[Any, ...]:
    """T5's triple: its layers hand the bias on."""
    return output, given.get("position_bias"), weights


def rotary(module: Any, side: str, states: Tensor, given: Mapping[str, Any]) -> Tensor:
    """Queries or keys turned by their positions, pairs (i, i + d / 2) of the first d = width of the cosines.

    Args:
        states: (batch, heads, length, width)
    """
    if given.get("position_embeddings") is None:  # positions of another kind were chosen, as ESM allows
        return states
    cos, sin = (one.unsqueeze(1) for one in given["position_embeddings"])
    width = cos.shape[-1]
    turned = states[..., :width]
    half = torch.cat([-turned[..., width // 2 :], turned[..., : width // 2]], -1)
    turned = (turned * cos + half * sin).to(states.dtype)
    return turned if width == states.shape[-1] else torch.cat([turned, states[..., width:]], -1)


def turned_width(module: Any, head_dim: int) -> int:
    """How many of the first channels of queries and keys `rotary` turns."""
    if getattr(module, "position_embedding_type", "rotary") != "rotary":  # positions of another kind, as ESM allows
        return 0
    settings = getattr(module.config, "rope_parameters", None) or {}
    return int(head_dim * settings.get("partial_rotary_factor", 1.0))


_NORMS = {"query": ("q_norm", "q_layernorm"), "key": ("k_norm", "k_layernorm")}


def norms_heads(module: Any) -> bool:
    """Whether `normed_rotary` finds a norm of every head in front of the turn."""
    return any(hasattr(module, name) for names in _NORMS.values() for name in names)


def normed_rotary(module: Any, side: str, states: Tensor, given: Mapping[str, Any]) -> Tensor:
    """The same behind a norm of every head."""
    norm = next((getattr(module, name) for name in _NORMS[side] if hasattr(module, name)), None)
    return rotary(module, side, states if norm is None else norm(states), given)
