"""Labelled data: batches with the `labels` that a model's own loss wants, whatever `datasets` loads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import PreTrainedModel

from hf_heads.attention.hosts.table import adapter_of
from hf_heads.core.batches import Batch
from hf_heads.core.errors import HeadsError
from hf_heads.core.numbers import shown
from hf_heads.io.data.batching import IGNORED, make_batches, with_targets
from hf_heads.io.data.choice import CalibrationChoice
from hf_heads.io.data.encoding import ENCODE, encode_images, encode_text, load_tokenizer
from hf_heads.io.data.pairs import Pairing, pairing_of
from hf_heads.io.data.reading import Content, Table, read_examples, read_table, to_image
from hf_heads.modeling.auto_classes import auto_classes

Example = dict[str, Any]
Kind = Literal["text-class", "image-class", "targets", "masked", "causal"]
_KINDS: dict[str, Kind] = {
    "AutoModelForSequenceClassification": "text-class",
    "AutoModelForImageClassification": "image-class",
    "AutoModelForSeq2SeqLM": "targets",
    "AutoModelForMaskedLM": "masked",
    "AutoModelForCausalLM": "causal",
}
_LABEL_NAMES = {"label", "labels", "target", "class"}
_MASKED_SHARE = 0.15


def load_labelled(choice: CalibrationChoice, model: PreTrainedModel, folder: Path) -> list[Batch]:
    """Batches with the `labels` that a model's own loss wants.

    What they are is a matter of the model's class:
        classification: a column of the data. Integers are class numbers, names go by the config's `label2id` (also
            those that a folder of images or a hub data set gives to its integers, where the config knows them); a
            model with one label gets floats. Rows without a label (None, or -1 as in test splits) are dropped; for
            one label, -1 is a number unless there is no other. Two text columns are pairs, with `token_type_ids`.
        encoder-decoder: the target texts, padded with -100; the decoder inputs are these shifted right.
        masked language model: the original ids of 15 % of each text's ordinary tokens, at least one, and -100
            elsewhere. All chosen tokens become the mask token; none stays or turns into another.
        causal language model: the texts themselves, -100 at padding; the model shifts. Single tokens are dropped.

    Args:
        choice: what to read; when it names no column of labels, the one that is called so is taken, else the only one
            with numbers. Its seed is that of masked tokens, too.
        model: converted or not.
        folder: where its tokenizer or image processor is.

    Raises:
        HeadsError: the model has no such loss, its architecture no adapter, or the data cannot be found or read, has
            no such column, no usable example, or labels that the model does not know.
    """
    examples = labelled_examples(choice, model, folder)
    return [finish_labelled(batch, model) for batch in make_batches(examples, model.config)]


def labelled_examples(choice: CalibrationChoice, model: PreTrainedModel, folder: Path) -> list[Example]:
    """Encoded examples one by one, in the order in which they were drawn; see `load_labelled`.

    A batch that is made of them wants `finish_labelled` before the model takes it.
    """
    name = type(model).__name__.removeprefix("Heads")
    kind = kind_of(model)
    if kind is None:
        raise HeadsError(
            f"'{name}' has no loss that labels from a data set could feed; use a label-free rule such as "
            "gauss-newton, or pass batches with labels in Python"
        )
    source, pairing = choice.single, pairing_of(model, choice.pairs)
    if kind in ("text-class", "image-class"):
        content: Content = "image" if kind == "image-class" else "text"
        return _classified(choice, model.config, folder, content, pairing)
    if choice.label is not None:
        raise HeadsError(f"'{name}' takes its labels from the texts; leave out the label column '{choice.label}'")
    modality = "text-to-text" if kind == "targets" else "text"
    raw, _ = read_examples(source, choice.columns, modality, choice.count, choice.seed, paired=pairing.of)
    examples = ENCODE[modality](raw, folder, choice.max_length)
    if kind == "masked":
        examples = _masked(examples, folder, choice.seed)
    if kind == "causal":
        ids = [example["input_ids"] for example in examples]
        examples = [{"input_ids": text, "labels": text} for text in ids if len(text) > 1]
    if not examples:
        raise HeadsError(f"no text of '{source}' has enough tokens for '{name}'")
    return examples


def finish_labelled(batch: Batch, model: PreTrainedModel) -> Batch:
    """A batch of labelled examples as the model takes it: text-to-text ones get decoder inputs and labels."""
    return _with_labels(batch, model.config) if kind_of(model) == "targets" else batch


def kind_of(model: PreTrainedModel) -> Kind | None:
    """What the labels of a model are, or None where no data set has them.

    Raises:
        HeadsError: no adapter for the model's architecture.
    """
    served = auto_classes(adapter_of(model.config))
    names = {cls.__name__ for cls in type(model).__mro__}  # derived classes descend from the host's
    return next((kind for auto, kind in _KINDS.items() if served.get(auto) in names), None)


# Language models.


def _masked(examples: list[Example], folder: Path, seed: int) -> list[Example]:
    """Examples with chosen tokens masked; those without an ordinary token are left out."""
    tokenizer = load_tokenizer(folder)
    mask = tokenizer.mask_token_id
    if mask is None:
        raise HeadsError(f"the tokenizer in '{folder}' has no mask token, which the loss of a masked model needs")
    special = set(tokenizer.all_special_ids)
    generator = torch.Generator().manual_seed(seed)
    masked = []
    for example in examples:
        ids = example["input_ids"]
        ordinary = [place for place, token in enumerate(ids) if token not in special]
        count = max(1, round(_MASKED_SHARE * len(ordinary)))
        chosen = {ordinary[index] for index in torch.randperm(len(ordinary), generator=generator)[:count].tolist()}
        if chosen:
            inputs = [mask if place in chosen else token for place, token in enumerate(ids)]
            labels = [token if place in chosen else IGNORED for place, token in enumerate(ids)]
            masked.append({**example, "input_ids": inputs, "labels": labels})
    return masked


def _with_labels(batch: Batch, config: Any) -> Batch:
    """A text-to-text batch with decoder inputs and, of the same length, the targets as they are."""
    labels = batch["target_ids"].masked_fill(batch["target_mask"] == 0, IGNORED) if "target_ids" in batch else None
    batch = with_targets(batch, config, None)  # says what is missing when there are no targets
    assert labels is not None
    return {**batch, "labels": labels}


# Classification.


def _classified(choice: CalibrationChoice, config: Any, folder: Path, kind: Content, pairing: Pairing) -> list[Example]:
    source, columns, label = choice.single, choice.columns, choice.label
    wanted = "regression" if config.num_labels == 1 else "single_label_classification"
    if config.problem_type not in (None, wanted):
        raise HeadsError(
            f"problem_type '{config.problem_type}' with num_labels {config.num_labels} is neither one class nor one "
            "number for an example; pass batches with labels in Python"
        )
    if label is not None and label in (columns or ()):
        raise HeadsError(f"column '{label}' is the label; leave it out of --columns")
    table = read_table(source, [*(columns or ()), *([] if label is None else [label])], choice.count, choice.seed)
    label = label or _find_label(table, columns)
    used = table.of_kind(kind, columns, besides=label)
    pairs = kind == "text" and pairing.of(source, used)
    if kind == "text" and len(used) > 1 and not pairs:
        raise HeadsError(
            f"'{source}' has {len(used)} text columns and one label; name one with --columns, or read pairs"
        )
    if kind == "image" and len(used) > 1:
        raise HeadsError(f"'{source}' has {len(used)} image columns; name one with --columns")
    labels = _read_labels(table, label, config)
    kept = [index for index, row in enumerate(table.rows) if all(row[name] for name in used)]
    if not kept:
        raise HeadsError(f"column '{used[0]}' of '{source}' is empty")
    kept = [index for index in kept if labels[index] is not None]
    if not kept:
        raise HeadsError(
            f"column '{label}' of '{source}' has no labels (all -1 or missing); choose a split that has, "
            "as in NAME:validation"
        )
    values = [[table.rows[index][name] for index in kept] for name in used]
    if kind == "image":
        examples = encode_images([to_image(value) for value in values[0]], folder)
    else:
        texts = list(zip(*values, strict=True)) if pairs else values[0]
        examples = encode_text(texts, folder, choice.max_length)
    return [{**example, "labels": labels[index]} for example, index in zip(examples, kept, strict=True)]


def _find_label(table: Table, columns: Sequence[str] | None) -> str:
    free = [name for name in table.columns if name not in (columns or ())]
    found = [name for name in free if name.lower() in _LABEL_NAMES]
    found = found or [name for name in free if _numeric([row[name] for row in table.rows])]
    if not found:
        have = ", ".join(table.columns)
        raise HeadsError(f"'{table.source}' has no label column. Columns: {have}; name one with --label")
    if len(found) > 1:
        raise HeadsError(
            f"several columns of '{table.source}' could be the label: {', '.join(found)}; name one with --label"
        )
    return found[0]


def _numeric(values: list[Any]) -> bool:
    present = [value for value in values if value is not None]
    return bool(present) and all(isinstance(value, int | float) for value in present)


def _read_labels(table: Table, label: str, config: Any) -> list[int | float | None]:
    """The label of every row: a class number, a float for a model with one label, None where there is none."""
    values = [row[label] for row in table.rows]
    values = [None if value != value else value for value in values]  # NaN
    _check_kinds(values, table.source, label, config)
    names = table.classes.get(label, [])
    if config.num_labels == 1:
        unlabelled = all(value in (None, -1) for value in values)
        return [None if value is None or unlabelled else _number(value, table.source, label) for value in values]
    if any(name in config.label2id for name in names):  # else the integers are all that there is
        values = [names[value] if isinstance(value, int) and value >= 0 else value for value in values]
    return [None if value in (None, -1) else _class(value, table.source, label, config) for value in values]


def _check_kinds(values: list[Any], source: str, label: str, config: Any) -> None:
    """Refuse a column with numbers in some rows and texts in others, also where both are written as texts."""
    texts = [value for value in values if isinstance(value, str)]
    unknown = [text for text in texts if text not in config.label2id and _is_number(text)]
    numbers = [value for value in values if isinstance(value, int | float)] or (
        unknown if len(unknown) < len(texts) else []
    )
    words = [text for text in texts if text not in unknown] or texts
    if numbers and words:
        raise HeadsError(
            f"column '{label}' of '{source}' holds numbers in some rows ({shown(numbers[0])}) and texts in others "
            f"({shown(words[0])}); make all labels of one kind"
        )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _number(value: Any, source: str, label: str) -> float:
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise HeadsError(f"'{value}' in column '{label}' of '{source}' is no number, and the model has one output")
    return float(value)


def _class(value: Any, source: str, label: str, config: Any) -> int:
    if isinstance(value, str):
        if value not in config.label2id:
            known = ", ".join(list(config.label2id)[:8]) + (" ..." if len(config.label2id) > 8 else "")
            raise HeadsError(f"label '{value}' in column '{label}' of '{source}' is not in config.label2id: {known}")
        return int(config.label2id[value])
    if not isinstance(value, int | float) or not float(value).is_integer():
        raise HeadsError(f"'{value}' in column '{label}' of '{source}' is no class; name another with --label")
    if not 0 <= value < config.num_labels:
        raise HeadsError(
            f"label {int(value)} in column '{label}' of '{source}' is not one of the model's {config.num_labels} "
            f"classes, 0 to {config.num_labels - 1}"
        )
    return int(value)
