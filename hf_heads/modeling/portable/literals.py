"""Values as Python code, laid out as a formatter would."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from types import FunctionType
from typing import Any

from hf_heads.core.errors import HeadsError

_WIDTH = 120


class Name(str):
    """A name in the code, which stands there without quotes."""


def literal(value: Any, indent: int = 0, room: int = 0) -> str:
    """A value as code: texts, numbers, functions and names, tuples, dicts, dataclasses by what is not as by default.

    Args:
        value: what to write.
        indent: of the line on which it starts.
        room: characters of that line that are taken.

    Raises:
        HeadsError: there is no code for such a value.
    """
    if isinstance(value, Name):
        return str(value)
    if isinstance(value, FunctionType) and value.__qualname__.isidentifier():
        return value.__name__
    if isinstance(value, str):
        return f'r"{value}"' if "\\" in value and '"' not in value else json.dumps(value)
    if value is None or isinstance(value, (bool, int, float)):
        return repr(value)
    opening, closing, parts = _parts(value)
    flat = [prefix + literal(part, 0, -1_000_000) for prefix, part in parts]
    line = opening + ", ".join(flat) + ("," if isinstance(value, tuple) and len(flat) == 1 else "") + closing
    if indent + room + len(line) <= _WIDTH:
        return line
    inner = indent + 4
    rows = [" " * inner + prefix + literal(part, inner, len(prefix) + 1) + "," for prefix, part in parts]
    return "\n".join([opening, *rows, " " * indent + closing])


def named_in(value: Any) -> Iterator[type | FunctionType]:
    """The dataclasses and functions that the code of a value names."""
    if isinstance(value, FunctionType):
        yield value
    elif not isinstance(value, (str, int, float, type(None))):
        if is_dataclass(value) and not isinstance(value, type):
            yield type(value)
        for _, part in _parts(value)[2]:
            yield from named_in(part)


def _parts(value: Any) -> tuple[str, str, list[tuple[str, Any]]]:
    """How a value opens and closes, and its parts with what stands before each."""
    if isinstance(value, tuple):
        return "(", ")", [("", part) for part in value]
    if isinstance(value, dict):
        return "{", "}", [(f"{literal(key)}: ", part) for key, part in value.items()]
    if is_dataclass(value) and not isinstance(value, type):
        shown = [
            (f"{item.name}=", part) for item in fields(value) if (part := getattr(value, item.name)) != _default(item)
        ]
        return f"{type(value).__name__}(", ")", shown
    raise HeadsError(f"there is no code for {value!r}")


def _default(item: Field[Any]) -> Any:
    return item.default if item.default_factory is MISSING else item.default_factory()
