"""`heads_report.json`: the report that a conversion or a healing leaves in its folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hf_heads.errors import HeadsError
from hf_heads.vocabulary import REPORT


def read_record(folder: Path) -> dict[str, Any]:
    """The report in a checkpoint folder; empty where there is none."""
    path = folder / REPORT
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise HeadsError(f"{path} cannot be read as JSON") from None


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """Write the report into a checkpoint folder."""
    (folder / REPORT).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
