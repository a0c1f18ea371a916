"""Calibration data: whatever `datasets` loads, or made from nothing, as batches of a model's forward arguments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from hf_heads.attention.hosts.table import adapter_of
from hf_heads.core.batches import Batch
from hf_heads.core.errors import HeadsError
from hf_heads.core.vocabulary import NONE, RANDOM
from hf_heads.io.checkpoints.sources import Source
from hf_heads.io.data.batching import make_batches, with_targets
from hf_heads.io.data.choice import CalibrationChoice
from hf_heads.io.data.encoding import ENCODE
from hf_heads.io.data.labelled import load_labelled
from hf_heads.io.data.made import MADE, made_examples
from hf_heads.io.data.reading import read_examples

HELD_OUT = 64


@dataclass(frozen=True)
class Data:
    """Batches to calibrate on and batches to measure on.

    Attributes:
        batches: for the statistics.
        held_out: for measuring drift; no example of `batches` is among them. Empty where there are too few.
        description: what the data is, for reports.
    """

    batches: list[Batch]
    held_out: list[Batch]
    description: str


def load_data(
    source: str | None,
    config: Any,
    folder: Path | str | None,
    *,
    columns: Sequence[str] | None = None,
    label: str | None = None,
    samples: int = CalibrationChoice.samples,
    seed: int = CalibrationChoice.seed,
    generate: Callable[[Batch], Tensor] | None = None,
) -> Data:
    """Calibration data for a model.

    Args:
        source: what `datasets` loads (a hub id, a data file, a folder of images), or None for data made from nothing.
        config: the model's config.
        folder: where its tokenizer or image processor is, a folder or hub id; None where nobody knows.
        columns: the columns to read; found when None.
        label: a column that is not to be read.
        samples: how many examples to calibrate on; a few more are read to measure on.
        seed: of the choice of examples, or of the made data.
        generate: for text-to-text models, target ids for a batch of sources, where the data has no targets.

    Raises:
        HeadsError: the data cannot be found or read, has no such column, or is empty.
    """
    adapter = adapter_of(config)
    if samples < 1:
        raise HeadsError(f"{samples} samples are not positive")
    if source is None:
        examples = made_examples(config, folder, samples + HELD_OUT, seed)
        description = f"{samples} {MADE[adapter.modality]}, seed {seed}"
    else:
        raw, used = read_examples(source, columns, adapter.modality, samples + HELD_OUT, seed, label)
        examples = ENCODE[adapter.modality](raw, folder)
        kept = len(examples) - min(HELD_OUT, len(examples) // 4)
        description = f"{min(samples, kept)} examples of {Path(source).name} ({', '.join(used)}), seed {seed}"
    held = min(HELD_OUT, len(examples) // 4)
    held_out, examples = examples[len(examples) - held :], examples[: len(examples) - held]

    batches, apart = (finished_batches(chosen, config, generate) if chosen else [] for chosen in (examples, held_out))
    return Data(batches, apart, description)


def finished_batches(
    examples: list[dict[str, Any]], config: Any, generate: Callable[[Batch], Tensor] | None = None
) -> list[Batch]:
    """Batches of encoded examples, complete for the model's forward; see `load_data`."""
    batches = make_batches(examples, config)
    if adapter_of(config).modality == "text-to-text":
        batches = [with_targets(batch, config, generate) for batch in batches]
    return batches


_PROBE_SEED = 20_200_629  # no calibration seed that anybody would choose


def calibration_data(source: Source, model: PreTrainedModel, choice: CalibrationChoice) -> Data:
    """Batches for a model, its inputs alone.

    Raises:
        HeadsError: the choice is `none`, or see `load_data`.
    """
    if choice.source == NONE:
        raise HeadsError("inputs are needed: name data that `datasets` loads, or `random` for made ones")
    return load_data(
        None if choice.source == RANDOM else choice.source,
        model.config,
        source.folder,
        columns=choice.columns,
        label=choice.label,
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
    if choice.source in (RANDOM, NONE):
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
