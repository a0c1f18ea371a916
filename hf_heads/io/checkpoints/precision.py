"""Precisions of a checkpoint's files: which can be converted, and what a model is once it is written in one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_heads.attention.hosts.blocks import find_blocks
from hf_heads.core.errors import HeadsError
from hf_heads.io.checkpoints.shelf import Shelf
from hf_heads.io.checkpoints.tensors import TensorNames
from hf_heads.io.checkpoints.weights import Weights, pieces

_TAKEN = {"F64", "F32", "F16", "BF16"}
COUNTS = ("_ids", "num_batches_tracked")  # buffers of whole numbers, which are no weights


def check_precision(weights: Weights, given: str) -> Weights:
    """The weights, unless they are quantized: their scales would be lost, and rounding again would change them.

    Raises:
        HeadsError: names the first tensor of integers or of float8.
    """
    for name in weights:
        kind = weights.kind(name)
        if kind not in _TAKEN and not name.endswith(COUNTS):
            raise HeadsError(
                f"'{name}' of '{given}' is {kind}: quantized checkpoints cannot be used; take the original in float32, "
                "bfloat16 or float16, and quantize what comes out"
            )
    return weights


def round_as_written(
    model: PreTrainedModel,
    names: TensorNames,
    weights: Weights,
    *,
    whole: bool = False,
    dtype: torch.dtype | None = None,
    shelf: Shelf | None = None,
) -> None:
    """Give a model the numbers that `write_checkpoint` writes, in the dtype that it has; shared tensors stay.

    Args:
        model: converted, in place.
        names, weights: of the source's files.
        whole: whether all tensors are written from the model, not its blocks alone.
        dtype: what floating-point tensors are written in; as in the source when None.
        shelf: where the model's weights are, if on one.

    Raises:
        HeadsError: names a tensor that overflows.
    """
    steps: dict[int, tuple[str, list[torch.dtype]]] = {}
    for block in find_blocks(model):
        for part in (block.module, block.output):
            for name, tensor in [*part.named_parameters(), *part.named_buffers()]:
                steps[id(tensor)] = (f"{block.name}.{name}", [names.dtypes[block.name]])
    tensors = dict([*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)])
    for name, inner in names.inner.items():
        if inner in tensors and (whole or dtype is not None):
            steps[id(tensors[inner])] = (name, [weights[name].dtype] if whole else [])
    rounded: dict[int, Tensor] = {}
    for module in model.modules():
        stores: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for held in stores:
            for key, tensor in held.items():
                if tensor is None or id(tensor) not in steps or not tensor.is_floating_point():
                    continue
                if id(tensor) not in rounded:
                    name, kinds = steps[id(tensor)]
                    found = _rounded(name, tensor.detach(), [*kinds, *([] if dtype is None else [dtype])])
                    if shelf is not None:
                        shelf.touched([tensor])
                        found = shelf.keep({name: found})[name] if found.data_ptr() != tensor.data_ptr() else found
                    parameter = isinstance(tensor, nn.Parameter)
                    rounded[id(tensor)] = nn.Parameter(found, tensor.requires_grad) if parameter else found
                held[key] = rounded[id(tensor)]


def _rounded(name: str, tensor: Tensor, kinds: list[torch.dtype]) -> Tensor:
    """A tensor after casts to some precisions and back."""
    found = tensor
    for kind in kinds:
        found = found.to(kind)
        if not all(map(_equally_finite, pieces(found), pieces(tensor))):
            short = str(kind).removeprefix("torch.")
            raise HeadsError(
                f"'{name}' overflows in {short}, which ends at {torch.finfo(kind).max:.4g}: its largest number is "
                f"{float(tensor.abs().max()):.4g}; write --dtype bfloat16 or float32"
            )
    return found.to(tensor.dtype)


def _equally_finite(here: Tensor, there: Tensor) -> bool:
    return torch.equal(here.isfinite(), there.isfinite())
