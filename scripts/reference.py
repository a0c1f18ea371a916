"""Writes docs/reference/ from the code: the command line, the Python interface, and the settings of every method."""

from __future__ import annotations

import argparse
import dataclasses
import enum
import inspect
import os
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "docs" / "reference"
MADE = "<!-- made by `python scripts/run.py reference`, do not edit -->"
_SECTIONS = ("Args", "Attributes", "Returns", "Raises", "Yields")


def command_line() -> str:
    """Every command with its options, as `--help` says them."""
    from hf_heads.cli.program import build_parser  # the other commands of run.py start without the package

    os.environ["COLUMNS"] = "100"  # of the usage lines
    parser = build_parser()
    lines = ["# Command line", "", MADE, "", f"{parser.description} {parser.epilog}", ""]
    (commands,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    helps = {action.dest: action.help for action in commands._choices_actions}
    for name, command in commands.choices.items():
        lines += [f"## {name}", "", _sentence(helps.get(name) or command.description or ""), ""]
        usage = command.format_usage().removeprefix("usage: ").rstrip()
        lines += ["```text", re.sub(r"^ +", "    ", usage, flags=re.M), "```", ""]
        for group in command._action_groups:
            shown = [one for one in group._group_actions if one.help is not argparse.SUPPRESS and one.dest != "help"]
            if shown:
                lines += [f"**{group.title}**", "", *(_option(command, one) for one in shown), ""]
    return _page(lines)


def _option(command: argparse.ArgumentParser, action: argparse.Action) -> str:
    value = command._get_formatter()._format_args(action, action.dest.upper()) if action.nargs != 0 else ""
    names = " ".join([", ".join(action.option_strings), value]).strip()
    text = " ".join((action.help or "").split()) % {**vars(action), "prog": command.prog}
    return f"- `{names}`: {_escaped(text)}"


def python() -> str:
    """Every public name with its signature and its docstring."""
    import hf_heads  # see above

    lines = ["# Python", "", MADE, "", "What `import hf_heads` offers; anything else may change without notice.", ""]
    modules = {"hf_heads": hf_heads, "hf_heads.compat": hf_heads.compat, "hf_heads.extend": hf_heads.extend}
    seen: set[int] = set()
    for place, module in modules.items():
        lines += [f"## {place}", "", *_docstring(module), ""]
        for name in _public(module):
            found = getattr(module, name)
            if id(found) not in seen and not isinstance(found, ModuleType | str):
                seen.add(id(found))
                lines += [*_entry(name, found), ""]
    return _page(lines)


def _public(module: ModuleType) -> list[str]:
    names = getattr(module, "__all__", None)
    if names is None:
        names = [name for name, one in vars(module).items() if getattr(one, "__module__", "") == module.__name__]
    return sorted((name for name in names if not name.startswith("_")), key=str.lower)


def _entry(name: str, found: Any) -> Iterator[str]:
    yield f"### {name}"
    yield ""
    if callable(found) and (signature := _signature(name, found)):
        yield from ("```py", signature, "```", "")
    yield from _docstring(found)
    if inspect.isclass(found) and not issubclass(found, enum.Enum | BaseException):
        for method, one in vars(found).items():
            function = one.__func__ if isinstance(one, classmethod | staticmethod) else one
            if not method.startswith("_") and inspect.isfunction(function) and function.__doc__:
                yield from ("", f"#### {name}.{method}", "", "```py", _signature(method, function), "```", "")
                yield from _docstring(function)


def _signature(name: str, found: Any) -> str:
    """`name(a, b = 1)`, over several lines where it is long."""
    try:
        signature = inspect.signature(found)
    except (TypeError, ValueError):  # an alias of a type
        return ""
    parameters = [one for one in signature.parameters.values() if one.name not in ("self", "cls")]
    words: list[str] = []
    for one in parameters:
        if one.kind is one.KEYWORD_ONLY and not any(word.startswith("*") for word in words):
            words.append("*")
        words.append(_parameter(one))
    returns = "" if signature.return_annotation in (signature.empty, "None") else signature.return_annotation
    arrow = f" -> {returns}" if returns else ""
    line = f"{name}({', '.join(words)}){arrow}"
    return line if len(line) <= 100 else "\n".join([f"{name}(", *(f"    {word}," for word in words), f"){arrow}"])


def _parameter(one: inspect.Parameter) -> str:
    stars = {one.VAR_POSITIONAL: "*", one.VAR_KEYWORD: "**"}.get(one.kind, "")
    kind = "" if one.annotation is one.empty else f": {one.annotation}"
    if one.default is one.empty:
        return f"{stars}{one.name}{kind}"
    plain = one.default is None or isinstance(one.default, str | int | float | bool | tuple)
    return f"{one.name}{kind} = {one.default!r}" if plain else f"{one.name}{kind} = ..."


def _docstring(found: Any) -> list[str]:
    """A docstring of Google's style as Markdown."""
    lines: list[str] = []
    section = False
    for line in (inspect.getdoc(found) or "").splitlines():
        if line.endswith(":") and line[:-1] in _SECTIONS:
            section = True
            lines += [f"**{line[:-1]}**", ""]
        elif section and (item := re.match(r"    (\S.*?): (.*)$", line)):
            lines.append(f"- `{item[1]}`: {_escaped(item[2])}")
        elif section and line.startswith("    "):
            indent = "  " if lines[-1].startswith(("-", " ")) else ""  # goes on an entry, or is a text of its own
            lines.append(indent + _escaped(line.strip()))
        else:
            section = section and not line.strip()
            lines.append(_escaped(line))
    return lines


def settings(name: str) -> list[str]:
    """A method's settings: a table for its page."""
    from hf_heads.methods.registry import about  # see above

    rows = ["| option | default | |", "|---|---|---|"]
    for item in dataclasses.fields(about(name).spec):
        if item.metadata.get("help") and item.metadata.get("command", True):
            flag = "--" + item.name.replace("_", "-")
            rows.append(f"| `{flag}` | {_default(item)} | {_escaped(item.metadata['help'])} |")
    return rows


def _default(item: dataclasses.Field[Any]) -> str:
    if item.default is dataclasses.MISSING or item.default is None:
        return ""
    return f"`{item.default}`" if not isinstance(item.default, bool) else ("on" if item.default else "off")


def _escaped(text: str) -> str:
    """Text in which angle brackets and bars stay what they are; code spans are left alone."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(
        part if part.startswith("`") else part.replace("<", "&lt;").replace("|", "\\|").replace("*", "\\*")
        for part in parts
    )


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:].rstrip(".") + "."


def _page(lines: list[str]) -> str:
    return "\n".join(lines).rstrip() + "\n"


def filled(text: str) -> str:
    """A page with the settings of every method that it names between markers."""

    def replace(found: re.Match[str]) -> str:
        return "\n".join([f"<!-- settings: {found[1]} -->", *settings(found[1]), "<!-- end -->"])

    return re.sub(r"<!-- settings: ([\w-]+) -->\n.*?<!-- end -->", replace, text, flags=re.S)


def pages() -> dict[Path, str]:
    """Every page that is made from the code, in whole or in part, as it has to be."""
    made = {FOLDER / "command-line.md": command_line(), FOLDER / "python.md": python()}
    parts = sorted((ROOT / "docs").glob("*.md"))
    return {**{path: filled(path.read_text(encoding="utf-8")) for path in parts}, **made}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--check", action="store_true", help="only name the pages that are not up to date")


def run(options: argparse.Namespace) -> int:
    """Write the pages that are not up to date, or only name them; 1 where some were and nothing was written."""
    old = {path: text for path, text in pages().items() if not path.is_file() or path.read_text("utf-8") != text}
    for path, text in old.items():
        print(path.relative_to(ROOT))
        if not options.check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    return int(options.check and bool(old))
