"""A comparison's numbers in the model cards of the checkpoints that were compared."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_heads.checkpoints.card import write_card
from hf_heads.checkpoints.card_metadata import task_of
from hf_heads.checkpoints.record import read_record
from hf_heads.checkpoints.sources import Source
from hf_heads.errors import HeadsError
from hf_heads.reporting.tables import to_markdown
from hf_heads.vocabulary import REPORT


def check_cards(converted: Sequence[Source]) -> None:
    """Refuse checkpoints whose card is not ours to write.

    Raises:
        HeadsError: names the first that no conversion has left a report in.
    """
    for source in converted:
        if not (source.folder / REPORT).is_file():
            raise HeadsError(
                f"'{source.given}' has no {REPORT}: hf-heads did not make its card; leave out --write-cards"
            )


def write_cards(record: Mapping[str, Any], original: Source, converted: Sequence[Source], dataset: str) -> None:
    """Put a comparison's tables and scores into the report and the card of every converted checkpoint.

    Args:
        record: what `Comparison.to_dict` gives.
        original: what the checkpoints were compared with.
        converted: the checkpoints, in the record's order.
        dataset: what the score was measured on, in a word.
    """
    first = record["models"][0]
    rows = [model for model in record["models"] if model["role"] == "converted"]
    for source, row in zip(converted, rows, strict=True):
        found = read_record(source.folder)
        found["measured"] = to_markdown({**record, "models": [first, row]})
        if row["score"] is not None:
            score = {
                "task": task_of(source.folder) or "feature-extraction",
                "dataset": dataset,
                "metric": record["metric"]["name"],
                "value": row["score"]["value"],
                "low": row["score"]["low"],
                "high": row["score"]["high"],
                "original": first["score"]["value"],
            }
            others = [
                one
                for one in found.get("scores", ())
                if (one["dataset"], one["metric"]) != (score["dataset"], score["metric"])
            ]
            found["scores"] = [*others, score]
        write_card(source.folder, original, found, found.get("recipe"))
        path = source.folder / REPORT
        partial = Path(f"{path}.partial")
        partial.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        partial.replace(path)
