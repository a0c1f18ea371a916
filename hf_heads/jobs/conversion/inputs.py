"""What `hf_heads.convert` is given: checked, and calibration turned into batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel

from hf_heads.attention.hosts.table import adapter_of
from hf_heads.core.batches import Batch
from hf_heads.core.errors import HeadsError
from hf_heads.core.vocabulary import NONE, RANDOM
from hf_heads.io.data.calibration import continue_texts, finished_batches, load_data
from hf_heads.io.data.encoding import ENCODE

# `random` (made from nothing), `none` (the weights alone), what `datasets` loads, texts, or batches.
Calibration = str | Path | Sequence[str] | Sequence[Batch] | None


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
        source = None if given == RANDOM else str(given)
        data = load_data(source, model.config, origin, seed=seed, generate=generate)
        return data.batches, data.description
    if isinstance(given, Tensor | Mapping) or not isinstance(given, Sequence):
        raise HeadsError(
            f"calibration is a {type(given).__name__}, expected batches: a list of what a tokenizer returns with "
            "return_tensors='pt', or texts, a data file, 'random' or 'none'"
        )
    if not given:
        raise HeadsError("the calibration data is empty")
    if all(isinstance(one, str) for one in given):
        examples = ENCODE[adapter_of(model.config).modality](list(given), origin)
        return finished_batches(examples, model.config, generate), f"{len(given)} given texts"
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
        positions = getattr(model.config, "max_position_embeddings", None)
        ids = batch.get("input_ids")
        if positions is not None and ids is not None and ids.shape[-1] > positions:
            raise HeadsError(f"{what}[{index}] has {ids.shape[-1]} tokens, the model {positions} positions: cut it")
        batches.append(batch)
    return batches
