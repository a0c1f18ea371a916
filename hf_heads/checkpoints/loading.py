"""A checkpoint's config and model, refused with a reason where they cannot be used."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, PreTrainedModel

from hf_heads.checkpoints.precision import check_precision
from hf_heads.checkpoints.sources import Source
from hf_heads.checkpoints.weights import Weights
from hf_heads.errors import HeadsError
from hf_heads.hosts.table import adapter_of
from hf_heads.modeling.auto_classes import auto_classes
from hf_heads.modeling.classes import check_loaded, model_class
from hf_heads.vocabulary import PREFIX


def read_config(source: Source) -> Any:
    """The config of a checkpoint, native or derived.

    Raises:
        HeadsError: it cannot be read, or its `heads` section makes no sense.
    """
    try:
        return AutoConfig.from_pretrained(source.folder)
    except HeadsError:
        raise
    except Exception as error:
        raise HeadsError(f"cannot read the config of '{source.given}': {' '.join(str(error).split())[:200]}") from None


def find_device(name: str) -> str:
    """The device that `name` means; `auto` is a GPU where there is one.

    Raises:
        HeadsError: it cannot be used.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise HeadsError(f"device '{name}' cannot be used: {str(error).splitlines()[0]}") from None
    return name


def load_source(source: Source, device: str = "cpu") -> PreTrainedModel:
    """The model of a checkpoint in float32, in the class that its config names, ready to run.

    Raises:
        HeadsError: unknown or unsupported architecture, unreadable config, quantized weights,
            missing or damaged attention weights.
    """
    check_precision(
        Weights(source.folder), source.given
    )  # says which file is damaged before transformers says something longer
    config = read_config(source)
    adapter = adapter_of(config)
    served = auto_classes(adapter)
    architecture = (config.architectures or [""])[0].removeprefix("Heads")
    native = getattr(adapter.modeling, architecture if architecture in served.values() else served["AutoModel"])
    cls = model_class(native) if config.model_type.startswith(PREFIX) else native
    try:
        model, info = cls.from_pretrained(source.folder, dtype=torch.float32, output_loading_info=True)
    except HeadsError:
        raise
    except Exception as error:
        raise HeadsError(f"cannot load '{source.given}': {' '.join(str(error).split())[:300]}") from None
    check_loaded(model, info)
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise HeadsError(f"'{name}' of '{source.given}' contains NaN or Inf; this checkpoint is damaged")
    return model.to(device).eval()
