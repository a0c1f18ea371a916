"""`heads_report.json`: the report that a conversion or a healing leaves in its folder."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_heads.core.errors import HeadsError
from hf_heads.core.vocabulary import REPORT
from hf_heads.io.checkpoints.files import write_file
from hf_heads.io.checkpoints.json_files import as_record, read_json, without_nan

_ELSEWHERE = r"(?:file://|~[\w.-]*|\.\.)?/"  # how a path begins that says where somebody's files are
_QUOTED = re.compile(rf"""(["'])(?:{_ELSEWHERE})[^"'\n]*?([^"'/\n]+)/*\1""")
_PATH = re.compile(rf"""(?<![\w:/.~<]){_ELSEWHERE}(?:[^\s"'`,;:|<>()\[\]{{}}/]+/+)*([^\s"'`,;:|<>()\[\]{{}}/]+)""")
_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{8,}")
SIZES = ("attention_parameters", "model_parameters", "cache_per_token")
_NEEDED = ("blocks", "calibration", "drift", *SIZES, *(f"{name}_before" for name in SIZES))  # by a model card
_Figures = Mapping[str, float | None]


@dataclass(frozen=True)
class _Block:
    name: str
    kind: str
    method: str
    heads: int
    parameters: int
    parameters_before: int
    error: float | None = None
    refit_gain: float | None = None


@dataclass(frozen=True)
class _Healing:
    teacher: str
    data: str
    train: str
    steps: int
    seconds: float
    before: _Figures
    after: _Figures
    losses: Mapping[str, float] | None = None


@dataclass(frozen=True)
class _Scored:
    task: str
    dataset: str
    metric: str
    value: float
    low: float | None = None
    high: float | None = None
    original: float | None = None


@dataclass(frozen=True)
class _Job:
    job: str
    block: str
    head: int
    before: float
    after: float


@dataclass(frozen=True)
class _Lower:
    converted: float | None
    original: float | None


@dataclass(frozen=True)
class _Report:
    """What a report may hold, as far as it is read."""

    source: str | None = None
    revision: str | None = None
    recipe: str | None = None
    calibration: str = ""
    calibration_choice: Mapping[str, Any] | None = None
    blocks: tuple[_Block, ...] = ()
    attention_parameters: int = 0
    attention_parameters_before: int = 0
    model_parameters: int = 0
    model_parameters_before: int = 0
    cache_per_token: int = 0
    cache_per_token_before: int = 0
    drift: Mapping[str, _Figures] = field(default_factory=dict)
    precision: Mapping[str, _Lower] = field(default_factory=dict)
    distillation: _Healing = _Healing("", "", "", 0, 0.0, {}, {})
    jobs: tuple[_Job, ...] = ()
    scores: tuple[_Scored, ...] = ()
    measured: str | None = None


def read_record(folder: Path) -> dict[str, Any]:
    """The report in a checkpoint folder; empty where there is none.

    Raises:
        HeadsError: it cannot be read, or an entry is of the wrong type.
    """
    path = folder / REPORT
    record = read_json(path, "report") if path.is_file() else {}
    as_record(_Report, record, f"the report '{path}' is damaged")
    return record


def check_complete(record: Mapping[str, Any], given: str) -> None:
    """Refuse a report that lacks what a model card says; before work whose card would be made from it.

    Args:
        record: from `read_record`, or to be written.
        given: what the user calls its checkpoint.

    Raises:
        HeadsError: names what is missing.
    """
    if missing := [name for name in _NEEDED if name not in record]:
        raise HeadsError(f"the report of '{given}' says nothing of {missing[0]}: convert its original anew")


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """Write the report into a checkpoint folder; figures that are not finite are null there."""
    text = json.dumps(without_nan(record), indent=2, allow_nan=False)
    write_file(folder / REPORT, text + "\n")


def published(value: Any) -> Any:
    """A record, or a text of one, as others may read it: paths are `./` and their last part, tokens are gone."""
    if isinstance(value, str):
        home = Path.home()
        text = value.replace(str(home), "~") if home.name else value  # a service may have the root for its home
        text = _QUOTED.sub(r"\1./\2\1", text)
        return _TOKEN.sub("hf_...", _PATH.sub(_last_part, text))
    if isinstance(value, dict):
        return {name: published(one) for name, one in value.items()}
    return [published(one) for one in value] if isinstance(value, list | tuple) else value


def _last_part(found: re.Match[str]) -> str:
    return f"./{found[1]}"


def recorded_source(folder: Path, record: dict[str, Any], option: str) -> str:
    """Where the original of a checkpoint is, by its report: a folder is looked for beside it and here.

    Args:
        folder: the checkpoint.
        record: the content of its report.
        option: by which the user can name the original.

    Raises:
        HeadsError: the report names none, or a folder that is in neither place.
    """
    given = record.get("source")
    if not isinstance(given, str):
        raise HeadsError(f"'{folder}' does not say what it was made from; name it with {option}")
    if not given.startswith("./"):
        return given
    for place in (folder.absolute().parent / given, Path(given)):
        if (place / "config.json").is_file():
            return str(place)
    raise HeadsError(
        f"'{folder}' was made from a folder '{given[2:]}', which is neither beside it nor here; name it with {option}"
    )
