"""How the names of tensors in a checkpoint's files and in a model belong together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hf_heads.attention.hosts.blocks import find_blocks
from hf_heads.io.checkpoints.weights import Weights
from hf_heads.modeling.internals import KeyNames


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


def tensor_names(model: PreTrainedModel, weights: Weights) -> TensorNames:
    """Sort the tensors of a checkpoint's files by the attention blocks of the model that was loaded from it."""
    keys = KeyNames.of(model)
    in_model = {name: keys.in_model(name) for name in weights}
    owners = {}
    for block in find_blocks(model):
        owners[block.path + "."] = block.name
        owners[block.output_path + "."] = block.name
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
            written = keys.in_file(inner)
            if name.endswith(written):
                added = name.removesuffix(written)
            elif written.endswith(name):
                stripped = written.removesuffix(name)
    return TensorNames(outside, by_block, added, stripped, dtypes, {name: in_model[name] for name in outside})


Written = tuple[str, Tensor, torch.dtype]  # a name in the files, a tensor of the model, and what it is written as


def block_tensors(model: PreTrainedModel, names: TensorNames) -> Iterator[Written]:
    """The tensors of a converted model's blocks under the names that belong into the files."""
    keys = KeyNames.of(model)
    for block in find_blocks(model):
        tensors = {f"{block.path}.{name}": tensor for name, tensor in block.module.state_dict().items()}
        tensors.update({f"{block.output_path}.{name}": tensor for name, tensor in block.output.state_dict().items()})
        for inner, tensor in tensors.items():
            name = keys.in_file(inner).removeprefix(names.strip)
            yield names.prefix + name, tensor, names.dtypes[block.name]


def whole_tensors(model: PreTrainedModel, names: TensorNames, weights: Weights) -> Iterator[Written]:
    """The tensors of all of a converted model under the names that belong into the files."""
    yield from block_tensors(model, names)
    state = model.state_dict()
    for name, inner in names.inner.items():
        if inner in state:
            yield name, state[inner], weights[name].dtype
