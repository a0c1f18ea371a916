"""Examples to heal on: what `datasets` loads, encoded one by one, and batches of them as both models take them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from hf_heads.attention.hosts.sites import WRITES
from hf_heads.attention.hosts.table import adapter_of, positions_of
from hf_heads.core.batches import Batch, Progress
from hf_heads.core.errors import HeadsError
from hf_heads.core.vocabulary import NONE, RANDOM
from hf_heads.io.data.batching import collate, make_batches, pad_id, with_targets
from hf_heads.io.data.calibration import CalibrationChoice, continue_texts
from hf_heads.io.data.encoding import ENCODE
from hf_heads.io.data.labelled import finish_labelled, labelled_examples
from hf_heads.io.data.lengths import mixed_examples, text_limit
from hf_heads.io.data.made import made_examples
from hf_heads.io.data.pairs import pairing_of
from hf_heads.io.data.reading import read_examples
from hf_heads.io.data.written import cannot_write, is_language_model, written_examples

HELD_OUT = 256
_GENERATED = 64  # sources translated at a time
SAMPLES = {
    "text": 20_000,
    "text-to-text": 20_000,
    "image": 5_000,
    "audio": 5_000,
    "audio-to-text": 5_000,
    "text-image": 5_000,
}


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
    wanted = choice.count + held_out
    if labels:
        if RANDOM in choice.sources:
            raise HeadsError("made data has no labels; name labelled data with --data SRC")
        examples = labelled_examples(replace(choice, samples=wanted), teacher, folder)
        (examples, held), used = _apart(examples, held_out, choice.count), "labelled"
    elif choice.made:
        examples, used = _made(choice, teacher, folder, wanted)
        examples, held = _apart(examples, held_out, choice.count)
    else:
        examples, held, used = _read(choice, teacher, folder, held_out)
    if modality in WRITES and "target_ids" not in examples[0]:
        written = own_targets(teacher, [*examples, *held], progress)
        examples, held = written[: len(examples)], written[len(examples) :]
        used += ", targets by the original"

    def finish(batch: Batch) -> Batch:
        if labels:
            return finish_labelled(batch, teacher)
        return with_targets(batch, config, None) if modality in WRITES else batch

    name = "random inputs" if choice.made else Path(choice.single).name
    return HealingData(
        examples,
        [finish(batch) for batch in make_batches(held, config)],
        lambda group: finish(collate(group, pad_id(config))),
        f"{len(examples)} examples of {name} ({used}), seed {choice.seed}",
    )


def _made(
    choice: CalibrationChoice, teacher: PreTrainedModel, folder: Path, wanted: int
) -> tuple[list[dict[str, Any]], str]:
    """Examples made from nothing, and how: a language model writes them itself where it can."""
    longest, reason = choice.max_length, ""
    if is_language_model(teacher):
        reason = cannot_write(teacher) or ""
        if not reason:
            found = written_examples(teacher, folder, wanted, choice.seed, max_length=longest)
            return found.examples, "texts that the original wrote"
    pairs = True if choice.pairs is None and pairing_of(teacher, None).usual else choice.pairs
    examples = made_examples(teacher.config, folder, wanted, choice.seed, pairs=pairs, max_length=longest)
    return examples, "; ".join(filter(None, ["made from nothing", reason]))


def _apart(examples: list[Any], held_out: int, samples: int) -> tuple[list[Any], list[Any]]:
    """Up to `samples` of some examples, and up to `held_out` others; a tenth at most is held out.

    Raises:
        HeadsError: there are too few.
    """
    count = min(held_out, len(examples) // 10)
    if count < 1:
        raise HeadsError(f"{len(examples)} examples are too few to heal on; give 10 at least")
    return examples[: min(len(examples) - count, samples)], examples[len(examples) - count :]


def _read(
    choice: CalibrationChoice, teacher: PreTrainedModel, folder: Path, held_out: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], str]:
    """Examples to learn from, those held out, both of mixed lengths where asked for; and the columns."""
    modality, pairing = adapter_of(teacher.config).modality, pairing_of(teacher, choice.pairs)
    wanted = choice.count + held_out
    raw, columns = read_examples(
        choice.single, choice.columns, modality, wanted, choice.seed, choice.label, paired=pairing.of
    )
    used = ", ".join(columns)
    if modality not in ("text", "text-to-text"):
        examples, held = _apart(ENCODE[modality](raw, folder, None), held_out, choice.count)
        return examples, held, used
    raw = list(dict.fromkeys(raw))
    limit = text_limit(folder, choice.max_length, positions_of(teacher.config))
    parts = []
    for texts in _apart(raw, held_out, choice.count):
        if choice.pack:
            parts.append(mixed_examples(texts, len(texts), modality, folder, limit, choice.seed))
        else:
            parts.append(ENCODE[modality](texts, folder, limit))
    how = pairing.words(isinstance(raw[0], tuple), len(columns)) if modality == "text" else ""
    return parts[0], parts[1], "; ".join(filter(None, [used, how, "mixed lengths" if choice.pack else ""]))


_SOURCES = ("input_ids", "input_features")


def own_targets(
    model: PreTrainedModel, examples: list[dict[str, Any]], progress: Progress | None = None
) -> list[dict[str, Any]]:
    """The same examples with `target_ids`: what the model itself makes of the sources, greedily."""
    order = sorted(range(len(examples)), key=lambda index: len(examples[index].get("input_ids", ())))
    found: list[dict[str, Any]] = [{}] * len(examples)
    end, pad = model.config.eos_token_id, model.config.pad_token_id
    for begin in range(0, len(order), _GENERATED):
        if progress:
            progress("writing targets", begin, len(order))
        part = order[begin : begin + _GENERATED]
        sources = [{name: examples[index][name] for name in _SOURCES if name in examples[index]} for index in part]
        for index, ids in zip(part, continue_texts(model, collate(sources, pad or 0))[:, 1:].tolist(), strict=True):
            ids = ids[: ids.index(end) + 1] if end in ids else [token for token in ids if token != pad]
            found[index] = {**examples[index], "target_ids": ids}
    return found
