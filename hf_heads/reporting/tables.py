"""A comparison's record as tables for people, as Markdown, and as CSV with a line for every model."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hf_heads.vocabulary import percent

Record = Mapping[str, Any]
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


def text_tables(record: Record) -> list[TextTable]:
    """Sizes, speed and quality of all models.

    Args:
        record: what `Comparison.to_dict` gives.
    """
    models = record["models"]
    measured = [model for model in models if model["role"] != "control"]
    tables = [
        _table("Size", 2, [_sizes(model, models[0]) for model in models]),
        _table("Time (above 1: so many times faster than the original)", 1, [_speed(model) for model in measured]),
        _table("Peak memory of a forward pass", 1, [_memory(model) for model in measured]),
        _table("Quality", 1, [_quality(model, record["metric"]) for model in models]),
    ]
    return [table for table in tables if len(table.header) > table.words]


def _table(title: str, words: int, rows: list[dict[str, str]]) -> TextTable:
    """Columns in the order of the row that has most; cells that a row lacks are empty."""
    header = max((tuple(row) for row in rows), key=len)
    return TextTable(title, words, header, tuple(tuple(row.get(name, "") for name in header) for row in rows))


def _sizes(model: Record, original: Record) -> dict[str, str]:
    found = {"model": model["name"], "settings": model["settings"]}
    for name in ("attention_parameters", "model_parameters", "cache_per_token"):
        found[name.replace("_", " ")] = _changed(original[name], model[name], model is original)
    for length, count in model["multiply_adds"].items():
        before = original["multiply_adds"][length] / 1e6
        found[f"M multiply-adds, length {length}"] = _changed(before, count / 1e6, model is original)
    return found


def _changed(before: float, after: float, same: bool) -> str:
    text = f"{after:,}" if isinstance(after, int) else f"{after:,.1f}"
    return text if same else f"{text} ({percent(before, after)})"  # type: ignore[arg-type]


def _speed(model: Record) -> dict[str, str]:
    found = {"model": model["name"]}
    for cell in model["latency"]:
        where = f"{cell['batch']} x {cell['length']}"
        found[f"ms, {where}"] = f"{cell['milliseconds']:.1f} ({cell['ratio']:.2f})"
    for cell in model["generation"]:
        text = f"{cell['tokens_per_second']:,.0f} ({cell['ratio']:.2f})"
        found[f"generated tokens/s, batch {cell['batch']}"] = text
    return found


def _memory(model: Record) -> dict[str, str]:
    cells = {f"MB, {cell['batch']} x {cell['length']}": f"{cell['bytes'] / 1e6:.1f}" for cell in model["peak_memory"]}
    return {"model": model["name"], **cells}


def _quality(model: Record, metric: Record | None) -> dict[str, str]:
    found = {"model": model["name"]}
    if metric is not None:
        score = model["score"]
        found[metric["name"]] = f"{score['value']:.2f} ({score['low']:.2f} to {score['high']:.2f})"
        if model["role"] != "original":
            ends = f"{score['difference_low']:+.2f} to {score['difference_high']:+.2f}"
            found["difference"] = f"{score['difference']:+.2f} ({ends})"
    for name in _DRIFT:
        if name in (model["drift"] or {}):
            found[name.replace("_", " ")] = f"{model['drift'][name]:.4f}"
    return found


def notes(record: Record) -> list[str]:
    """What the tables were measured on, in lines."""
    metric = record["metric"]
    scored = (
        "no task score" if metric is None else f"{metric['name']}: {metric['about']}, {metric['examples']} examples"
    )
    versions = ", ".join(f"{name} {number}" for name, number in record["versions"].items())
    return [
        scored + ("" if metric is None else "; 95 % intervals by paired bootstrap over examples"),
        f"drift against the original on {record['data']}",
        f"{record['machine']}, {record['threads']} threads, {record['date']}, {versions}",
    ]


def to_markdown(record: Record) -> str:
    """The tables as Markdown."""
    lines = [f"# {record['original']} compared", ""]
    for table in text_tables(record):
        lines += [
            f"## {table.title}",
            "",
            "| " + " | ".join(table.header) + " |",
            "|---" * table.words + "|---:" * (len(table.header) - table.words) + "|",
            *("| " + " | ".join(row) + " |" for row in table.rows),
            "",
        ]
    return "\n".join([*lines, *(f"- {note}" for note in notes(record))]) + "\n"


def to_csv(record: Record) -> str:
    """A line for every model, a column for every number, named such as `milliseconds_8x128`."""
    rows = [_flat(model) for model in record["models"]]
    header = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, header, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _flat(model: Record) -> dict[str, Any]:
    plain = ("name", "source", "role", "settings", "attention_parameters", "model_parameters", "cache_per_token")
    found = {name: model[name] for name in plain}
    found["methods"] = " ".join(model["methods"])
    found.update({f"multiply_adds_{length}": count for length, count in model["multiply_adds"].items()})
    for cell in model["latency"]:
        for name in ("milliseconds", "tokens_per_second", "ratio"):
            found[f"{name}_{cell['batch']}x{cell['length']}"] = cell[name]
    for cell in model["generation"]:
        for name in ("tokens_per_second", "ratio"):
            found[f"generation_{name}_{cell['batch']}"] = cell[name]
    for cell in model["peak_memory"]:
        found[f"peak_bytes_{cell['batch']}x{cell['length']}"] = cell["bytes"]
    found.update({f"score_{name}": value for name, value in (model["score"] or {}).items()})
    found.update(model["drift"] or {})
    return found
