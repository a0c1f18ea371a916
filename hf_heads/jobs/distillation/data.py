"""Examples to heal on: what `datasets` loads, encoded one by one, and batches of them as both models take them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from hf_heads.attention.hosts.table import adapter_of
from hf_heads.core.batches import Batch, Progress
from hf_heads.core.errors import HeadsError
from hf_heads.core.vocabulary import NONE, RANDOM
from hf_heads.io.data.batching import collate, make_batches, with_targets
from hf_heads.io.data.calibration import CalibrationChoice, continue_texts
from hf_heads.io.data.encoding import ENCODE
from hf_heads.io.data.labelled import finish_labelled, labelled_examples
from hf_heads.io.data.made import made_examples
from hf_heads.io.data.reading import read_examples

HELD_OUT = 256
_GENERATED = 64  # sources translated at a time
SAMPLES = {"text": 20_000, "text-to-text": 20_000, "image": 5_000}


@dataclass(frozen=True)
class HealingData:
    """What a model is healed on.

    Attributes:
        examples: to learn from.
        held_out: batches to measure on; no example of `examples` is among them, nor a copy of one.
        collate: makes a batch of examples.
        description: what the data is, for reports.
    """

    examples: list[dict[str, Any]]
    held_out: list[Batch]
    collate: Callable[[list[dict[str, Any]]], Batch]
    description: str


def load_healing(
    choice: CalibrationChoice,
    teacher: PreTrainedModel,
    folder: Path,
    *,
    labels: bool = False,
    held_out: int = HELD_OUT,
    progress: Progress | None = None,
) -> HealingData:
    """Data to heal on.

    Args:
        choice: what to read; `samples` counts the examples to learn from.
        teacher: the original; where the data of a text-to-text model has no targets, it writes them.
        folder: where its tokenizer or image processor is.
        labels: read labels for the model's own loss, see `load_labelled`.
        held_out: how many examples to hold out at most; a tenth where there are few.
        progress: called with (what, done, total).

    Raises:
        HeadsError: the data cannot be read, or is none that anything can be learned from.
    """
    if choice.source == NONE:
        raise HeadsError("healing needs data; name it with --data SRC")
    config, modality = teacher.config, adapter_of(teacher.config).modality
    wanted = choice.samples + held_out
    if labels:
        if choice.source == RANDOM:
            raise HeadsError("made data has no labels; name labelled data with --data SRC")
        examples = labelled_examples(
            choice.source,
            teacher,
            folder,
            columns=choice.columns,
            label=choice.label,
            samples=wanted,
            seed=choice.seed,
        )
        used = "labelled"
    elif choice.source == RANDOM:
        examples, used = made_examples(config, folder, wanted, choice.seed), "made from nothing"
    else:
        raw, columns = read_examples(choice.source, choice.columns, modality, wanted, choice.seed, choice.label)
        raw = raw if modality == "image" else list(dict.fromkeys(raw))
        if not raw:
            raise HeadsError(f"no row of '{choice.source}' has texts in both columns, {' and '.join(columns)}")
        examples, used = ENCODE[modality](raw, folder), ", ".join(columns)
    if modality == "text-to-text" and "target_ids" not in examples[0]:
        examples = own_targets(teacher, examples, progress)
        used += ", targets by the original"
    count = min(held_out, len(examples) // 10)
    if count < 1:
        raise HeadsError(f"{len(examples)} examples are too few to heal on; give 10 at least")
    held, examples = examples[len(examples) - count :], examples[: min(len(examples) - count, choice.samples)]

    def finish(batch: Batch) -> Batch:
        if labels:
            return finish_labelled(batch, teacher)
        return with_targets(batch, config, None) if modality == "text-to-text" else batch

    name = "random inputs" if choice.source == RANDOM else Path(choice.source).name
    return HealingData(
        examples,
        [finish(batch) for batch in make_batches(held, config)],
        lambda group: finish(collate(group, getattr(config, "pad_token_id", None) or 0)),
        f"{len(examples)} examples of {name} ({used}), seed {choice.seed}",
    )


def own_targets(
    model: PreTrainedModel, examples: list[dict[str, Any]], progress: Progress | None = None
) -> list[dict[str, Any]]:
    """The same examples with `target_ids`: what the model itself makes of the sources, greedily."""
    order = sorted(range(len(examples)), key=lambda index: len(examples[index]["input_ids"]))
    found: list[dict[str, Any]] = [{}] * len(examples)
    end, pad = model.config.eos_token_id, model.config.pad_token_id
    for begin in range(0, len(order), _GENERATED):
        if progress:
            progress("writing targets", begin, len(order))
        part = order[begin : begin + _GENERATED]
        sources = [{"input_ids": examples[index]["input_ids"]} for index in part]
        for index, ids in zip(part, continue_texts(model, collate(sources, pad or 0))[:, 1:].tolist(), strict=True):
            ids = ids[: ids.index(end) + 1] if end in ids else [token for token in ids if token != pad]
            found[index] = {**examples[index], "target_ids": ids}
    return found
