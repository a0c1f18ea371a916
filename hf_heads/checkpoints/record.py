"""`heads_report.json`: the report that a conversion or a healing leaves in its folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hf_heads.checkpoints.json_files import read_json, without_nan
from hf_heads.core.numbers import shown
from hf_heads.errors import HeadsError
from hf_heads.vocabulary import REPORT

_EXPECTED: dict[str, tuple[Any, str]] = {
    "source": (str | None, "text"),
    "revision": (str | None, "text"),
    "drift": (dict, "an object"),
    "distillation": (dict, "an object"),
    "blocks": (list, "a list"),
}


def read_record(folder: Path) -> dict[str, Any]:
    """The report in a checkpoint folder; empty where there is none.

    Raises:
        HeadsError: it cannot be read, or an entry is of the wrong type.
    """
    path = folder / REPORT
    record = read_json(path, "report") if path.is_file() else {}
    for name, (kinds, expected) in _EXPECTED.items():
        if name in record and not isinstance(record[name], kinds):
            raise HeadsError(f"the report '{path}' is damaged: {name} is {shown(record[name])}, expected {expected}")
    for name, figures in record.get("drift", {}).items():
        if not isinstance(figures, dict) or not all(isinstance(one, int | float | None) for one in figures.values()):
            raise HeadsError(f"the report '{path}' is damaged: drift.{name} is {shown(figures)}, expected figures")
    return record


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """Write the report into a checkpoint folder; figures that are not finite are null there."""
    text = json.dumps(without_nan(record), indent=2, allow_nan=False)
    (folder / REPORT).write_text(text + "\n", encoding="utf-8")
