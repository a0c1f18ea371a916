"""What `hf_heads.convert` is given: checked, and calibration turned into batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from hf_heads.attention.hosts.table import adapter_of, positions_of
from hf_heads.core.batches import Batch
from hf_heads.core.errors import HeadsError
from hf_heads.core.vocabulary import NONE
from hf_heads.io.data.calibration import continue_texts, finished_batches, load_data
from hf_heads.io.data.choice import CalibrationChoice
from hf_heads.io.data.encoding import ENCODE
from hf_heads.io.data.lengths import count_cut, text_limit

# `random` (made from nothing), `none` (the weights alone), what `datasets` loads, a choice that says more of it, texts,
# pairs of texts (two segments, or source and target), or batches.
Calibration = str | Path | CalibrationChoice | Sequence[str] | Sequence[tuple[str, str]] | Sequence[Batch] | None


def check_model(model: object) -> None:
    """Refuse what is no model of transformers in memory.

    Raises:
        HeadsError: says what to do with what was given.
    """
    if isinstance(model, str | Path):
        raise HeadsError(
            f"convert takes a model in memory, not '{model}': load it with AutoModel.from_pretrained('{model}'), or "
            "convert the checkpoint with hf_heads.convert_checkpoint"
        )
    if not isinstance(model, PreTrainedModel):
        raise HeadsError(f"convert takes a model of transformers, not {type(model).__name__}")


def calibration_batches(model: PreTrainedModel, given: Calibration, seed: int) -> tuple[list[Batch] | None, str]:
    """Batches of a model's forward arguments (None for the weights alone), and what they are, for reports.

    Texts and made data take the tokenizer of the folder or hub id that the model was loaded from.

    Raises:
        HeadsError: the data is empty, cannot be read, or is none of what `Calibration` allows.
    """
    if given is None or (isinstance(given, str) and given == NONE):
        return None, "none, weights only"
    origin = model.name_or_path or None
    generate = partial(continue_texts, model) if hasattr(model, "generate") else None
    if isinstance(given, str | Path):
        given = CalibrationChoice(str(given), seed=seed)
    if isinstance(given, CalibrationChoice):
        if given.source == NONE:
            return None, "none, weights only"
        data = load_data(given, model, origin, generate=generate, enough=True)
        return data.batches, data.description
    if isinstance(given, Tensor | Mapping) or not isinstance(given, Sequence):
        raise HeadsError(
            f"calibration is a {type(given).__name__}, expected batches: a list of what a tokenizer returns with "
            "return_tensors='pt', or texts, pairs of texts, a data file, 'random' or 'none'"
        )
    if not given:
        raise HeadsError("the calibration data is empty")
    two = [isinstance(one, tuple | list) and [type(part) for part in one] == [str, str] for one in given]
    if all(two) or all(isinstance(one, str) for one in given):
        modality, what = adapter_of(model.config).modality, "pairs" if all(two) else "texts"
        if modality not in ("text", "text-to-text"):
            raise HeadsError(f"calibration is a list of {what}, and the model takes {modality}: give batches")
        raw: list[Any] = [tuple(one) for one in given] if all(two) else list(given)
        positions = positions_of(model.config)
        limit = text_limit(origin, None, positions)
        cut = count_cut(raw, origin, limit)
        said = f"{len(given)} given {what}" + (f", {cut} of them cut at {limit} tokens" if cut else "")
        return finished_batches(ENCODE[modality](raw, origin, limit), model.config, generate), said
    return checked_batches(model, list(given), "calibration"), "given batches"


def checked_batches(model: PreTrainedModel, given: Sequence[object], what: str) -> list[Batch]:
    """Batches of a model's forward arguments.

    Args:
        model: who is to take them.
        given: from a user.
        what: the argument is called, for the errors.

    Raises:
        HeadsError: one is no dict of tensors, or has more tokens than the model positions.
    """
    batches: list[Batch] = []
    for index, batch in enumerate(given):
        if not isinstance(batch, Mapping) or not all(isinstance(value, Tensor) for value in batch.values()):
            raise HeadsError(
                f"{what}[{index}] is a {type(batch).__name__}, expected a batch: a dict of tensors by the names "
                "of the model's arguments, as a tokenizer returns with return_tensors='pt'"
            )
        positions = positions_of(model.config)
        ids = batch.get("input_ids")
        if positions is not None and ids is not None and ids.shape[-1] > positions:
            raise HeadsError(f"{what}[{index}] has {ids.shape[-1]} tokens, the model {positions} positions: cut it")
        batches.append(batch)
    return batches
