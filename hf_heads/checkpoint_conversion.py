"""Conversion from checkpoint to checkpoint: what is no attention goes from file to file, by name and bit by bit."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from . import auto
from .adapters import adapter_of, base_prefix, find_blocks
from .calibration import share_weights
from .checkpoint import Source, Weights, copy_companions, finished_folder, write_weights
from .configuration import PREFIX
from .conversion import Progress, Report, choose_blocks, convert
from .data import HELD_OUT, Batch, Data, load_data
from .drift import measure_drift
from .errors import HeadsError
from .labelled import load_labelled
from .methods import HeadsSpec
from .report import write_card

REPORT = "heads_report.json"
RANDOM = "random"
_PROBE_SEED = 20_200_629  # no calibration seed that anybody would choose


@dataclass(frozen=True)
class CalibrationChoice:
    """What to calibrate on.

    Attributes:
        source: `random` (made from nothing), `none` (weights only) or what `datasets` loads.
        columns: columns to read; found when None.
        label: the column with labels, where they are needed; found when None.
        samples: number of examples.
        seed: of the choice of examples and of made data.
    """

    source: str = RANDOM
    columns: tuple[str, ...] | None = None
    label: str | None = None
    samples: int = 512
    seed: int = 0


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


def load_source(source: Source, device: str = "cpu") -> PreTrainedModel:
    """The model of a checkpoint in float32, in the class that its config names, ready to run.

    Raises:
        HeadsError: unknown or unsupported architecture, unreadable config, missing or damaged attention weights.
    """
    Weights(source.folder)  # says which file is damaged before transformers says something longer
    config = read_config(source)
    adapter = adapter_of(config)
    served = auto.auto_classes(adapter)
    architecture = (config.architectures or [""])[0].removeprefix("Heads")
    native = getattr(adapter.modeling, architecture if architecture in served.values() else served["AutoModel"])
    cls = auto.model_class(native) if config.model_type.startswith(PREFIX) else native
    try:
        model, info = cls.from_pretrained(source.folder, dtype=torch.float32, output_loading_info=True)
    except HeadsError:
        raise
    except Exception as error:
        raise HeadsError(f"cannot load '{source.given}': {' '.join(str(error).split())[:300]}") from None
    auto.check_loaded(model, info)
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise HeadsError(f"'{name}' of '{source.given}' contains NaN or Inf; this checkpoint is damaged")
    return model.to(device).eval()


def calibration_data(source: Source, model: PreTrainedModel, choice: CalibrationChoice) -> Data:
    """Batches for a model by a `CalibrationChoice` other than `none`."""
    return load_data(
        None if choice.source == RANDOM else choice.source,
        model.config,
        source.folder,
        columns=choice.columns,
        samples=choice.samples,
        seed=choice.seed,
        generate=partial(continue_texts, model) if hasattr(model, "generate") else None,
    )


def continue_texts(model: PreTrainedModel, batch: Batch) -> Tensor:
    """What a text-to-text model makes of a batch of sources, greedily, start token included: (batch, length)."""
    length = min(batch["input_ids"].shape[1] + 8, model.config.max_position_embeddings - 1)
    inputs = {name: value.to(model.device) for name, value in batch.items()}
    return model.generate(**inputs, do_sample=False, num_beams=1, max_new_tokens=length).cpu()  # type: ignore[operator]


def labelled_batches(source: Source, model: PreTrainedModel, choice: CalibrationChoice) -> list[Batch]:
    """Batches with labels for a model's own loss.

    Raises:
        HeadsError: see `load_labelled`; or the data is none that could have labels.
    """
    if choice.source in (RANDOM, "none"):
        raise HeadsError("labels are needed: name labelled data with --calibrate SRC, or take a rule without labels")
    return load_labelled(
        choice.source,
        model,
        source.folder,
        columns=choice.columns,
        label=choice.label,
        samples=choice.samples,
        seed=choice.seed,
    )


def probes(source: Source, model: PreTrainedModel) -> list[Batch]:
    """The inputs that every conversion's drift is measured on: made from nothing, the same for ever."""
    return calibration_data(source, model, CalibrationChoice(samples=HELD_OUT, seed=_PROBE_SEED)).batches


def convert_checkpoint(
    source: Source,
    spec: HeadsSpec | dict[str, HeadsSpec],
    output: Path,
    *,
    calibration: CalibrationChoice | None = None,
    blocks: str | None = None,
    refit: bool = True,
    overwrite: bool = False,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
    recipe: str | None = None,
    progress: Progress | None = None,
) -> Report:
    """Convert a checkpoint folder into another one.

    Args:
        source: from `resolve_source`.
        spec: settings for all blocks, or by block name patterns.
        output: the folder to make; it appears when it is complete.
        calibration: what to calibrate on; data made from nothing when None.
        blocks: which blocks to convert, see `hf_heads.convert`.
        refit: refit output projections.
        overwrite: replace `output` if it exists.
        device: where to run.
        dtype: of the weights written; as in the source when None.
        recipe: text of the recipe that asked for this, for the model card.
        progress: called with (what, done, total).

    Raises:
        HeadsError: see `load_source`, `load_data`, `convert` and `finished_folder`.
    """
    started = time.perf_counter()
    choice = calibration or CalibrationChoice()
    with finished_folder(output, overwrite) as folder:
        if progress:
            progress("loading", 0, 1)
        model = load_source(source, device)
        chosen = choose_blocks(model, spec, blocks)  # says what does not fit before the data takes its time
        names = tensor_names(model, Weights(source.folder))
        labelled = None
        if any(one.needs_labels() for _, one in chosen.values()):
            labelled = labelled_batches(source, model, choice)
        if not any(one.uses_data() for _, one in chosen.values()):
            choice = replace(choice, source="none")
        data = None if choice.source == "none" else calibration_data(source, model, choice)
        original = share_weights(model)
        converted, report = convert(
            model,
            spec,
            calibration=None if data is None else data.batches,
            labelled=labelled,
            seed=choice.seed,
            blocks=blocks,
            refit=refit,
            inplace=True,
            progress=progress,
        )
        used = "none, weights only" if data is None else data.description
        choices = sorted({one.choice() for _, one in chosen.values()} - {""})
        report.calibration = "; ".join([used, *choices])
        report.drift = {RANDOM: measure_drift(converted, original, probes(source, original)).to_dict()}
        if choice.source != RANDOM and data is not None and data.held_out:
            report.drift["held-out"] = measure_drift(converted, original, data.held_out).to_dict()
        if progress:
            progress("writing", 0, 1)
        _write(folder, source, converted, names, dtype)
        report.seconds = time.perf_counter() - started
        record = {
            "source": source.given,
            "revision": source.revision,
            "calibration_choice": {**vars(choice), "columns": list(choice.columns) if choice.columns else None},
            "recipe": recipe,
            **report.to_dict(),
        }
        write_card(folder, source, record, recipe)
        (folder / REPORT).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        converted.config.save_pretrained(folder)  # last: a folder without a config is no checkpoint
    return report


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


def _write(folder: Path, source: Source, model: PreTrainedModel, names: TensorNames, dtype: torch.dtype | None) -> None:
    copy_companions(source.folder, folder)
    weights = Weights(source.folder)
    new = dict(block_tensors(model, names))
    everything = sorted([*names.outside, *new])
    write_weights(folder, everything, lambda name: new[name] if name in new else weights[name], dtype)
    kept = dtype or next(iter(names.dtypes.values()))
    model.config.dtype = kept


def default_output(source: Source, spec: HeadsSpec) -> Path:
    """A folder name that says what it holds, such as `bert-base-uncased-collab-256`."""
    parts = [source.name, spec.method]
    for item in fields(spec):
        value = getattr(spec, item.name)
        if not item.metadata["command"] or value == item.default:
            continue
        plain = item.name == "rank" or isinstance(value, str)
        text = Path(value).stem if item.name == "scores" else str(value)
        parts.append(text if plain else item.name if value is True else f"{item.name}-{text}")
    return Path("-".join(parts))
