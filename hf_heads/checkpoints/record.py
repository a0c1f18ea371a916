"""`heads_report.json`: the report that a conversion or a healing leaves in its folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hf_heads.checkpoints.files import write_file
from hf_heads.checkpoints.json_files import read_json, without_nan
from hf_heads.vocabulary import REPORT


def read_record(folder: Path) -> dict[str, Any]:
    """The report in a checkpoint folder; empty where there is none.

    Raises:
        HeadsError: it cannot be read.
    """
    path = folder / REPORT
    return read_json(path, "report") if path.is_file() else {}


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """Write the report into a checkpoint folder; figures that are not finite are null there."""
    text = json.dumps(without_nan(record), indent=2, allow_nan=False)
    write_file(folder / REPORT, text + "\n")
