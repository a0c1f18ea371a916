"""`heads_report.json`: the report that a conversion leaves in its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hf_heads.checkpoints.json_files import read_json
from hf_heads.vocabulary import REPORT


def read_record(folder: Path) -> dict[str, Any]:
    """The report that a conversion left in its folder; empty where there is none.

    Raises:
        HeadsError: it cannot be read.
    """
    path = folder / REPORT
    return read_json(path, "report") if path.is_file() else {}
