"""Rows of whatever `datasets` loads: tables, their columns of texts and images."""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hf_heads.core.errors import HeadsError, reason
from hf_heads.core.numbers import shown
from hf_heads.io.data.sounds import SOUND_ENDINGS, is_sound, sound_rows, to_sound

Content = Literal["text", "image", "audio"]
_FORMATS = {
    ".jsonl": ("json", {}),
    ".json": ("json", {}),
    ".csv": ("csv", {}),
    ".tsv": ("csv", {"sep": "\t"}),
    ".parquet": ("parquet", {}),
    ".txt": ("text", {}),
}
_DEEPEST = 100  # lists and objects in one another, in a line of JSON
_BLANK = b"\xef\xbb\xbf \t\r\n"  # what may stand before a value, with the mark at the start of a file
_IMAGE_ENDINGS = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff"}

# Reading.


@dataclass(frozen=True)
class Table:
    """Rows of a data set.

    Attributes:
        source: what they were read from.
        rows: a value for every column, each; not empty.
        columns: names of the columns.
        classes: of the columns whose integers stand for names, as in a folder of images: the names.
    """

    source: str
    rows: list[dict[str, Any]]
    columns: list[str]
    classes: dict[str, list[str]]

    def of_kind(self, kind: Content, columns: Sequence[str] | None, besides: str | None = None) -> list[str]:
        """The columns that hold texts or images: `columns`, or all that do but `besides` when None.

        Raises:
            HeadsError: one of `columns` holds something else, or no column holds any.
        """
        first = self.rows[0]
        used = list(columns or [name for name in self.columns if name != besides and _kind(first[name]) == kind])
        if not used:
            have = ", ".join(self.columns)
            raise HeadsError(f"'{self.source}' has no {kind} column. Columns: {have}; name one with --columns")
        if wrong := [name for name in used if _kind(first[name]) != kind]:
            raise HeadsError(f"column '{wrong[0]}' of '{self.source}' holds no {kind}")
        for name in used:
            others = [row[name] for row in self.rows if row[name] is not None and _kind(row[name]) != kind]
            if others:
                mixed = f"column '{name}' of '{self.source}' holds {kind} in some rows and {type(others[0]).__name__}"
                raise HeadsError(f"{mixed} in others; make all of them {kind}")
        return used


def read_table(source: str, columns: Sequence[str], count: int, seed: int, optional: bool = False) -> Table:
    """Up to `count` rows of a data set, shuffled, that has all of `columns`, or none of them where they are `optional`.

    Raises:
        HeadsError: see `load_data`.
    """
    import datasets  # takes a second, and made data does without it

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(logging.CRITICAL)  # what it logs, it also raises
    dataset = _open(source, datasets)
    for name, feature in (dataset.features or {}).items():
        if isinstance(feature, datasets.Audio):  # decoding them takes libraries of its own
            dataset = dataset.cast_column(name, datasets.Audio(decode=False))
    names = _reading(source, lambda: dataset.column_names or list(next(iter(dataset), {})))
    if not names:
        raise HeadsError(f"the data '{source}' is empty")
    nested = [name for name in columns if name not in names and name.partition(".")[0] in names]
    unknown = [name for name in columns if name not in (*names, *nested)]
    if unknown and not (optional and len(unknown) == len(columns)):
        raise HeadsError(f"'{source}' has no column '{unknown[0]}'. Columns: {', '.join(names)}")
    rows = _reading(source, lambda: list(dataset.shuffle(seed=seed, buffer_size=10_000).take(count)))
    if not rows:
        raise HeadsError(f"the data '{source}' is empty")
    rows = [{**row, **{name: _inner(source, row, name) for name in nested}} for row in rows]
    names = [*names, *nested]
    features = (dataset.features or {}).items()
    classes = {name: feature.names for name, feature in features if isinstance(feature, datasets.ClassLabel)}
    return Table(source, rows, names, classes)


def _inner(source: str, row: Any, name: str) -> Any:
    """The value of a nested column such as `translation.en`, or `captions.0`; None where what holds it is.

    Raises:
        HeadsError: there is no such part.
    """
    value = row
    for part in name.split("."):
        if value is None:
            return None
        if isinstance(value, list) and part.isdecimal():
            if int(part) >= len(value):
                raise HeadsError(f"'{source}' has no column '{name}': a row has {len(value)} there, counted from 0")
            value = value[int(part)]
            continue
        if not isinstance(value, dict) or part not in value:
            parts = f"; its parts are {', '.join(map(str, value))}" if isinstance(value, dict) else ""
            raise HeadsError(f"'{source}' has no column '{name}': no '{part}' in it{parts}")
        value = value[part]
    return value


def read_examples(
    source: str,
    columns: Sequence[str] | None,
    modality: str,
    count: int,
    seed: int,
    label: str | None = None,
    paired: Callable[[str, Sequence[str]], bool] = lambda source, columns: False,
    optional: bool = False,
) -> tuple[list[Any], list[str]]:
    """Up to `count` raw examples of a data set, shuffled, and the columns that they come from.

    Texts are strings, text pairs and translations tuples of two strings, images PIL images. The column `label` is not
    among those found. `paired` says whether the texts of such columns are pairs; else they are so many single texts.
    Where columns are `optional`, data that has none of them is read as if they were not named.

    Raises:
        HeadsError: see `load_data`.
    """
    if label is not None and label in (columns or ()):
        raise HeadsError(f"column '{label}' is the label; leave it out of --columns")
    table = read_table(source, [*(columns or ()), *([] if label is None else [label])], count, seed, optional)
    columns = [name for name in columns or () if name in table.columns] or None
    if modality in _SEVERAL:
        return _several(table, columns, *_SEVERAL[modality], besides=label)
    kind: Content = "image" if modality == "image" else "text"
    used = table.of_kind(kind, columns, besides=label)
    if modality == "text-to-text" and len(used) > 2:
        raise HeadsError(f"'{source}' has {len(used)} text columns; name source and target with --columns a,b")
    if (len(used) == 2 and modality == "text-to-text") or (modality == "text" and paired(source, used)):
        found: list[Any] = [tuple(row[name] for name in used) for row in table.rows if all(row[name] for name in used)]
        if not found:
            raise HeadsError(f"no row of '{source}' has texts in both columns, {' and '.join(used)}")
        return found, used
    found = [row[name] for row in table.rows for name in used if row[name]]
    if not found:
        raise HeadsError(f"column '{used[0]}' of '{source}' is empty")
    if len(used) > 1:  # several text columns are so many texts; take as many as were asked for, evenly
        found = found[:count]
    return [to_image(value) for value in found] if kind == "image" else found, used


# What the examples of a modality consist of, and what they may have besides.
_SEVERAL: dict[str, tuple[tuple[Content, ...], tuple[Content, ...]]] = {
    "audio": (("audio",), ()),
    "audio-to-text": (("audio",), ("text",)),
    "text-image": (("text", "image"), ()),
}


def _several(
    table: Table,
    columns: Sequence[str] | None,
    kinds: Sequence[Content],
    optional: Sequence[Content],
    besides: str | None,
) -> tuple[list[Any], list[str]]:
    """Examples of one column of each kind, as tuples, and these columns.

    Raises:
        HeadsError: there is no such column, or more than one where none is named.
    """
    first, used = table.rows[0], []
    for kind in (*kinds, *optional):
        named = [name for name in columns or () if _kind(first[name]) == kind]
        if kind in optional and not named and all(_kind(first[name]) != kind for name in table.columns):
            continue
        found = table.of_kind(kind, named, besides=besides)
        if len(found) > 1:
            raise HeadsError(f"'{table.source}' has {len(found)} {kind} columns; name one with --columns")
        used.append((kind, found[0]))
    rows = [row for row in table.rows if all(row[name] for _, name in used)]
    if not rows:
        raise HeadsError(f"no row of '{table.source}' has something in each of {', '.join(name for _, name in used)}")
    return [tuple(_as_read(kind, row[name]) for kind, name in used) for row in rows], [name for _, name in used]


def _open(source: str, datasets: Any) -> Any:
    path = Path(source).expanduser()
    try:
        if path.is_file():
            if path.suffix not in _FORMATS:
                raise HeadsError(f"'{source}' is no {', '.join(_FORMATS)} file")
            if not path.stat().st_size:
                raise HeadsError(f"the data '{source}' is empty")
            _check_json(path)
            builder, options = _FORMATS[path.suffix]
            return datasets.load_dataset(builder, data_files=str(path), split="train", streaming=True, **options)
        if special := next((one for one in (path, *_below(path)) if one.exists() and not _plain(one)), None):
            raise HeadsError(f"'{special}' is not a regular file and cannot be read as data")
        if path.is_dir():
            for file in path.rglob("*"):
                _check_json(file)
            images = any(file.suffix.lower() in _IMAGE_ENDINGS for file in path.rglob("*"))
            if any(file.suffix.lower() in SOUND_ENDINGS for file in path.rglob("*")):
                return datasets.Dataset.from_list(sound_rows(path)).to_iterable_dataset()
            if images:
                return datasets.load_dataset("imagefolder", data_dir=str(path), split="train", streaming=True)
            return datasets.load_dataset(str(path), split="train", streaming=True)
        if path.suffix in _FORMATS or path.is_absolute() or source.startswith("."):
            raise HeadsError(f"calibration data '{source}' does not exist")
        name, *parts = source.split(":")
        subset, split = parts if len(parts) == 2 else (None, ":".join(parts))
        return datasets.load_dataset(name, subset or None, split=split or "train", streaming=True)
    except HeadsError:
        raise
    except Exception as error:
        raise HeadsError(f"cannot load '{source}' as data: {reason(error)}") from None


def _check_json(path: Path) -> None:
    """Refuse the rows at which Arrow's reader of JSON ends the process: null ones, and those nested without end.

    Raises:
        HeadsError: names the first such row of a .json or .jsonl file, or the file where it begins like a list and is
            none.
    """
    if path.suffix not in (".json", ".jsonl") or not path.is_file():
        return
    with path.open("rb") as file:
        if file.read(1_000).lstrip(_BLANK).startswith(b"["):
            _check_list(path)
            return
        file.seek(0)
        for number, line in enumerate(file, 1):
            if line.lstrip(_BLANK).startswith(b"null"):
                raise HeadsError(f"line {number} of '{path}' is null, expected an object: leave it out")
            if line.count(b"[") + line.count(b"{") > _DEEPEST and _depth(line) > _DEEPEST:
                raise HeadsError(f"line {number} of '{path}' nests more than {_DEEPEST} values in one another")


def _check_list(path: Path) -> None:
    """See `_check_json`; `datasets` makes lines of the rows in such a file, all of which it reads at once."""
    content = path.read_bytes()
    if content.count(b"[") + content.count(b"{") > _DEEPEST and _depth(content) > _DEEPEST:
        raise HeadsError(f"'{path}' nests more than {_DEEPEST} values in one another")
    try:
        rows = json.loads(content)
    except ValueError as error:
        raise HeadsError(f"'{path}' is not valid JSON: {error}") from None
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict | str):
            raise HeadsError(f"row {number} of '{path}' is {shown(row)}, expected an object")


def _depth(line: bytes) -> int:
    """How many lists and objects a line of JSON opens in one another."""
    depth = deepest = 0
    for found in re.finditer(rb'"(?:[^"\\]|\\.)*"|[\[{]|[\]}]', line):
        if found[0] in (b"[", b"{"):
            depth += 1
            deepest = max(deepest, depth)
        elif not found[0].startswith(b'"'):
            depth -= 1
    return deepest


def _below(path: Path) -> Iterable[Path]:
    """All that a folder holds."""
    return path.rglob("*") if path.is_dir() else ()


def _plain(path: Path) -> bool:
    """Whether a path is a file or a folder, and no pipe or device, at which a reader could wait for ever."""
    return path.is_file() or path.is_dir()


def _reading(source: str, read: Callable[[], list[Any]]) -> list[Any]:
    try:
        return read()
    except Exception as error:
        raise HeadsError(f"cannot read '{source}': {reason(error)}") from None


def _kind(value: Any) -> Content | Literal["other"]:
    if isinstance(value, str):
        return "text"
    if is_sound(value):
        return "audio"
    return "image" if hasattr(value, "convert") or _encoded(value) else "other"


def _encoded(value: Any) -> bool:
    return isinstance(value, bytes) or (isinstance(value, dict) and isinstance(value.get("bytes"), bytes))


def _as_read(kind: Content, value: Any) -> Any:
    if kind == "text":
        return value
    return to_image(value) if kind == "image" else to_sound(value)


def to_image(value: Any) -> Any:
    """A PIL image in RGB from an image, its encoded bytes or a dict that holds them."""
    if _encoded(value):
        try:
            from PIL import Image  # an extra: texts do without it
        except ImportError:
            raise HeadsError("images need pillow, which is not installed: pip install pillow") from None
        value = Image.open(io.BytesIO(value["bytes"] if isinstance(value, dict) else value))
    return value.convert("RGB")
