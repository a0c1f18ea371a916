"""`heads_report.json`: the report that a conversion leaves in its folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hf_heads.errors import HeadsError
from hf_heads.vocabulary import REPORT


def read_record(folder: Path) -> dict[str, Any]:
    """The report that a conversion left in its folder; empty where there is none."""
    path = folder / REPORT
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise HeadsError(f"{path} cannot be read as JSON") from None
