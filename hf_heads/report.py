"""The model card of a converted checkpoint: what it is, what it lost and gained in numbers, how to load it."""

from __future__ import annotations

import re
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .checkpoint import Source
from .methods import get_method


def write_card(folder: Path, source: Source, record: dict[str, Any], recipe: str | None) -> None:
    """Write `README.md` with the metadata block that the hub reads.

    Args:
        folder: the checkpoint folder being made.
        source: what was converted.
        record: the content of `heads_report.json`.
        recipe: the text of the recipe, if one was used.
    """
    (folder / "README.md").write_text(model_card(source, record, recipe), encoding="utf-8")


def model_card(source: Source, record: dict[str, Any], recipe: str | None) -> str:
    """The text of the model card; see `write_card`."""
    blocks = record["blocks"]
    names = sorted({block["method"] for block in blocks})
    metadata = ["---", "library_name: transformers", "tags:", "- hf-heads", *(f"- {name}" for name in names)]
    if source.base_model:
        metadata += [f"base_model: {source.base_model}"]
    if found := source_license(source.folder):
        metadata += [f"license: {found}"]
    title = f"# {source.name}, attention heads re-parametrized ({', '.join(names)})"
    versions = ", ".join(f"{name} {version(name)}" for name in ("hf-heads", "transformers", "torch"))
    lines = [
        *metadata,
        "---",
        "",
        title,
        "",
        f"Made from `{source.base_model or source.name}`"
        + (f" at `{source.revision}`" if source.revision else "")
        + f" with {versions}.",
        "",
        *(f"- **{name}**: {get_method(name).title} ({get_method(name).paper})." for name in names),
        "",
        "## Gained",
        "",
        "| | before | after | |",
        "|---|---|---|---|",
        *(
            _row(label, record[f"{key}_before"], record[key])
            for label, key in (
                ("attention parameters", "attention_parameters"),
                ("model parameters", "model_parameters"),
                ("cached numbers per token, if cached", "cache_per_token"),
            )
        ),
        "",
        "## Lost",
        "",
        f"Calibration: {record['calibration']}. No fine-tuning. Differences of the outputs from the original's:",
        "",
        *drift_table(record["drift"]),
        "",
        "## Use",
        "",
        "```python",
        "import hf_heads  # pip install hf-heads; lets the Auto classes load this checkpoint",
        "from transformers import AutoModel  # or any AutoModelForX",
        "",
        'model = AutoModel.from_pretrained("PATH_OR_ID")',
        "```",
        "",
        "Where no import can be added, `trust_remote_code=True` reaches an installed hf-heads as well.",
        "",
        "## Blocks",
        "",
        "| block | kind | settings | parameters | before | error of the decomposition | refit gain |",
        "|---|---|---|---|---|---|---|",
        *(_block_row(block) for block in blocks),
        "",
    ]
    if recipe:
        lines += ["## Recipe", "", "```toml", recipe.strip(), "```", ""]
    return "\n".join(lines)


def _row(label: str, before: int, after: int) -> str:
    return f"| {label} | {before:,} | {after:,} | {percent(before, after)} |"


def percent(before: int, after: int) -> str:
    """The change from one number to another, such as `-12.5 %`."""
    return f"{100 * (after - before) / before:+.1f} %" if before else "0 %"


def drift_table(drift: dict[str, dict[str, float]]) -> list[str]:
    """Markdown rows of the drift on each kind of input."""
    named = {"random": "random inputs", "held-out": "held-out calibration examples"}
    figures = [
        name for name in ("cosine", "max_difference", "kl", "agreement") if any(name in row for row in drift.values())
    ]
    return [
        "| inputs | " + " | ".join(name.replace("_", " ") for name in figures) + " |",
        "|---" * (len(figures) + 1) + "|",
        *(
            f"| {named.get(inputs, inputs)} | "
            + " | ".join(f"{row[name]:.4f}" if name in row else "" for name in figures)
            + " |"
            for inputs, row in drift.items()
        ),
    ]


def settings_text(block: dict[str, Any]) -> str:
    """A block's settings in a few words, such as `collab rank 96 cp, 12 heads`."""
    names = [item.name for item in fields(get_method(block["method"]).spec) if item.name != "heads"]
    stored = {name: block[name] for name in names if name in block}
    words = [value if isinstance(value, str) else f"{name} {value}" for name, value in stored.items()]
    return " ".join([block["method"], *words]) + f", {block['heads']} heads"


def _block_row(block: dict[str, Any]) -> str:
    gain = "none" if block["refit_gain"] is None else f"{100 * block['refit_gain']:.1f} %"
    return (
        f"| `{block['name']}` | {block['kind']} | {settings_text(block)} | {block['parameters']:,} | "
        f"{block['parameters_before']:,} | {block['error']:.4f} | {gain} |"
    )


def source_license(folder: Path) -> str | None:
    """The licence in the metadata block of a checkpoint's own model card, if it states one."""
    card = folder / "README.md"
    if not card.is_file():
        return None
    front = re.match(r"---\n(.*?)\n---", card.read_text(encoding="utf-8", errors="replace"), re.S)
    found = re.search(r"^license:\s*([\w.-]+)\s*$", front[1], re.M) if front else None
    return found[1] if found else None
