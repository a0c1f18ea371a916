"""A checkpoint's config and model, refused with a reason where they cannot be used."""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from warnings import warn

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel

from hf_heads.attention.hosts.table import adapter_of, refusal
from hf_heads.core.errors import HeadsError, HeadsWarning, reason
from hf_heads.core.vocabulary import PREFIX
from hf_heads.io.checkpoints.files import write_failure
from hf_heads.io.checkpoints.json_files import read_json
from hf_heads.io.checkpoints.plausible import check_entries, check_sizes
from hf_heads.io.checkpoints.precision import COUNTS, check_precision
from hf_heads.io.checkpoints.shelf import Shelf
from hf_heads.io.checkpoints.sources import Source, check_own_code
from hf_heads.io.checkpoints.weights import Weights, pieces
from hf_heads.io.checkpoints.writing import write_weights
from hf_heads.modeling.auto_classes import auto_classes, native_class, served_classes
from hf_heads.modeling.classes import model_class
from hf_heads.modeling.grafting import check_loaded


def read_config(source: Source) -> Any:
    """The config of a checkpoint, native or derived.

    Raises:
        HeadsError: it cannot be read, its `heads` section makes no sense, its sizes are none, or it is one of a part of
            a model.
    """
    entries = read_json(source.folder / "config.json", "config")
    check_entries(entries, source.given)
    try:
        config = AutoConfig.from_pretrained(source.folder, trust_remote_code=False)
    except HeadsError:
        raise
    except Exception as error:
        check_own_code(error, source.given)
        raise HeadsError(f"cannot read the config of '{source.given}': {' '.join(str(error).split())[:200]}") from None
    made = (config.architectures or [""])[0].removeprefix("Heads")
    if refusal(config) is None and made in (parts := dict(adapter_of(config).parts)):
        raise HeadsError(
            f"'{source.given}' holds a {made} alone, the {parts[made]} of a model: give the folder of the whole model"
        )
    return config


def empty_model(cls: Any, config: Any, given: str) -> Any:
    """A model without memory for its weights.

    Raises:
        HeadsError: the config makes none.
    """
    try:
        with torch.device("meta"):
            return cls(config)
    except HeadsError:
        raise
    except Exception as error:
        raise HeadsError(f"cannot make a model of the config of '{given}': {reason(error)}") from None


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


def load_source(source: Source, device: str = "cpu", shelf: Shelf | None = None) -> PreTrainedModel:
    """The model of a checkpoint in float32, in the class that its config names, ready to run.

    With a shelf its weights stay in files.

    Raises:
        HeadsError: unknown or unsupported architecture, unreadable config, tensors missing, damaged, left over or
            quantized.
    """
    config = read_config(source)
    # Says which file is damaged, or quantized, before transformers says something longer.
    weights = check_precision(Weights(source.folder), source.given)
    cls = _class_of(config)
    entries = read_json(source.folder / "config.json", "config")

    def count() -> int:
        return sum(one.numel() for one in empty_model(cls, config, source.given).parameters())

    check_sizes(entries, weights, source.given, count)
    model: Any = _load(cls, source, source.folder if shelf is None else _in_float32(source, weights, shelf))
    if shelf is not None:
        shelf.watch(model)
    for name, parameter in model.named_parameters():
        if not all(torch.isfinite(piece).all() for piece in _read(parameter, shelf)):
            raise HeadsError(f"'{name}' of '{source.given}' contains NaN or Inf; this checkpoint is damaged")
    return model.to(device).eval()


def _class_of(config: Any) -> Any:
    """The class that a config names, native or derived."""
    adapter = adapter_of(config)
    served = {name for names in served_classes(adapter).values() for name in names}
    architecture = (config.architectures or [""])[0].removeprefix("Heads")
    native = native_class(adapter, architecture if architecture in served else auto_classes(adapter)["AutoModel"])
    return model_class(native) if config.model_type.startswith(PREFIX) else native


def load_empty(source: Source) -> PreTrainedModel:
    """The model of a checkpoint without its weights, on the meta device: its class, config and sizes.

    Raises:
        HeadsError: see `read_config`; or the config makes none.
    """
    config = read_config(source)
    return empty_model(_class_of(config), config, source.given)


def _read(tensor: Tensor, shelf: Shelf | None) -> Iterator[Tensor]:
    """A tensor in parts; pages of those before are handed back where it is on a shelf."""
    for piece in pieces(tensor):
        if shelf is not None:
            shelf.read(piece)
        yield piece


def _in_float32(source: Source, weights: Weights, shelf: Shelf) -> Path:
    """A folder with a checkpoint's weights in float32, which transformers maps as they are; others it would copy."""
    kinds = {weights.kind(name) for name in weights if not name.endswith(COUNTS)}
    if kinds <= {"F32"} or 4 * sum(math.prod(weights.shape(name)) for name in weights) <= shelf.room:
        shelf.add_files(weights.file_of.values())
        return source.folder
    folder = shelf.folder / "float32"
    folder.mkdir()
    for name in ("config.json", "generation_config.json"):
        if (source.folder / name).is_file():
            shutil.copyfile(source.folder / name, folder / name)
    try:
        write_weights(folder, list(weights), weights.__getitem__, torch.float32, shelf.room, shelf)
    except (OSError, SafetensorError) as error:
        raise write_failure(shelf.output, error) from None
    shelf.add_files(Weights(folder).file_of.values())
    return folder


def _load(cls: type[PreTrainedModel], source: Source, folder: Path) -> PreTrainedModel:
    """The model of a checkpoint, all of whose tensors are its own, but for the heads of tasks.

    These start from the same random numbers whenever they are missing, lest two models differ by them.
    """
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            loaded: Any = cls.from_pretrained(
                folder,
                dtype=torch.float32,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # the error would not say which; `_check_complete` does
            )
    except HeadsError:
        raise
    except Exception as error:
        raise HeadsError(f"cannot load '{source.given}': {' '.join(str(error).split())[:300]}") from None
    model, info = loaded
    for part in model.modules():
        if isinstance(part, PreTrainedModel):
            part.name_or_path = part.config.name_or_path = str(source.folder)
    check_loaded(model, info, adapter_of(model.config))
    _check_complete(model, info, source.given)
    return model


def _check_complete(model: PreTrainedModel, info: dict[str, Any], given: str) -> None:
    """Refuse a model that is not what the files hold; warn where that is a head of a task.

    Raises:
        HeadsError: names the first tensor of the base model that is missing, left over or of another shape.
    """
    if info["mismatched_keys"]:
        name, found, wanted = min(info["mismatched_keys"])
        raise HeadsError(
            f"tensor '{name}' of '{given}' is {_shape(found)}, but its config.json makes it {_shape(wanted)}"
        )
    missing = sorted(name for name in info["missing_keys"] if not _computed(model, name))
    unexpected = sorted(info["unexpected_keys"])
    for name in missing:
        if not _in_head(model, name):
            raise HeadsError(f"tensor '{name}' is missing from '{given}'; this checkpoint is damaged")
    for name in unexpected:
        if not _in_head(model, name):
            raise HeadsError(f"tensor '{name}' of '{given}' has no place in the model that its config.json describes")
    kind = type(model).__name__
    if missing:
        warn(f"'{given}' lacks {_some(missing)} of {kind}; random numbers take their place", HeadsWarning, stacklevel=4)
    if unexpected:
        warn(f"'{given}' holds {_some(unexpected)}, which {kind} does not use", HeadsWarning, stacklevel=4)


def _computed(model: PreTrainedModel, name: str) -> bool:
    """Whether the host computes a tensor where it is missing, as one of its classes says of it."""
    kinds = [one for one in vars(adapter_of(model.config).modeling).values() if isinstance(one, type)]
    patterns = {one for kind in kinds for one in getattr(kind, "_keys_to_ignore_on_load_missing", None) or ()}
    return any(re.search(one, f"{model.base_model_prefix}.{name}") for one in patterns)


def _in_head(model: PreTrainedModel, name: str) -> bool:
    """Whether a tensor belongs to a head of a task or the pooler, by its name."""
    start = f"{model.base_model_prefix}."
    inside = name.removeprefix(start)
    child = inside.partition(".")[0]
    return child == "pooler" or not (name.startswith(start) or child in dict(model.base_model.named_children()))


def _shape(sizes: Sequence[int]) -> str:
    return " x ".join(map(str, sizes)) or "a single number"


def _some(names: Sequence[str]) -> str:
    return f"'{names[0]}'" + (f" and {len(names) - 1} more" if len(names) > 1 else "")
