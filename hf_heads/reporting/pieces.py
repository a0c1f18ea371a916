"""Pieces of a self-contained HTML page: escaped text, tables, figures, the page around them and its style."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

STYLE = """
:root { --ink: #1b1f24; --soft: #57606a; --line: #d8dee4; --wash: #f6f8fa; --link: #0a4f8f; }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body { margin: 0; color: var(--ink); background: #fff;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "Helvetica Neue", Arial, sans-serif; }
main, footer { max-width: 70rem; margin: 0 auto; padding: 0 1rem; overflow-wrap: break-word; }
h1, h2, h3 { font-family: "Iowan Old Style", "Palatino Linotype", Palatino, Charter, Georgia, serif;
  font-weight: 600; line-height: 1.2; text-wrap: balance; }
h1 { font-size: clamp(1.7rem, 1.2rem + 2.2vw, 2.5rem); margin: 2.5rem 0 .5rem; }
h2 { font-size: 1.5rem; margin: 3.5rem 0 .5rem; }
h3 { font-size: 1.15rem; margin: 2.5rem 0 .75rem; }
p, dl, ul { max-width: 44rem; margin: 0 0 1rem; }
a { color: var(--link); text-underline-offset: .15em; }
code { font: .875em ui-monospace, SFMono-Regular, Menlo, Consolas, "Liberation Mono", monospace; }
.facts { color: var(--soft); font-size: .9rem; }
.summary { padding-left: 1.1rem; font-size: 1.05rem; }
.summary li { margin-bottom: .4rem; }
.summary li::marker { color: var(--soft); }
.keep { white-space: nowrap; }
.scroll { overflow-x: auto; margin: 0 0 1rem; /* and a shadow where there is more to the right */
  background: linear-gradient(to left, #fff 30%, #fff0) right / 2.5rem 100% no-repeat local,
    linear-gradient(to left, #1b1f2433, #1b1f2400) right / .7rem 100% no-repeat scroll; }
.scroll:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
table { border-collapse: collapse; font-size: .875rem; line-height: 1.35; font-variant-numeric: tabular-nums; }
.wide { width: 100%; }
th, td { padding: .45rem .6rem; text-align: left; vertical-align: baseline; border-bottom: 1px solid var(--line); }
thead th { font-weight: 600; color: var(--soft); border-bottom: 1px solid var(--soft); vertical-align: bottom; }
tbody th { font-weight: 600; }
.number { text-align: right; }
td.number { white-space: nowrap; }
th:first-child, td:first-child { padding-left: 0; }
th:last-child, td:last-child { padding-right: 0; }
small { display: block; font-size: .75rem; font-weight: 400; color: var(--soft); }
h2 small { font: 400 .9rem/1.4 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; margin-top: .3rem; }
.unsure { color: var(--soft); }
.pinned tbody th, .pinned thead th:first-child { position: sticky; left: 0; background: #fff; padding-right: .7rem;
  min-width: 8.5rem; max-width: 15rem; overflow-wrap: anywhere; }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 26rem), 1fr)); gap: 2.5rem 3rem;
  align-items: start; margin: 1.5rem 0 1rem; }
figure { margin: 0; max-width: 34rem; }
figure img { display: block; width: 100%; height: auto; }
figcaption { margin-top: .6rem; font-size: .875rem; line-height: 1.45; color: var(--soft); }
.wide td:nth-child(2) { min-width: 7.5rem; }
details { border-bottom: 1px solid var(--line); }
h2 + details, h3 + details { border-top: 1px solid var(--line); }
summary { cursor: pointer; padding: .6rem 0; }
summary span { color: var(--soft); font-size: .9rem; margin-left: .4rem; }
details[open] { padding-bottom: 1rem; }
dt { font-weight: 600; }
dd { margin: 0 0 .6rem; }
.pairs { display: grid; grid-template-columns: minmax(6rem, max-content) 1fr; gap: .2rem 1.2rem; font-size: .9rem; }
.meaning { max-width: none; font-size: .9375rem; }
@media (min-width: 48rem) { .meaning { display: grid; grid-template-columns: minmax(8rem, max-content) 44rem;
  gap: .4rem 2rem; } }
.meaning dd { margin: 0 0 .5rem; }
.pairs dt { font-weight: 400; color: var(--soft); }
.pairs dd { margin: 0; min-width: 0; overflow-wrap: anywhere; }
footer { margin-top: 4rem; padding-top: 1rem; padding-bottom: 3rem; font-size: .875rem; color: var(--soft); }
footer code { display: block; overflow-wrap: anywhere; color: var(--ink); background: var(--wash); padding: .6rem .8rem;
  margin: .5rem 0; }
@media (max-width: 30rem) { th, td { padding-left: .5rem; padding-right: .5rem; } }
@media print { .scroll { overflow: visible; } details > * { display: block; } }
"""


def text(value: object) -> str:
    """Any text, with all that HTML would read as markup escaped."""
    return escape(str(value), quote=True)


def unbroken(value: str) -> str:
    """Escaped text that is kept on one line, unless it is long."""
    return element("span", text(value), class_="keep") if len(value) <= 32 else text(value)


def element(name: str, inside: str, **attributes: str) -> str:
    """An element around finished markup; a trailing underscore of an attribute's name is dropped, as in `class_`."""
    pairs = "".join(f' {key.rstrip("_").replace("_", "-")}="{text(value)}"' for key, value in attributes.items())
    return f"<{name}{pairs}>{inside}</{name}>"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, words: int = 1, wide: bool = False) -> str:
    """A table that scrolls within its own box.

    Args:
        head: the columns' titles, finished markup.
        rows: cells, finished markup; the first is the row's title.
        words: how many columns from the left hold words; the others hold numbers and are set to the right.
        wide: as wide as the page, with the first column pinned while the others scroll.
    """

    def cell(name: str, place: int, inside: str, **attributes: str) -> str:
        return element(name, inside, **attributes, **({} if place < words else {"class_": "number"}))

    top = "".join(cell("th", place, title, scope="col") for place, title in enumerate(head))
    body = "".join(
        element("tr", element("th", first, scope="row") + "".join(cell("td", n + 1, one) for n, one in enumerate(rest)))
        + "\n"
        for first, *rest in rows
    )
    inside = element("thead", element("tr", top)) + "\n"
    made = element("table", inside + element("tbody", body), **({"class_": "wide pinned"} if wide else {}))
    # A box that scrolls must be reachable by keyboard.
    return element("div", made, class_="scroll", tabindex="0") + "\n"


def pairs(rows: Iterable[tuple[str, str]], class_: str = "pairs") -> str:
    """Terms with what belongs to them, both finished markup."""
    inside = "".join(element("dt", term) + element("dd", found) + "\n" for term, found in rows)
    return element("dl", inside, class_=class_) + "\n"


def image(path: Path, alt: str, caption: str) -> str:
    """A PNG file, put into the page itself, with its caption (finished markup)."""
    data = path.read_bytes()
    width, height = (int.from_bytes(data[begin : begin + 4], "big") for begin in (16, 20))  # of the IHDR chunk
    source = "data:image/png;base64," + base64.b64encode(data).decode("ascii")
    inside = f'<img src="{source}" alt="{text(alt)}" width="{width}" height="{height}">'
    return element("figure", inside + element("figcaption", caption)) + "\n"


def page(title: str, body: str, foot: str) -> str:
    """A whole page, which loads nothing: the policy forbids it, too."""
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="generator" content="hf-heads report">\n<link rel="icon" href="data:,">\n'
        f"<title>{text(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"{element('main', body)}\n{element('footer', foot)}\n</body>\n</html>\n"
    )
