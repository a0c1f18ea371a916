"""How the names of tensors in a checkpoint's files and in a model belong together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from hf_heads.checkpoints.weights import Weights
from hf_heads.hosts.blocks import base_prefix, find_blocks


@dataclass(frozen=True)
class TensorNames:
    """How the names in a checkpoint's files and in a model belong together.

    Attributes:
        outside: names in the files of all tensors that belong to no attention block, in their order.
        by_block: for every block, the names in the files of its tensors, output projection included.
        prefix: what the names in the files have in front, or lack, against those that transformers would write.
        strip: see `prefix`.
        dtypes: for every block, the dtype of its tensors in the files.
        inner: what the model calls the tensors of `outside`.
    """

    outside: list[str]
    by_block: dict[str, list[str]]
    prefix: str
    strip: str
    dtypes: dict[str, torch.dtype]
    inner: dict[str, str]


def _transforms(model: PreTrainedModel, reverse: bool) -> tuple[list[Any], list[Any]]:
    transforms = get_model_conversion_mapping(model, add_legacy=not reverse)
    if reverse:
        transforms = [transform.reverse_transform() for transform in transforms[::-1]]
    return tuple(  # type: ignore[return-value]
        [transform for transform in transforms if isinstance(transform, kind)]
        for kind in (WeightRenaming, WeightConverter)
    )


def tensor_names(model: PreTrainedModel, weights: Weights) -> TensorNames:
    """Sort the tensors of a checkpoint's files by the attention blocks of the model that was loaded from it."""
    renamings, converters = _transforms(model, reverse=False)
    back_renamings, back_converters = _transforms(model, reverse=True)
    state = model.state_dict()
    in_model = {
        name: rename_source_key(name, renamings, converters, model.base_model_prefix, state)[0] for name in weights
    }
    prefix = base_prefix(model)
    owners = {}
    for block in find_blocks(model):
        owners[prefix + block.name + "."] = block.name
        owners[block.site.output_name(prefix + block.name) + "."] = block.name
    by_block: dict[str, list[str]] = {name: [] for name in owners.values()}
    outside, added, stripped, dtypes = [], "", "", {}
    for name, inner in in_model.items():
        owner = next((block for start, block in owners.items() if inner.startswith(start)), None)
        if owner is None:
            outside.append(name)
            continue
        by_block[owner].append(name)
        if owner not in dtypes:
            dtypes[owner] = weights[name].dtype
            written = rename_source_key(inner, back_renamings, back_converters, reverse=True)[0]
            if name.endswith(written):
                added = name.removesuffix(written)
            elif written.endswith(name):
                stripped = written.removesuffix(name)
    return TensorNames(outside, by_block, added, stripped, dtypes, {name: in_model[name] for name in outside})


def block_tensors(model: PreTrainedModel, names: TensorNames) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a converted model's blocks under the names that belong into the files."""
    renamings, converters = _transforms(model, reverse=True)
    prefix = base_prefix(model)
    for block in find_blocks(model):
        tensors = {f"{prefix}{block.name}.{name}": tensor for name, tensor in block.module.state_dict().items()}
        output = block.site.output_name(prefix + block.name)
        tensors.update({f"{output}.{name}": tensor for name, tensor in block.output.state_dict().items()})
        for inner, tensor in tensors.items():
            name = rename_source_key(inner, renamings, converters, reverse=True)[0].removeprefix(names.strip)
            yield names.prefix + name, tensor.to(names.dtypes[block.name])


def whole_tensors(model: PreTrainedModel, names: TensorNames, weights: Weights) -> Iterator[tuple[str, Tensor]]:
    """The tensors of all of a converted model under the names that belong into the files."""
    yield from block_tensors(model, names)
    state = model.state_dict()
    for name, inner in names.inner.items():
        if inner in state:
            yield name, state[inner].to(weights[name].dtype)
