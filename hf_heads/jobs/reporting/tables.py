"""A comparison's record as tables for people, as Markdown, as JSON, and as CSV with a line for every model."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import asdict, dataclass
from typing import Any

from hf_heads.core.vocabulary import in_precision, of_length, percent
from hf_heads.jobs.evaluation.record import Comparison, Metric, ModelRow

_DRIFT = ("cosine", "max_difference", "kl", "agreement", "neighbours", "attention_distance")


@dataclass(frozen=True)
class TextTable:
    """A titled table of texts, a row for every model.

    Attributes:
        title: what it is about.
        words: how many columns, from the left, are no numbers.
        header, rows: the names of the columns, and their cells.
    """

    title: str
    words: int
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def text_tables(found: Comparison) -> list[TextTable]:
    """Sizes, speed and quality of all models."""
    models = found.models
    measured = [model for model in models if model.role != "control"]
    tables = [
        _table("Size", 2, [_sizes(model, models[0]) for model in models]),
        _table("Time (above 1: so many times faster than the original)", 1, [_speed(model) for model in measured]),
        _table("Peak memory of a forward pass", 1, [_memory(model) for model in measured]),
        _table("Quality", 1, [_quality(model, found.metric) for model in models]),
    ]
    return [table for table in tables if len(table.header) > table.words]


def _table(title: str, words: int, rows: list[dict[str, str]]) -> TextTable:
    """Columns in the order of the row that has most; cells that a row lacks are empty."""
    header = max((tuple(row) for row in rows), key=len)
    return TextTable(title, words, header, tuple(tuple(row.get(name, "") for name in header) for row in rows))


def _sizes(model: ModelRow, original: ModelRow) -> dict[str, str]:
    cells = {"model": model.name, "settings": model.settings}
    for name in ("attention_parameters", "model_parameters", "cache_per_token"):
        before, after = getattr(original, name), getattr(model, name)
        cells[name.replace("_", " ")] = _changed(f"{after:,}", before, after, model is original)
    for length, count in model.multiply_adds.items():
        before = original.multiply_adds[length]
        cells[f"M multiply-adds, length {length}"] = _changed(f"{count / 1e6:,.1f}", before, count, model is original)
    return cells


def _changed(text: str, before: int, after: int, same: bool) -> str:
    return text if same else f"{text} ({percent(before, after)})"


def _speed(model: ModelRow) -> dict[str, str]:
    cells = {"model": model.name}
    for row in model.latency:
        cells[f"ms, {row.batch} x {row.length}"] = f"{row.milliseconds:.1f} ({row.ratio:.2f})"
    for one in model.generation:
        cells[f"generated tokens/s, batch {one.batch}"] = f"{one.tokens_per_second:,.0f} ({one.ratio:.2f})"
    return cells


def _memory(model: ModelRow) -> dict[str, str]:
    cells = {f"MB, {row.batch} x {row.length}": f"{row.bytes / 1e6:.1f}" for row in model.peak_memory}
    return {"model": model.name, **cells}


def _quality(model: ModelRow, metric: Metric | None) -> dict[str, str]:
    cells = {"model": model.name}
    if metric is not None and (score := model.score) is not None:
        cells[metric.name] = f"{score.value:.2f}{_ends(score.low, score.high, '.2f')}"
        if model.role != "original" and score.difference is not None:
            ends = _ends(score.difference_low, score.difference_high, "+.2f")
            cells["difference"] = f"{score.difference:+.2f}{ends}"
    for name in _DRIFT:
        if name in (drift := model.drift or {}):
            cells[name.replace("_", " ")] = f"{drift[name]:.4f}"
    cells |= {of_length("cosine", length): f"{value:.4f}" for length, value in model.cosine_by_length.items()}
    cells |= {in_precision("own cosine", name): f"{value:.5f}" for name, value in model.cosine_by_precision.items()}
    return cells


def _ends(low: float | None, high: float | None, form: str) -> str:
    return "" if low is None or high is None else f" ({low:{form}} to {high:{form}})"


def notes(found: Comparison) -> list[str]:
    """What the tables were measured on, in lines."""
    scored = "no task score"
    if metric := found.metric:
        scored = f"{metric.name}: {metric.about}, {metric.examples} examples"
        scored += "; 95 % intervals by paired bootstrap over examples"
    versions = ", ".join(f"{name} {number}" for name, number in found.versions.items())
    return [
        scored,
        f"drift against the original on {found.data}",
        f"{found.machine}, {found.threads} threads, {found.date}, {versions}",
        *filter(None, [found.busy]),
    ]


def to_json(found: Comparison, indent: int | None = None) -> str:
    """The record as JSON, for `read_comparison`."""
    return json.dumps(found.to_dict(), indent=indent, allow_nan=False)


def to_markdown(found: Comparison) -> str:
    """The tables as Markdown."""
    lines = [f"# {found.original} compared", ""]
    for table in text_tables(found):
        lines += [
            f"## {table.title}",
            "",
            "| " + " | ".join(table.header) + " |",
            "|---" * table.words + "|---:" * (len(table.header) - table.words) + "|",
            *("| " + " | ".join(row) + " |" for row in table.rows),
            "",
        ]
    return "\n".join([*lines, *(f"- {note}" for note in notes(found))]) + "\n"


def to_csv(found: Comparison) -> str:
    """A line for every model, a column for every number, named such as `milliseconds_8x128`."""
    rows = [_flat(model) for model in found.models]
    header = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, header, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _flat(model: ModelRow) -> dict[str, Any]:
    plain = ("name", "source", "role", "settings", "attention_parameters", "model_parameters", "cache_per_token")
    cells = {name: getattr(model, name) for name in plain}
    cells["methods"] = " ".join(model.methods)
    cells |= {f"multiply_adds_{length}": count for length, count in model.multiply_adds.items()}
    for row in model.latency:
        for name in ("milliseconds", "tokens_per_second", "ratio", "ratio_low", "ratio_high"):
            cells[f"{name}_{row.batch}x{row.length}"] = getattr(row, name)
    for one in model.generation:
        for name in ("tokens_per_second", "ratio", "ratio_low", "ratio_high"):
            cells[f"generation_{name}_{one.batch}"] = getattr(one, name)
    cells |= {f"peak_bytes_{row.batch}x{row.length}": row.bytes for row in model.peak_memory}
    cells |= {f"cosine_{length}": value for length, value in model.cosine_by_length.items()}
    cells |= {f"own_cosine_{name}": value for name, value in model.cosine_by_precision.items()}
    if model.score:
        cells |= {f"score_{name}": value for name, value in asdict(model.score).items()}
    return cells | dict(model.drift or {})
