"""Pieces of a page as data: cells, tables and pictures, which `templates/pieces.html.jinja` shows."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        text: what it says; the rest is about it.
        small: below it, in small letters.
        before: in front of it, where it is a link.
        href, title: where it links to, or what is shown when it is pointed at.
        unsure: set in grey.
    """

    text: str
    small: str = ""
    before: str = ""
    href: str = ""
    title: str = ""
    unsure: bool = False


@dataclass(frozen=True)
class Table:
    """A table that scrolls within its own box.

    Attributes:
        head: the columns' titles.
        rows: cells; the first is the row's title.
        words: how many columns from the left hold words; the others hold numbers and are set to the right.
        wide: as wide as the page, with the first column pinned while the others scroll.
    """

    head: tuple[Cell, ...]
    rows: tuple[tuple[Cell, ...], ...]
    words: int = 1
    wide: bool = False


@dataclass(frozen=True)
class Spot:
    """A place on a picture that leads somewhere.

    Attributes:
        x, y: in pixels from the upper left corner.
        href, title: where it leads, and what is shown when it is pointed at.
    """

    x: int
    y: int
    href: str
    title: str


@dataclass(frozen=True)
class Picture:
    """A PNG file, put into the page itself.

    Attributes:
        source: the file as an address.
        width, height: in pixels.
        alt: what it shows, for those who cannot see it.
        title, caption: below it.
        spots: what can be clicked on.
    """

    source: str
    width: int
    height: int
    alt: str
    title: str
    caption: str
    spots: tuple[Spot, ...] = ()


def picture(path: Path, alt: str, title: str, caption: str) -> Picture:
    """A PNG file for a page."""
    data = path.read_bytes()
    width, height = (int.from_bytes(data[begin : begin + 4], "big") for begin in (16, 20))  # of the IHDR chunk
    source = "data:image/png;base64," + base64.b64encode(data).decode("ascii")
    return Picture(source, width, height, alt, title, caption)


def cells(texts: Sequence[str]) -> tuple[Cell, ...]:
    """Cells that hold nothing but text."""
    return tuple(map(Cell, texts))
