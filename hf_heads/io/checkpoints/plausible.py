"""What a config says of sizes, held against the files, before anything of these sizes is made; torch is not needed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from math import prod
from typing import Any

from hf_heads.core.errors import HeadsError
from hf_heads.core.numbers import Number, shown
from hf_heads.io.checkpoints.weights import Weights

_SIZE = re.compile(r".*(_size|_dim|_layers|_embeddings|_heads|_channels|_stride)|d_model|num_labels")
_LAYERS = re.compile(r".*_layers")
_LAYER, _LABEL, _ANY = Number(0, 10_000, whole=True), Number(0, 1_000_000, whole=True), Number(0, 2**31, whole=True)
_SMALL = 2**22  # numbers of a model that nobody need look at more closely
_TIMES = 8  # tensors of a layer, about


def check_entries(entries: Mapping[str, Any], given: str) -> None:
    """Refuse a config that nobody could mean, before transformers looks at it, by the kinds and sizes of its entries.

    Args:
        entries: what `config.json` holds.
        given: what the user calls the checkpoint.

    Raises:
        HeadsError: names the first such entry.
    """
    if not isinstance(entries.get("model_type"), str):
        raise HeadsError(f"config.json of '{given}' names no model_type; it is no Transformers checkpoint")
    names = entries.get("architectures")
    if names is not None and not (isinstance(names, list) and all(isinstance(one, str) for one in names)):
        raise HeadsError(f"config.json of '{given}': architectures is {shown(names)}, expected a list of names")
    for name, value in _sizes(entries):
        allowed = _LABEL if name == "num_labels" else _LAYER if _LAYERS.fullmatch(name) else _ANY
        if not allowed.allows(value):
            raise HeadsError(f"config.json of '{given}': {name} is {shown(value)}, expected {allowed}")


def check_sizes(entries: Mapping[str, Any], weights: Weights, given: str, count: Callable[[], int]) -> None:
    """Refuse a config whose model would be much larger than what its files hold.

    Args:
        entries: what `config.json` holds.
        weights: the checkpoint's files.
        given: what the user calls the checkpoint.
        count: makes the model without memory for its weights, and counts these; not called where all sizes are small.

    Raises:
        HeadsError: says what is too large.
    """
    layers = 1
    largest = [1, 1]
    for name, value in _sizes(entries):
        if _LAYERS.fullmatch(name):
            if value > len(weights):
                raise HeadsError(
                    f"config.json of '{given}': {name} is {value}, but its files hold {len(weights)} tensors"
                )
            layers += value
        else:
            largest += [value**2 if name in ("image_size", "patch_size") else value]
    if prod(sorted(largest)[-2:]) * layers * _TIMES <= _SMALL:
        return
    stored = sum(prod(weights.shape(name)) for name in weights)
    wanted = count()
    if wanted > 2 * stored + _SMALL:
        raise HeadsError(
            f"config.json of '{given}' describes a model of {wanted:,} numbers, but its files hold {stored:,}"
        )


def _sizes(entries: Any, inside: bool = False) -> Iterator[tuple[str, Any]]:
    """The entries that say how large something is: by their names, and every number of the section `heads`."""
    for name, value in entries.items():
        if isinstance(value, dict):
            yield from _sizes(value, inside or name == "heads")
        elif (inside and type(value) is int) or (_SIZE.fullmatch(name) and type(value) in (int, float)):
            yield name, value
        elif _SIZE.fullmatch(name) and isinstance(value, list):
            yield from ((name, one) for one in value if type(one) in (int, float))
