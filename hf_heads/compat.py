"""What transformers 5 took away or is about to, under the old names: old code changes one import."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hf_heads.attention.hosts.blocks import find_blocks
from hf_heads.attention.hosts.reading import host_heads
from hf_heads.attention.spec import HeadsSpec
from hf_heads.core.errors import HeadsError
from hf_heads.core.vocabulary import NONE
from hf_heads.jobs.conversion.convert import convert
from hf_heads.jobs.scoring.masks import find_block
from hf_heads.methods.pruned import PrunedSpec
from hf_heads.modeling.blocks import block_shape, block_specs


def find_pruneable_heads_and_indices(
    heads: Iterable[int], n_heads: int, head_size: int, already_pruned_heads: Iterable[int]
) -> tuple[set[int], torch.LongTensor]:
    """The requested heads that are still there, and the rows that stay when they go.

    Args:
        heads: heads to prune, by their numbers in the layer before any pruning.
        n_heads: heads that the layer has now.
        head_size: rows of each head.
        already_pruned_heads: heads that are gone, by the same original numbers.

    Returns:
        the heads of `heads` that are not gone yet, and (rows that stay,) the rows' positions in the layer as it is now.

    Raises:
        HeadsError: the layer never had such a head, or the numbers of heads do not add up.
    """
    wanted, gone = set(heads), set(already_pruned_heads)
    originally = n_heads + len(gone)
    if strange := sorted(head for head in wanted | gone if not 0 <= head < originally):
        raise HeadsError(
            f"no head {strange[0]}: with {n_heads} heads and {len(gone)} pruned before, heads are 0 to "
            f"{originally - 1}; give original numbers, and the number of heads that are left as n_heads"
        )
    present = [head for head in range(originally) if head not in gone]  # position now -> original number
    stays = torch.tensor([head not in wanted for head in present], dtype=torch.bool)
    index = stays.repeat_interleave(head_size).nonzero().flatten()
    return wanted - gone, cast(torch.LongTensor, index)


def prune_linear_layer(layer: nn.Linear, index: Tensor, dim: int = 0) -> nn.Linear:
    """A new Linear with only the outputs (`dim` 0) or only the inputs (`dim` 1) that `index` names, in its order.

    The bias is indexed with the outputs and kept whole with the inputs. `layer` stays as it is; the new parameters are
    copies on its device, in its dtype, and require gradients.

    Raises:
        HeadsError: `dim` is neither 0 nor 1.
    """
    weight, bias = _selected(layer.weight, layer.bias, index, dim, output_dim=0)
    # Made on the meta device: there is nothing to initialize, and no random numbers are drawn.
    pruned = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    pruned.weight = weight
    if bias is not None:
        pruned.bias = bias
    return pruned.train(layer.training)


def prune_conv1d_layer(layer: Conv1D, index: Tensor, dim: int = 1) -> Conv1D:
    """A new Conv1D (GPT-2's transposed Linear) with only the outputs (`dim` 1) or the inputs (`dim` 0) in `index`.

    All else is as in `prune_linear_layer`.

    Raises:
        HeadsError: `dim` is neither 0 nor 1.
    """
    weight, bias = _selected(layer.weight, layer.bias, index, dim, output_dim=1)
    pruned = Conv1D(0, 0)  # empty, so that no random numbers are drawn
    pruned.nx, pruned.nf = weight.shape
    pruned.weight, pruned.bias = weight, bias
    return pruned.train(layer.training)


def prune_layer(layer: nn.Module, index: Tensor, dim: int | None = None) -> nn.Module:
    """Prune a Linear or a Conv1D; without `dim`, its outputs.

    Raises:
        HeadsError: `layer` is of another class, or `dim` is neither 0 nor 1.
    """
    if isinstance(layer, nn.Linear):
        return prune_linear_layer(layer, index, 0 if dim is None else dim)
    if isinstance(layer, Conv1D):
        return prune_conv1d_layer(layer, index, 1 if dim is None else dim)
    raise HeadsError(f"cannot prune a layer of class {type(layer).__name__}; give an nn.Linear or a Conv1D")


def _selected(
    weight: Tensor, bias: Tensor | None, index: Tensor, dim: int, output_dim: int
) -> tuple[nn.Parameter, nn.Parameter | None]:
    """Copies of a layer's parameters, `index` kept along `dim`; a bias goes with the outputs."""
    if dim not in (0, 1):
        raise HeadsError(f"dim {dim} of a layer's weight; give 0 or 1")
    index = index.to(weight.device)
    kept = weight.detach().index_select(dim, index)
    if bias is None:
        return nn.Parameter(kept), None
    bias = bias.detach()
    return nn.Parameter(kept), nn.Parameter(bias.index_select(0, index) if dim == output_dim else bias.clone())


def prune_heads(model: PreTrainedModel, heads_to_prune: Mapping[int | str, Iterable[int]]) -> None:
    """Remove heads of a model in place, as the method of that name did up to transformers 4.

    The model becomes one of ours (its class is then `HeadsBertModel`, say), and can be saved and loaded as such. Heads
    keep the numbers that they had before any pruning; those that are gone already are passed over. An optimizer that
    holds the model's parameters must be made anew.

    Args:
        model: a model of an architecture with an adapter.
        heads_to_prune: block -> heads to remove. A number is the self-attention of the layer with that number; other
            blocks go by their names, `decoder.layers.0.encoder_attn`.

    Raises:
        HeadsError: a layer or a head that does not exist, or a block that another method has converted.
    """
    blocks, before = find_blocks(model), block_specs(model)
    specs: dict[str, HeadsSpec] = {}
    for key, heads in heads_to_prune.items():
        block = find_block(blocks, key)
        spec, shape = before.get(block.name), block_shape(block)
        present = spec.kept if isinstance(spec, PrunedSpec) and spec.kept is not None else tuple(range(shape.heads))
        originally = host_heads(block.module, block.site)
        if strange := [head for head in heads if not 0 <= head < originally]:
            raise HeadsError(f"{block.name} has no head {strange[0]}; its heads are 0 to {originally - 1}")
        kept = tuple(head for head in present if head not in set(heads))
        if kept != present:
            specs[block.name] = PrunedSpec(kept=kept)
    if specs:
        convert(model, specs, calibration=NONE, inplace=True)
