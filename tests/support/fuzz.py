"""Damaged files by the thousand: strategies that damage what is whole, and the limits within which it is refused.

`HF_HEADS_FUZZ=20000` makes so many cases of all readers together; the default is a few of each. Which cases these are
is settled by the tests alone (`derandomize`); `HF_HEADS_FUZZ_SEED` makes others.
"""

from __future__ import annotations

import functools
import json
import math
import os
import random
import resource
import signal
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, example, given, seed, settings
from hypothesis import strategies as st

from hf_heads.core.errors import HeadsError

CASES = int(os.environ.get("HF_HEADS_FUZZ", "0"))
SEED = os.environ.get("HF_HEADS_FUZZ_SEED")
SECONDS = 20  # of computing that a case may take: a hang is what takes longer
WAITING = 300  # seconds that it may take in all, on a machine with other work
BYTES = 2**30  # of address space that a case may ask for beyond what the process has
_GREEDY = ("allocate memory", "MemoryError", "bad_alloc", "malloc of size", "enforce fail at alloc")
counts = Counter[str]()  # cases that ran, by test

# Junk.

_HUGE = [0, -1, 1, 2, 7, 2**31, 2**32, 2**63, -(2**63), 2**64, 10**9, 10**12, 10**400, 1e308, 1e-320, -0.0]
_ODD = ["", " ", "\x1b[31m", "\x00", "a\nb", "\u202e", "é漢🙂", "../x", "/etc/passwd", "x" * 5000, "%s{0}", "null", "1"]
# All characters there are take hypothesis seconds to list, which a few cases are not worth.
_LETTERS: Any = (
    st.characters(codec="utf-8") if CASES else "aZ09_-./'{}[]:,#%$ \"\\\t\n\0\x1b\x7f\xa0ß\u0301\u202e中\ufffe🙂"
)
_scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from(_HUGE),
    st.integers(-100, 100),
    st.floats(),
    st.sampled_from(_ODD),
    st.text(_LETTERS, max_size=12),
)


def _nested(depth: int) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value] if depth % 2 else {"a": value}
    return value


junk = st.one_of(
    _scalars,
    st.lists(_scalars, max_size=3),
    st.dictionaries(st.text(_LETTERS, max_size=5), _scalars, max_size=3),
    st.sampled_from([3, 60, 201]).map(_nested),
    st.builds(lambda: [0] * 500),
)

# Structure.

_Place = tuple[str | int, ...]


def _places(value: Any, before: _Place = ()) -> Iterator[_Place]:
    """The places of all that a JSON value holds."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        yield (*before, key)
        yield from _places(one, (*before, key))


def _change(value: Any, place: _Place, how: str, new: Any) -> None:
    *above, last = place
    for key in above:
        value = value[key]
    old = value[last]
    if how == "drop":
        del value[last]
    elif how == "wrap":
        value[last] = [old]
    elif how == "rename" and isinstance(value, dict):
        value[str(new)[:200] if abs(new if isinstance(new, int) else 0) < 10**300 else "huge"] = value.pop(last)
    elif how == "add" and isinstance(old, dict):
        old["added"] = new
    elif how == "add" and isinstance(old, list):
        old.append(new)
    elif how == "more" and type(old) in (int, float):
        value[last] = new if type(new) in (int, float) else old + 1
    else:
        value[last] = new


@st.composite
def damaged(draw: st.DrawFn, whole: Any, most: int = 3) -> Any:
    """A JSON value with some parts replaced, dropped, renamed, wrapped or added."""
    value = json.loads(json.dumps(whole))
    for _ in range(draw(st.integers(1, most))):
        places = list(_places(value))
        if not places:
            break
        place = places[draw(st.integers(0, len(places) - 1))]
        _change(
            value,
            place,
            draw(st.sampled_from(["replace", "replace", "more", "drop", "rename", "wrap", "add"])),
            draw(junk),
        )
    return value


def _repeated(text: str, number: int) -> str:
    """JSON in which one of the first names stands twice."""
    starts = [at for at, one in enumerate(text) if one == "{"][:40]
    if not starts:
        return text
    at = starts[number % len(starts)] + 1
    rest = text[at:].lstrip()
    name = rest[: rest.find(":")] if rest.startswith('"') and ":" in rest else '"a"'
    return f"{text[:at]}{name}: {'{' * (number % 3)}{'}' * (number % 3)}{'1' * (number % 3 == 0)}, {text[at:]}"


def json_files(whole: Any) -> st.SearchStrategy[bytes]:
    """The bytes of a JSON file that is damaged in its structure, its text or its bytes."""
    text = json.dumps(whole)
    return st.one_of(
        damaged(whole).map(_dumped),
        damaged(whole).map(_dumped),
        damaged(whole, 1).map(_dumped),
        st.integers(0, 200).map(lambda number: _repeated(text, number).encode()),
        flipped(text.encode()),
        st.sampled_from(
            [b"", b"null", b"[]", b"{}", b"\xff\xfe", b"[" * 100_000, b'{"a":' * 100_000, b"1e999", b"\x00"]
        ),
    )


def _dumped(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")


# Bytes.


@st.composite
def flipped(draw: st.DrawFn, whole: bytes) -> bytes:
    """Bytes of which some are changed, dropped, put in or repeated, or whose end is missing."""
    value = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(value) - 1)))
        how = draw(st.sampled_from(["flip", "flip", "set", "cut", "insert", "drop", "repeat"]))
        if how == "flip" and value:
            value[at] ^= 1 << draw(st.integers(0, 7))
        elif how == "set" and value:
            value[at] = draw(st.sampled_from([0, 0x0A, 0x22, 0x5B, 0x7B, 0x80, 0xFF]))
        elif how == "cut":
            del value[at:]
        elif how == "insert":
            value[at:at] = draw(st.binary(min_size=1, max_size=9))
        elif how == "drop":
            del value[at : at + draw(st.integers(1, 40))]
        else:
            value[at:at] = value[at : at + 40] * draw(st.integers(1, 20))
    return bytes(value)


# Limits.


class Hang(BaseException):
    """A case took too long."""


def _hang(*_: object) -> None:
    raise Hang(f"a case took more than {SECONDS} s of computing, or {WAITING} s in all")


def _address_space() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


@contextmanager
def limits() -> Iterator[None]:
    """A `with` block that fails where it takes too long, and in which asking for too much memory fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    before = [(number, signal.signal(number, _hang)) for number in (signal.SIGPROF, signal.SIGALRM)]
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.setitimer(signal.ITIMER_REAL, WAITING)
    resource.setrlimit(resource.RLIMIT_AS, (_address_space() + BYTES, hard))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for timer in (signal.ITIMER_PROF, signal.ITIMER_REAL):
            signal.setitimer(timer, 0)
        for number, handler in before:
            signal.signal(number, handler)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def check_words(text: str) -> None:
    """What is said of a damaged file is one line, of a length that can be read, and no failed attempt to get memory."""
    assert text and len(text.splitlines()) == 1, text
    assert len(text) < 1200, text
    assert not any(word in text for word in _GREEDY), text


def refused(call: Callable[[], Any]) -> Any:
    """What a reader makes of a file within the limits; None where it refuses the file in one line."""
    with limits():
        try:
            return call()
        except HeadsError as error:
            text = str(error)
    check_words(text)
    return None


def commanded(capture: Any, *arguments: object) -> int:
    """Call the command line within the limits; returns the exit code.

    It is 0, or 1 with one line on the standard error, or 2 with the usage before it; nothing there steers a terminal.
    """
    from hf_heads.cli.program import main  # not needed by all who import this

    capture.readouterr()
    with limits():
        try:
            code = main([str(one) for one in arguments])
        except SystemExit as stop:
            code = int(stop.code or 0)
    found = capture.readouterr()
    assert code in (0, 1, 2), (code, found.err)
    lines = [line for line in found.err.splitlines() if not line.startswith("hf-heads: warning: ")]
    assert "Traceback" not in found.err and "(unexpected;" not in found.err, found.err
    assert not any(ord(one) < 32 and one not in "\n\t" for one in found.out + found.err), found.err
    if code == 1 and lines:
        check_words("\n".join(lines))
    assert code == 2 or len(lines) <= code, found.err  # verify says what differs on the standard output
    return code


# Tests.


def fuzz(share: float, *examples: Any, least: int = 10, **strategies: st.SearchStrategy[Any]) -> Callable[..., Any]:
    """A test of damaged files.

    Args:
        share: of all cases, where `HF_HEADS_FUZZ` says how many these are.
        examples: cases that failed once, of the one argument that is drawn.
        least: cases where nothing says how many.
        strategies: the argument.
    """
    (name,) = strategies
    chosen = settings(
        max_examples=max(least, math.ceil(share * CASES)),
        derandomize=SEED is None,
        database=None,
        deadline=None,  # see `limits`
        print_blob=False,
        suppress_health_check=list(HealthCheck),
    )

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        def counted(*args: Any, **kwargs: Any) -> None:
            counts[f"{test.__module__.rpartition('.')[2]}::{test.__name__}"] += 1
            test(*args, **kwargs)

        counted = functools.wraps(test)(counted)
        made = given(**strategies)(counted)
        for one in examples:
            made = example(**{name: one})(made)
        made = chosen(made)
        return made if SEED is None else seed(int(SEED))(made)

    return decorate


def pick(options: list[Any], content: bytes) -> Any:
    """One of some options, by what a file holds."""
    return random.Random(content).choice(options)


def put(folder: Path, name: str, content: bytes) -> Path:
    """Write a file into a folder."""
    path = folder / name
    path.write_bytes(content)
    return path
