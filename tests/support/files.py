"""Files that tests read: rows of data, and checkpoints with what is needed to read data for them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from tests.support.tokenizers import save_tokenizer


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    """Rows as a .jsonl file; returns its path."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def save_checkpoint(
    model: PreTrainedModel, folder: Path, save_processor: Callable[[Path], None] = save_tokenizer
) -> Path:
    """A model with a tokenizer, or with another processor; returns the folder."""
    model.save_pretrained(folder)
    save_processor(folder)
    return folder
