"""What every attention block of a checkpoint is, from its config and the headers of its files."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, PreTrainedModel

from hf_heads.attention.hosts.blocks import find_blocks
from hf_heads.attention.hosts.reading import host_shape
from hf_heads.attention.hosts.table import adapter_of
from hf_heads.core.errors import HeadsError, reason
from hf_heads.io.checkpoints.json_files import read_json
from hf_heads.io.checkpoints.loading import empty_model, read_config
from hf_heads.io.checkpoints.plausible import check_sizes
from hf_heads.io.checkpoints.sources import Source
from hf_heads.io.checkpoints.tensors import tensor_names
from hf_heads.io.checkpoints.weights import Weights
from hf_heads.modeling.auto_classes import auto_classes, native_class
from hf_heads.modeling.blocks import beside, block_size, block_specs
from hf_heads.modeling.classes import model_class
from hf_heads.modeling.configuration import HeadsConfig, native_entries


def sizes(model: PreTrainedModel) -> dict[str, int]:
    """Parameters of the attention and of the model, and numbers cached per token."""
    blocks = [block_size(block) for block in find_blocks(model)]
    return {
        "attention_parameters": sum(parameters for parameters, _ in blocks),
        "model_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "cache_per_token": sum(cache for _, cache in blocks),
    }


def inspect(source: Source) -> dict[str, Any]:
    """What every attention block of a checkpoint is, from its config and the headers of its files alone.

    Raises:
        HeadsError: the checkpoint cannot be read, or its tensors have not the sizes that its config says.
    """
    weights = Weights(source.folder)
    config = read_config(source)
    adapter = adapter_of(config)
    check_sizes(read_json(source.folder / "config.json", "config"), weights, source.given, lambda: 0)
    try:
        native_config = AutoConfig.for_model(adapter.model_type, **native_entries(config))
    except Exception as error:  # what a host's own class makes of an entry that ours leaves alone
        raise HeadsError(f"cannot read the config of '{source.given}': {reason(error)}") from None
    served = native_class(adapter, auto_classes(adapter)["AutoModel"])
    native = model = empty_model(served, native_config, source.given)
    if isinstance(config, HeadsConfig):
        model = empty_model(model_class(served), config, source.given)
    names = tensor_names(model, weights)
    hosts = {block.name: host_shape(block.module, block.site, block.output) for block in find_blocks(native)}
    rows = []
    for block in find_blocks(model):
        parameters, cache = block_size(block)
        kept = tuple(f".{name}" for name in beside(block))
        own = [name for name in names.by_block.get(block.name, []) if not kept or not name.endswith(kept)]
        stored = sum(torch.Size(weights.shape(name)).numel() for name in own)
        if stored != parameters:
            raise HeadsError(
                f"{block.name} holds {stored} numbers in the files, but its settings in config.json make {parameters}"
            )
        spec = block_specs(model).get(block.name)
        shape = hosts[block.name]
        rows.append(
            {
                "name": block.name,
                "kind": block.kind,
                "method": spec.method if spec else "standard",
                **(spec.to_config() if spec else {"heads": shape.heads}),
                "parameters": parameters,
                "parameters_before": shape.parameters,
                "cache": cache,
                "cache_before": shape.cache_per_token,
            }
        )
    return {"source": source.given, "model_type": config.model_type, "blocks": rows}
