"""Labelled data as files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.files import write_rows
from tests.support.labelled import Write
from tests.support.tokenizers import save_tokenizer


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Rows as a .jsonl file, beside a folder `model` with a tokenizer."""
    save_tokenizer(tmp_path / "model")

    def rows(*rows: dict[str, Any]) -> str:
        return str(write_rows(tmp_path / "data.jsonl", rows))

    return rows
