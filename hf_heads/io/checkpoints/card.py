"""The model card of a converted checkpoint: what it is, what it lost and gained in numbers, how to load it."""

from __future__ import annotations

import re
from functools import cache
from importlib.metadata import distribution, version
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from hf_heads.attention.hosts.table import architectures
from hf_heads.core.vocabulary import METRICS, PREFIX, lowest_cosine, percent
from hf_heads.io.checkpoints.card_metadata import metadata, method_names
from hf_heads.io.checkpoints.files import write_file
from hf_heads.io.checkpoints.json_files import read_json
from hf_heads.io.checkpoints.record import check_complete
from hf_heads.io.checkpoints.sources import Source
from hf_heads.methods.registry import get_method
from hf_heads.methods.words import settings_text
from hf_heads.modeling.auto_classes import auto_classes
from hf_heads.modeling.kept_card import ANY_ID, use_text, with_use
from hf_heads.modeling.portable.writing import can_carry, module_name

_SIZES = {
    "attention_parameters": "attention parameters",
    "model_parameters": "model parameters",
    "cache_per_token": "cached numbers per token, if cached",
}
_DRIFTS = ("cosine", "max_difference", "kl", "agreement")
_INPUTS = {"random": "random inputs", "held-out": "held-out calibration examples"}
_TRAINED = {"attention": "the attention alone", "all": "every parameter"}


def write_card(folder: Path, source: Source, record: dict[str, Any], recipe: str | None) -> None:
    """Write `README.md` with the metadata block that the hub reads.

    Args:
        folder: the checkpoint folder being made.
        source: what was converted.
        record: the content of `heads_report.json`.
        recipe: the text of the recipe, if one was used.
    """
    write_file(folder / "README.md", model_card(source, record, recipe))


def model_card(source: Source, record: dict[str, Any], recipe: str | None) -> str:
    """The text of the model card; see `write_card`.

    Raises:
        HeadsError: the record is not complete.
    """
    check_complete(record, source.given)
    healed = record.get("distillation")
    template = card_environment().get_template("card.md.jinja")
    use = use_text(**loading(source, method_names(record)))
    return template.render(
        source=source,
        record=record,
        recipe=recipe,
        metadata=metadata(source, record),
        methods=[get_method(name) for name in method_names(record)],
        versions=", ".join(f"{name} {version(name)}" for name in ("hf-heads", "transformers", "torch")),
        sizes=[(label, record[f"{key}_before"], record[key]) for key, label in _SIZES.items()],
        drifts=[name for name in _DRIFTS if any(name in row for row in record["drift"].values())],
        inputs_in_words=_INPUTS,
        lowest=lowest_cosine(record["drift"]),
        healed=healed,
        how=_how(healed) if healed else "",
        trained=_TRAINED,
        metrics=METRICS,
        home=_home(),
        use=use.strip(),
    )


def _home() -> str | None:
    """Where this package is to be had, as its metadata say; None where they do not."""
    named = [line.partition(", ") for line in distribution("hf-heads").metadata.get_all("Project-URL") or ()]
    return next((url for name, _, url in named if name.lower() in ("repository", "source", "homepage")), None)


def renew_use(source: Source) -> None:
    """Have the card of a converted checkpoint, if it has one, say how it is loaded by now."""
    card = source.folder / "README.md"
    entries = read_json(source.folder / "config.json", "config")
    if not card.is_file():
        return
    text = card.read_text(encoding="utf-8")
    methods = sorted({block["method"] for block in entries["heads"]["blocks"].values()})
    named = re.search(r'from_pretrained\((".*?")', text)
    values = {**loading(source, methods), **({"any_id": named[1]} if named else {})}
    write_file(card, with_use(text, use_text(**values)))


def loading(source: Source, names: list[str]) -> dict[str, Any]:
    """What the card says of loading: the file with the code, None where there is none, the Auto class, and the id."""
    entries = read_json(source.folder / "config.json", "config")
    adapter = architectures()[str(entries["model_type"]).removeprefix(PREFIX)]
    methods = tuple(names)
    made = str((entries.get("architectures") or [""])[0]).removeprefix("Heads")
    serving = sorted((auto for auto, native in auto_classes(adapter).items() if native == made), key=len)
    code = f"{module_name(adapter, methods)}.py" if can_carry(adapter, methods) else None
    embedder = (source.folder / "modules.json").is_file()
    return {
        "code": code,
        "auto": serving[0] if serving else "AutoModel",
        "embedder": embedder,
        "any_id": ANY_ID,
    }


def name_in_card(folder: Path, repo_id: str) -> None:
    """Put a hub id into the loading snippet of a folder's card, where `write_card` could not know it."""
    card = folder / "README.md"
    if card.is_file():
        text = card.read_text(encoding="utf-8")
        write_file(card, text.replace(ANY_ID, f'"{repo_id}"'))


@cache
def card_environment() -> Environment:
    """Templates of Markdown, in which nothing is escaped; they stay compiled."""
    made = Environment(
        loader=PackageLoader("hf_heads.io.checkpoints"), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    made.filters.update(
        cell=_cell,
        figure=_figure,
        finely=_finely,
        grouped="{:,}".format,
        lowered=_lowered,
        percent=percent,
        settings=settings_text,
    )
    return made


def _how(healed: dict[str, Any]) -> str:
    """How a checkpoint was trained, in a sentence."""
    losses = ", ".join(f"{name} {value:.4g}" for name, value in (healed.get("losses") or {}).items())
    parts = [f"losses {losses}"] * bool(losses)
    parts += [
        f"{name.replace('_', ' ')} {healed[name]}"
        for name in ("optimizer", "learning_rate", "batch_size")
        if name in healed
    ]
    return "; ".join(parts).capitalize() + "." * bool(parts)


def _lowered(markdown: str) -> str:
    """A document with its headings two levels down."""
    return "\n".join(f"##{line}" if line.startswith("#") else line for line in markdown.strip().splitlines())


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _finely(value: float | None) -> str:
    return "no number" if value is None else f"{value:.5f}"


def _cell(text: object) -> str:
    """Text that breaks no row of a table."""
    return " ".join(str(text).split()).replace("|", "\\|")
