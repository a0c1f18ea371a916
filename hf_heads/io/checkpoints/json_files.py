"""JSON files: read with errors that say what and where, checked against dataclasses, free of NaN; no torch."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, Literal, NoReturn, TypeVar, get_args, get_origin, get_type_hints

from hf_heads.core.errors import HeadsError

T = TypeVar("T")
_SCALARS = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}
_BEYOND = 1e300  # no figure is as large, and what is made of it is still finite; NaN is not below either
_SHOWN = 60  # characters of a value that an error shows


def read_text(path: str | Path, what: str) -> str:
    """The text in a regular file: a pipe or a device could keep who reads it waiting for ever.

    Args:
        path: the file.
        what: it holds, in a word or two, for the errors.

    Raises:
        HeadsError: the file is missing, cannot be read, or is something else than a file.
        UnicodeDecodeError: it does not hold UTF-8.
    """
    path = Path(path)
    try:
        if not path.is_file() and path.exists():
            raise HeadsError(f"cannot read the {what} '{path}': it is not a regular file")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise HeadsError(f"cannot read the {what} '{path}': {error.strerror}") from None


def read_json(path: str | Path, what: str) -> dict[str, Any]:
    """The JSON object in a file.

    Args:
        path: the file.
        what: it holds, in a word or two, for the errors.

    Raises:
        HeadsError: the file is missing, cannot be read, or holds something else.
    """
    try:
        entries = json.loads(read_text(path, what))
    except HeadsError:  # a ValueError too
        raise
    except (ValueError, RecursionError) as error:
        raise HeadsError(f"the {what} '{path}' is not valid JSON: {error}") from None
    if not isinstance(entries, dict):
        raise HeadsError(f"the {what} '{path}' is not a JSON object")
    return entries


def without_nan(value: Any) -> Any:
    """Plain values for JSON, which has no word for numbers that are not finite: they become None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: without_nan(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(one) for one in value]
    return value


# Records: msgspec and pydantic could check them too, but take 27 and 54 ms to import, where this file takes 3; and
# msgspec does not say what it found, nor where a NaN stands.


def as_record(kind: type[T], entries: Mapping[str, Any], refusal: str) -> T:
    """The entries of a JSON object as a dataclass, all of it checked.

    Entries that the dataclass does not know are left out; those with a default may be missing.

    Args:
        kind: a dataclass whose fields are other dataclasses, `str`, `int`, `float`, `bool`, `Any`, `Literal`, tuples,
            mappings, or one of these or None.
        entries: from `read_json`.
        refusal: what an error says first, such as `'x.json' is not a comparison`.

    Raises:
        HeadsError: says in one line what is wrong, and where: `models[2].score.value: expected a number, found "x"`.
    """
    try:
        made: T = _checked(kind, entries, "")
    except _UnexpectedError as error:
        raise HeadsError(f"{refusal}: {error}") from None
    return made


class _UnexpectedError(Exception):
    """Something else than a field's type says."""


def _refuse(where: str, expected: str, found: object) -> NoReturn:
    try:
        shown = json.dumps(found)
    except (ValueError, RecursionError):  # too many digits, or one thing in another hundreds of times
        shown = f"a {type(found).__name__}"
    shown = shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]} ..."
    raise _UnexpectedError(f"{where}: expected {expected}, found {shown}")


def _checked(kind: Any, value: Any, where: str) -> Any:
    """A JSON value as what a field's type says; `where` is its place in the record."""
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind):
        return _dataclass(kind, value, where)
    if origin is UnionType:  # X | None
        return None if value is None else _checked(inner[0], value, where)
    if origin is Literal:
        return value if value in inner else _refuse(where, f"one of {', '.join(inner)}", value)
    if origin is tuple:
        if not isinstance(value, list) or (inner[-1] is not ... and len(value) != len(inner)):
            _refuse(where, "a list" if inner[-1] is ... else f"a list of {len(inner)}", value)
        kinds = inner[:1] * len(value) if inner[-1] is ... else inner
        return tuple(
            _checked(kind, one, f"{where}[{n}]") for n, (kind, one) in enumerate(zip(kinds, value, strict=True))
        )
    if origin is Mapping:
        if not isinstance(value, dict):
            _refuse(where, "an object", value)
        key, kind = inner
        if key is int and (wrong := [name for name in value if not name.isdecimal()]):
            _refuse(where, "whole numbers as names", wrong[0])
        return {key(name): _checked(kind, one, f"{where}.{name}") for name, one in value.items()}
    whole = isinstance(value, int) and kind is float
    if (isinstance(value, bool) and kind is not bool) or not (isinstance(value, kind) or whole):
        _refuse(where, _SCALARS[kind], value)
    if kind in (int, float) and not abs(value) < _BEYOND:
        _refuse(where, _SCALARS[kind], value)
    return kind(value)


def _dataclass(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        _refuse(where, "an object", value)
    found = {}
    for item, inner in _fields(kind):
        place = f"{where}.{item.name}" if where else item.name
        if item.name in value:
            found[item.name] = _checked(inner, value[item.name], place)
        elif item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING:
            raise _UnexpectedError(f"{place} is missing")
    return kind(**found)


@cache
def _fields(kind: Any) -> list[tuple[dataclasses.Field[Any], Any]]:
    """The fields of a dataclass with their types; the annotations themselves are text."""
    kinds = get_type_hints(kind)
    return [(item, kinds[item.name]) for item in dataclasses.fields(kind)]
