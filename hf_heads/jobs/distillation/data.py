"""Examples to heal on: what `datasets` loads, encoded one by one, and batches of them as both models take them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
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
from hf_heads.io.data.encoding import ENCODE, digest
from hf_heads.io.data.labelled import finish_labelled, labelled_examples
from hf_heads.io.data.lengths import mixed_examples, text_limit
from hf_heads.io.data.made import made_examples
from hf_heads.io.data.pairs import pairing_of
from hf_heads.io.data.reading import read_examples
from hf_heads.io.data.written import cannot_write, is_language_model, written_examples

HELD_OUT = 256
_GENERATED = 64  # sources translated at a time
_UNNAMED: dict[str, Any] = {"columns": None, "label": None}  # of made data, which has none
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
        choice: what to read; `samples` counts the examples to learn from. Several sources give an equal share each.
        teacher: the original; where the data of a text-to-text model has no targets, it writes them.
        folder: where its tokenizer or image processor is.
        labels: read labels for the model's own loss, see `load_labelled`.
        held_out: how many examples to hold out at most; a tenth where there are few.
        progress: called with (what, done, total).

    Raises:
        HeadsError: the data cannot be read, or is none that anything can be learned from; several sources with labels.
    """
    if choice.source == NONE:
        raise HeadsError("healing needs data; name it with --data SRC")
    config = teacher.config
    writes = adapter_of(config).modality in WRITES
    if labels and RANDOM in choice.sources:
        raise HeadsError("made data has no labels; name labelled data with --data SRC")
    parts = _labelled(choice, teacher, folder, held_out) if labels else _parts(choice, teacher, folder, held_out)
    if writes:
        parts = [_with_targets(part, teacher, progress) for part in parts]

    def finish(batch: Batch) -> Batch:
        if labels:
            return finish_labelled(batch, teacher)
        return with_targets(batch, config, None) if writes else batch

    said = "; ".join(f"{len(part.examples)} examples of {part.name} ({part.used})" for part in parts)
    return HealingData(
        [one for part in parts for one in part.examples],
        [finish(batch) for batch in make_batches([one for part in parts for one in part.held_out], config)],
        lambda group: finish(collate(group, pad_id(config))),
        f"{said}, seed {choice.seed}",
    )


@dataclass(frozen=True)
class _Part:
    """What one source gives: encoded examples and those held out, the name of the source, and what is read of it."""

    examples: list[dict[str, Any]]
    held_out: list[dict[str, Any]]
    name: str
    used: str


def _labelled(choice: CalibrationChoice, teacher: PreTrainedModel, folder: Path, held_out: int) -> list[_Part]:
    examples = labelled_examples(replace(choice, samples=choice.count + held_out), teacher, folder)
    return [_Part(*_apart(examples, held_out, choice.count), Path(choice.single).name, "labelled")]


def _parts(choice: CalibrationChoice, teacher: PreTrainedModel, folder: Path, held_out: int) -> list[_Part]:
    """What each source gives, an equal share of the examples; what one has, none of those behind it gives again.

    Raises:
        HeadsError: see `load_healing`; no source has the columns, or one has nothing new.
    """
    share, held_share = (-(-count // len(choice.sources)) for count in (choice.count, held_out))
    seen: set[Any] = set()
    columns: set[str] = set()
    parts = []
    for source in choice.sources:
        one = replace(choice, source=source, samples=share, **(_UNNAMED if source == RANDOM else {}))
        if one.made:
            examples, used = _made(one, teacher, folder, share + held_share)
            parts.append(_Part(*_apart(examples, held_share, share), "random inputs", used))
        else:
            part, found = _read(one, teacher, folder, held_share, seen, optional=len(choice.sources) > 1)
            parts.append(part)
            columns |= set(found)
    if choice.columns and not columns & set(choice.columns):
        raise HeadsError(f"none of the data sets has the columns {', '.join(choice.columns)}")
    return parts


def _with_targets(part: _Part, teacher: PreTrainedModel, progress: Progress | None) -> _Part:
    """The same, with what the original makes of the sources where it has no targets."""
    if "target_ids" in part.examples[0]:
        return part
    written, count = own_targets(teacher, [*part.examples, *part.held_out], progress), len(part.examples)
    return _Part(written[:count], written[count:], part.name, f"{part.used}, targets by the original")


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
    choice: CalibrationChoice,
    teacher: PreTrainedModel,
    folder: Path,
    held_out: int,
    seen: set[Any],
    *,
    optional: bool,
) -> tuple[_Part, list[str]]:
    """What a data set gives, of mixed lengths where asked for, and its columns; what was seen is left out."""
    modality, pairing = adapter_of(teacher.config).modality, pairing_of(teacher, choice.pairs)
    wanted = choice.count + held_out
    raw, columns = read_examples(
        choice.single,
        choice.columns,
        modality,
        wanted,
        choice.seed,
        choice.label,
        paired=pairing.of,
        optional=optional,
    )
    name, used = Path(choice.single).name, ", ".join(columns)
    if modality not in ("text", "text-to-text"):
        new = _new(((digest(one), one) for one in ENCODE[modality](raw, folder, None)), seen, choice.single)
        return _Part(*_apart(new, held_out, choice.count), name, used), columns
    raw = _new(((one, one) for one in raw), seen, choice.single)
    limit = text_limit(folder, choice.max_length, positions_of(teacher.config))
    examples, held = (
        mixed_examples(texts, len(texts), modality, folder, limit, choice.seed)
        if choice.pack
        else ENCODE[modality](texts, folder, limit)
        for texts in _apart(raw, held_out, choice.count)
    )
    how = pairing.words(isinstance(raw[0], tuple), len(columns)) if modality == "text" else ""
    said = "; ".join(filter(None, [used, how, "mixed lengths" if choice.pack else ""]))
    return _Part(examples, held, name, said), columns


def _new(found: Iterable[tuple[Any, Any]], seen: set[Any], source: str) -> list[Any]:
    """Examples of (what tells them apart, example) that nobody has seen, each once; from now on they are seen.

    Raises:
        HeadsError: there are none.
    """
    new = {key: one for key, one in found if key not in seen}
    if not new:
        raise HeadsError(f"'{source}' has nothing that the data named before it has not: leave it out")
    seen.update(new)
    return list(new.values())


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
