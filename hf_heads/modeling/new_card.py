"""The model card of what is saved without a report: what was done to which model, and nothing of what that costs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData, metadata_load
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from hf_heads.attention.spec import HeadsSpec
from hf_heads.core.vocabulary import VERSION
from hf_heads.methods.registry import get_method
from hf_heads.methods.words import settings_text
from hf_heads.modeling.kept_card import CARD


def new_card(specs: dict[str, HeadsSpec], where: str, original: str) -> str:
    """A model card.

    Args:
        specs: the settings of every converted block by name.
        where: what the model was loaded from, a folder or a repository; empty where it was not.
        original: the name of the class that was converted.
    """
    names = sorted({spec.method for spec in specs.values()})
    base = _base_model(where)
    data = ModelCardData(library_name="transformers", tags=["hf-heads", *names], base_model=base)
    made_from = base if isinstance(base, str) else Path(where).name or f"a {original}"
    lines = [
        f"---\n{data.to_yaml(original_order=['library_name', 'tags', 'base_model'])}\n---",
        f"# {made_from.rpartition('/')[2]}, attention heads re-parametrized ({', '.join(names)})",
        f"Made from `{made_from}` with hf-heads {VERSION}. What that gains and loses is not written here: `hf-heads "
        "compare ORIGINAL DIR` measures it.",
        "\n".join(f"- **{name}**: {get_method(name).title} ({get_method(name).paper})." for name in names),
        "## Use\n",
        "## Blocks",
        "\n".join(["| block | settings |", "|---|---|", *(_row(name, spec) for name, spec in specs.items())]),
    ]
    return "\n\n".join(lines) + "\n"


def _row(name: str, spec: HeadsSpec) -> str:
    return f"| `{name}` | {settings_text(spec.to_config())} |"


def _base_model(where: str) -> Any:
    """The hub ids that a model goes by, or that the card beside it names; None where there is none."""
    card = Path(where) / CARD
    try:
        found = metadata_load(card) if where and card.is_file() else None
        base = (found or {}).get("base_model") if Path(where).is_dir() else where
        for one in base if isinstance(base, list) else [base]:
            validate_repo_id(one)
    except (OSError, ValueError, AttributeError, HFValidationError):
        return None
    return base
