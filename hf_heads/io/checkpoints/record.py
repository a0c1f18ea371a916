"""`heads_report.json`: the report that a conversion or a healing leaves in its folder."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from hf_heads.core.errors import HeadsError
from hf_heads.core.numbers import shown
from hf_heads.core.vocabulary import REPORT
from hf_heads.io.checkpoints.files import write_file
from hf_heads.io.checkpoints.json_files import read_json, without_nan

_ELSEWHERE = r"(?:file://|~[\w.-]*|\.\.)?/"  # how a path begins that says where somebody's files are
_QUOTED = re.compile(rf"""(["'])(?:{_ELSEWHERE})[^"'\n]*?([^"'/\n]+)/*\1""")
_PATH = re.compile(rf"""(?<![\w:/.~<]){_ELSEWHERE}(?:[^\s"'`,;:|<>()\[\]{{}}/]+/+)*([^\s"'`,;:|<>()\[\]{{}}/]+)""")
_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{8,}")
_EXPECTED: dict[str, tuple[Any, str]] = {
    "source": (str | None, "text"),
    "revision": (str | None, "text"),
    "drift": (dict, "an object"),
    "distillation": (dict, "an object"),
    "blocks": (list, "a list"),
}


def read_record(folder: Path) -> dict[str, Any]:
    """The report in a checkpoint folder; empty where there is none.

    Raises:
        HeadsError: it cannot be read, or an entry is of the wrong type.
    """
    path = folder / REPORT
    record = read_json(path, "report") if path.is_file() else {}
    for name, (kinds, expected) in _EXPECTED.items():
        if name in record and not isinstance(record[name], kinds):
            raise HeadsError(f"the report '{path}' is damaged: {name} is {shown(record[name])}, expected {expected}")
    for name, figures in record.get("drift", {}).items():
        if not isinstance(figures, dict) or not all(isinstance(one, int | float | None) for one in figures.values()):
            raise HeadsError(f"the report '{path}' is damaged: drift.{name} is {shown(figures)}, expected figures")
    return record


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
