"""The checkpoints of a comparison: whether they belong together, and what their files say of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from transformers import PreTrainedModel

from hf_heads.attention.hosts.blocks import find_blocks
from hf_heads.core.errors import HeadsError
from hf_heads.io.checkpoints.inspection import inspect, sizes
from hf_heads.io.checkpoints.loading import read_config
from hf_heads.io.checkpoints.record import read_record
from hf_heads.io.checkpoints.sources import Source
from hf_heads.jobs.evaluation.record import BlockRow, ModelRow
from hf_heads.methods.registry import get_method
from hf_heads.methods.words import settings_text
from hf_heads.modeling.classes import native_model

_SAME = ("vocab_size", "decoder_vocab_size", "hidden_size", "d_model", "num_labels", "image_size", "patch_size")


def check_configs(sources: Sequence[Source]) -> None:
    """Refuse checkpoints of other architectures or sizes than the first, by their configs alone.

    Raises:
        HeadsError: names the first difference.
    """
    first = read_config(sources[0])
    for source in sources[1:]:
        config = read_config(source)
        kinds = [one.model_type.removeprefix("heads_") for one in (config, first)]
        if kinds[0] != kinds[1]:
            raise HeadsError(
                f"'{source.given}' is a {kinds[0]}, but '{sources[0].given}' is a {kinds[1]}: compare checkpoints "
                "that were made from the same original"
            )
        for name in _SAME:
            here, there = getattr(config, name, None), getattr(first, name, None)
            if here != there:
                raise HeadsError(
                    f"'{source.given}' has {name} {here}, but '{sources[0].given}' has {there}: compare checkpoints "
                    "that were made from the same original"
                )


def check_classes(sources: Sequence[Source], models: Sequence[PreTrainedModel]) -> None:
    """Refuse models of another class than the first, whose outputs would be of another kind.

    Raises:
        HeadsError: names the first.
    """
    classes = [native_model(type(model)).__name__ for model in models]
    for source, name in zip(sources, classes, strict=True):
        if name != classes[0]:
            raise HeadsError(
                f"'{source.given}' holds a {name}, but '{sources[0].given}' a {classes[0]}: compare checkpoints of "
                "the same class"
            )


def describe(sources: Sequence[Source], models: Sequence[PreTrainedModel]) -> list[ModelRow]:
    """A row for every checkpoint with what its files say, the first as the original; nothing is measured yet.

    Raises:
        HeadsError: see `verification.inspect` and `read_record`.
    """
    names = _names(sources)
    rows: list[ModelRow] = []
    for name, source, model in zip(names, sources, models, strict=True):
        record, blocks = read_record(source.folder), inspect(source)["blocks"]
        kinds = {block.name: block.kind for block in find_blocks(model)}
        shown = ("name", "heads", "parameters", "parameters_before", "cache", "cache_before")
        rows.append(
            ModelRow(
                name=name,
                source=source.public,
                role="converted" if rows else "original",
                **sizes(model),  # type: ignore[arg-type]
                methods=tuple(sorted({block["method"] for block in blocks} - {"standard"})),
                settings=settings_summary(blocks),
                calibration=record.get("calibration"),
                healed=record.get("distillation"),
                command=record.get("command"),
                blocks=tuple(
                    BlockRow(
                        **{name: block[name] for name in shown},
                        kind=kinds[block["name"]],
                        settings=_block_settings(block),
                    )
                    for block in blocks
                ),
            )
        )
    return rows


def _names(sources: Sequence[Source]) -> list[str]:
    """A short name for each; those that are not unique are numbered, since folders may differ in their paths alone."""
    counts, seen = Counter(source.name for source in sources), Counter[str]()
    found = []
    for source in sources:
        seen[source.name] += 1
        found.append(source.name if counts[source.name] == 1 else f"{source.name} ({seen[source.name]})")
    return found


def _block_settings(block: Mapping[str, Any]) -> str:
    return f"standard, {block['heads']} heads" if block["method"] == "standard" else settings_text(dict(block))


def settings_summary(blocks: Sequence[Mapping[str, Any]]) -> str:
    """The settings of all blocks in a few words: `collab rank 24 to 96 cp, 12 heads`.

    Args:
        blocks: rows of `verification.inspect`.
    """
    methods = Counter(block["method"] for block in blocks)
    texts = []
    for method, count in methods.items():
        rows = [block for block in blocks if block["method"] == method]
        words = [method]
        for item in fields(get_method(method).spec) if method != "standard" else ():
            values = {row[item.name] for row in rows if not isinstance(row.get(item.name, []), list)}
            if item.metadata["told"] and values:
                words.append("/".join(sorted(values)) if item.type == "str" else f"{item.name} {_range(values)}")
        heads = [row["heads"] for row in rows]
        total = f" ({sum(heads)} in all)" if len(set(heads)) > 1 else ""
        where = f" in {count} of {len(blocks)} blocks" if len(methods) > 1 else ""
        texts.append(f"{' '.join(words)}, {_range(set(heads))} heads{total}{where}")
    return "; ".join(texts)


def _range(values: set[Any]) -> str:
    return str(*values) if len(values) == 1 else f"{min(values)} to {max(values)}"
