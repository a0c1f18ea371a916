"""The model card of what leaves this package: a checkpoint that loads without it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

import yaml

from hf_heads.core.vocabulary import METRICS
from hf_heads.io.checkpoints.card import card_environment, loading
from hf_heads.io.checkpoints.card_metadata import source_metadata
from hf_heads.io.checkpoints.json_files import read_json
from hf_heads.io.checkpoints.sources import Source


def exported_metadata(source: Source, numbers: bool) -> str:
    """The YAML of a converted checkpoint's card, for what it was exported to.

    Args:
        source: the converted checkpoint.
        numbers: what the card says of its outputs holds for what was exported as well.
    """
    found = source_metadata(source.folder)
    if not numbers:
        found.pop("model-index", None)
    return yaml.safe_dump({"library_name": "transformers", **found}, sort_keys=False, allow_unicode=True).strip()


@dataclass(frozen=True)
class MadeBy:
    """A conversion that ended in an export.

    Attributes:
        original: what was converted, as reports call it.
        command: that does all of it; None where only a recipe says it.
    """

    original: str
    command: str | None


def native_card(source: Source, report: dict[str, Any], made_by: MadeBy | None = None) -> str:
    """The text of the card of a checkpoint that was exported to its host's own architecture.

    Args:
        source: the converted checkpoint.
        report: see `NativeReport.to_dict`.
        made_by: the conversion that ended in this, where it did.
    """
    entries = read_json(source.folder / "config.json", "config")
    methods = sorted({block["method"] for block in entries["heads"]["blocks"].values()})
    return (
        card_environment()
        .get_template("native.md.jinja")
        .render(
            source=source,
            metadata=exported_metadata(source, report["exact"]),
            methods=methods,
            report=report,
            made_by=made_by,
            metrics=METRICS,
            sizes=sorted({tuple(size) for size in report["sizes"].values()}),
            facts=kept_sections(source),
            **loading(source, methods),
        )
    )


def kept_sections(source: Source) -> str:
    """What the card of a converted checkpoint says it lost; empty where it has no card."""
    card = source.folder / "README.md"
    text = card.read_text(encoding="utf-8") if card.is_file() else ""
    found = re.search(r"^## Lost\n.*?(?=^## Use\n)", text, re.M | re.S)
    return found[0].strip() if found else ""


def graph_card(source: Source, report: dict[str, Any], kind: Literal["onnx", "pt2"]) -> str:
    """The text of the card of a checkpoint that was exported as graphs.

    Args:
        source: the converted checkpoint.
        report: see `OnnxReport.to_dict` and `ProgramReport.to_dict`.
        kind: of their files.
    """
    entries = read_json(source.folder / "config.json", "config")
    methods = sorted({block["method"] for block in entries["heads"]["blocks"].values()})
    return (
        card_environment()
        .get_template(f"{kind}.md.jinja")
        .render(
            source=source,
            metadata=exported_metadata(source, True),
            methods=methods,
            report=report,
            start=entries.get("decoder_start_token_id"),
            facts=kept_sections(source),
            **loading(source, methods),
        )
    )
