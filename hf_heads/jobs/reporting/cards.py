"""A comparison's numbers in the model cards of the checkpoints that were compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hf_heads.core.errors import HeadsError
from hf_heads.core.vocabulary import REPORT
from hf_heads.io.checkpoints.card import write_card
from hf_heads.io.checkpoints.card_metadata import task_of
from hf_heads.io.checkpoints.record import check_complete, published, read_record, write_record
from hf_heads.io.checkpoints.sources import Source
from hf_heads.jobs.evaluation.record import Comparison
from hf_heads.jobs.reporting.tables import to_markdown


def check_cards(converted: Sequence[Source]) -> None:
    """Refuse checkpoints whose card is not ours to write.

    Raises:
        HeadsError: names the first that no conversion has left a report in, or only a damaged one.
    """
    for source in converted:
        if not (source.folder / REPORT).is_file():
            raise HeadsError(
                f"'{source.given}' has no {REPORT}: hf-heads did not make its card; leave out --write-cards"
            )
        check_complete(read_record(source.folder), source.given)


def write_cards(found: Comparison, original: Source, converted: Sequence[Source], dataset: str) -> None:
    """Put a comparison's tables and scores into the report and the card of every converted checkpoint.

    Args:
        found: the comparison.
        original: what the checkpoints were compared with.
        converted: the checkpoints, in the comparison's order.
        dataset: what the score was measured on, in a word.
    """
    rows = [model for model in found.models if model.role == "converted"]
    for source, row in zip(converted, rows, strict=True):
        record = read_record(source.folder)
        record["measured"] = to_markdown(replace(found, models=(found.reference, row)))
        if found.metric and row.score:
            scored = {
                "task": task_of(source.folder) or "feature-extraction",
                "dataset": dataset,
                "metric": found.metric.name,
                "value": row.score.value,
                "low": row.score.low,
                "high": row.score.high,
                "original": found.reference.score and found.reference.score.value,
            }
            key = (dataset, found.metric.name)
            others = [one for one in record.get("scores", ()) if (one["dataset"], one["metric"]) != key]
            record["scores"] = [*others, scored]
        record = published(record)
        write_card(source.folder, original, record, record.get("recipe"))
        write_record(source.folder, record)
