"""The model card of a converted checkpoint: what it is, what it lost and gained in numbers, how to load it."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

from hf_heads.checkpoints.card_metadata import metadata, method_names
from hf_heads.checkpoints.sources import Source
from hf_heads.methods.registry import get_method
from hf_heads.methods.words import settings_text
from hf_heads.vocabulary import METRICS, percent


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
    names = method_names(record)
    title = f"# {source.name}, attention heads re-parametrized ({', '.join(names)})"
    versions = ", ".join(f"{name} {version(name)}" for name in ("hf-heads", "transformers", "torch"))
    healed = record.get("distillation")
    lines = [
        "---",
        metadata(source, record),
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
        f"Calibration: {record['calibration']}. "
        + ("Healed, see below. " if healed else "No fine-tuning. ")
        + "Differences of the outputs from the original's:",
        "",
        *drift_table(record["drift"]),
        "",
        *(_healed(healed) if healed else ()),
        *(_scores(record["scores"]) if record.get("scores") else ()),
        *(("## Measured", "", *_lowered(record["measured"]), "") if record.get("measured") else ()),
        "## Use",
        "",
        "```python",
        "import hf_heads  # pip install hf-heads; lets the Auto classes load this checkpoint",
        "from transformers import AutoModel  # or any AutoModelForX",
        "",
        f"model = AutoModel.{_LOAD.format(_ANY_ID)}",
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


_LOAD, _ANY_ID = 'from_pretrained("{}")', "PATH_OR_ID"


def name_in_card(folder: Path, repo_id: str) -> None:
    """Put a hub id into the loading snippet of a folder's card, where `write_card` could not know it."""
    card = folder / "README.md"
    if card.is_file():
        text = card.read_text(encoding="utf-8")
        card.write_text(text.replace(_LOAD.format(_ANY_ID), _LOAD.format(repo_id)), encoding="utf-8")


def _healed(record: dict[str, Any]) -> list[str]:
    """The section on training after the conversion, from the record's `distillation`."""
    losses = ", ".join(f"{name} {value:.4g}" for name, value in (record.get("losses") or {}).items())
    named = {"optimizer": "optimizer", "learning_rate": "learning rate", "batch_size": "batch size"}
    how = [f"losses {losses}"] * bool(losses)
    how += [f"{words} {record[name]}" for name, words in named.items() if name in record]
    before, after = record["before"], record["after"]
    return [
        "## Healed",
        "",
        f"Trained to give `{record['teacher']}`'s outputs: {record['steps']:,} steps in {record['seconds']:.0f} s on "
        f"{_cell(record['data'])}; trained was {_TRAINED.get(record['train'], record['train'])}. "
        + "; ".join(how).capitalize()
        + "." * bool(how),
        "",
        "| on held-out examples | before | after |",
        "|---|---|---|",
        *(
            f"| {METRICS[name][1]} | {_figure(before.get(name))} | {_figure(value)} |"
            for name, value in after.items()
            if name in METRICS
        ),
        "",
    ]


_TRAINED = {"attention": "the attention alone", "all": "every parameter"}


def _scores(scores: list[dict[str, Any]]) -> list[str]:
    """The section on tasks, from the record's `scores`."""
    return [
        "## Scores",
        "",
        "| task | dataset | metric | this model | interval | original |",
        "|---|---|---|---|---|---|",
        *(
            f"| {_cell(row['task'])} | {_cell(row['dataset'])} | {_cell(row['metric'])} | {_figure(row['value'])} | "
            f"{_figure(row.get('low'))} to {_figure(row.get('high'))} | {_figure(row.get('original'))} |"
            for row in scores
        ),
        "",
    ]


def _lowered(markdown: str) -> list[str]:
    """The lines of a document with its headings two levels down."""
    return [f"##{line}" if line.startswith("#") else line for line in markdown.strip().splitlines()]


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _cell(text: object) -> str:
    """Text that breaks no row of a table."""
    return " ".join(str(text).split()).replace("|", "\\|")


def _row(label: str, before: int, after: int) -> str:
    return f"| {label} | {before:,} | {after:,} | {percent(before, after)} |"


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


def _block_row(block: dict[str, Any]) -> str:
    gain = "none" if block["refit_gain"] is None else f"{100 * block['refit_gain']:.1f} %"
    return (
        f"| `{block['name']}` | {block['kind']} | {settings_text(block)} | {block['parameters']:,} | "
        f"{block['parameters_before']:,} | {block['error']:.4f} | {gain} |"
    )
