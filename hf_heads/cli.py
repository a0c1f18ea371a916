"""The command line: parses, prints, exits. No maths, and nothing slow is imported before a command needs it."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import __version__
from .cli_compare import add_compare
from .cli_distill import add_distill
from .cli_options import (
    SOURCE,
    add_calibration,
    add_command,
    add_device,
    add_push,
    add_seed,
    calibration_choice,
    check_push,
    find_device,
    positive,
    push,
)
from .cli_report import add_report
from .cli_studies import add_ablate, add_importance
from .errors import HeadsError

if TYPE_CHECKING:
    from .methods import HeadsSpec
    from .recipes import Recipe


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 well, 1 failed, 2 wrong usage."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    parser = build_parser(methods=bool(arguments) and arguments[0] == "convert")
    options = parser.parse_args(arguments)
    try:
        return int(options.run(options, parser))
    except HeadsError as error:
        print(f"hf-heads: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        print(f"hf-heads: interrupted; {str(stop) or 'nothing was written'}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if os.environ.get("HF_HEADS_DEBUG"):
            raise
        text = " ".join(str(error).split())[:300]
        print(
            f"hf-heads: error: {type(error).__name__}: {text} (unexpected; HF_HEADS_DEBUG=1 shows where)",
            file=sys.stderr,
        )
        return 1


def build_parser(methods: bool = True) -> argparse.ArgumentParser:
    """The parser; the options of the methods take seconds to import and are left out unless asked for."""
    parser = argparse.ArgumentParser(
        prog="hf-heads",
        description="Re-parametrize the attention heads of pretrained Transformers checkpoints.",
        epilog="Every command explains itself with --help.",
    )
    parser.add_argument("--version", action="version", version=f"hf-heads {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_convert(commands, methods)
    add_distill(commands)
    add_importance(commands)
    add_ablate(commands)
    add_compare(commands)
    _add_inspect(commands)
    _add_verify(commands)
    add_report(commands)
    _add_list(commands)
    return parser


# convert


def _add_convert(commands: Any, methods: bool) -> None:
    command = add_command(
        commands, "convert", _convert, "convert a checkpoint's attention heads and write an ordinary checkpoint"
    )
    command.add_argument("source", metavar="SOURCE", nargs="?", help=f"{SOURCE}; the recipe's base if left out")
    command.add_argument("--to", metavar="METHOD", help="what to convert to; `hf-heads list` shows the methods")
    if methods:
        for name, (item, used_by) in _method_options().items():
            _add_option(command, name, item, used_by)
    add_calibration(
        command,
        "--calibrate",
        "data to calibrate on: anything `datasets` loads (a hub id, a .jsonl, .csv, .tsv, .parquet or .txt file, a "
        "folder of images); `random` (the default) makes its own, `none` looks at the weights alone",
    )
    command.add_argument(
        "--blocks",
        metavar="PATTERN",
        help="shell patterns of the blocks to convert, comma-separated; !PATTERN leaves out",
    )
    command.add_argument("--recipe", metavar="FILE", help="a TOML recipe (see conversions/) that says all of this")
    command.add_argument("--no-refit", action="store_true", help="leave the output projections as they are")
    command.add_argument("--revision", metavar="REV", help="commit, branch or tag of a source on the hub")
    command.add_argument(
        "--output", metavar="DIR", help="folder to write (default: a name made of source and settings)"
    )
    command.add_argument("--overwrite", action="store_true", help="replace the output folder if it exists")
    add_device(command)
    command.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), help="of the weights written (default: the source's)"
    )
    add_seed(command)
    add_push(command)


def _method_options() -> dict[str, tuple[dataclasses.Field[Any], list[str]]]:
    """The fields of all methods' settings by name, with the methods that have them."""
    from .methods import all_methods, get_method

    found: dict[str, tuple[dataclasses.Field[Any], list[str]]] = {}
    for name in all_methods():
        for item in dataclasses.fields(get_method(name).spec):
            if item.metadata["command"]:
                found.setdefault(item.name, (item, []))[1].append(name)
    return found


def _add_option(command: argparse.ArgumentParser, name: str, item: dataclasses.Field[Any], used_by: list[str]) -> None:
    flag = "--" + name.replace("_", "-")
    text = f"{item.metadata['help']} [{', '.join(used_by)}]"
    kind = str(item.type)
    if "bool" in kind:
        command.add_argument(flag, action="store_true", default=None, help=text)
    elif "float" in kind:
        command.add_argument(flag, type=float, metavar="X", help=text)
    elif "int" in kind:
        command.add_argument(flag, type=positive, metavar="N", help=text)
    else:
        choices = item.metadata["choices"]
        command.add_argument(flag, choices=choices, metavar=None if choices else "FILE", help=text)


def _convert(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    from .checkpoint import check_output, resolve_source
    from .console import print_report, progress_bar, quiet

    quiet()
    from .checkpoint_conversion import CalibrationChoice, convert_checkpoint, default_output
    from .recipes import load_recipe

    recipe = load_recipe(options.recipe) if options.recipe else None
    specs = _specs(options, parser, recipe)
    choice = calibration_choice(options, CalibrationChoice() if recipe is None else recipe.calibration)
    given = options.source or (recipe.source if recipe else None)
    if given is None:
        parser.error("convert: SOURCE is missing: " + SOURCE)
    if options.output is not None:
        check_output(Path(options.output), options.overwrite)
    check_push(options, parser)
    source = resolve_source(given, options.revision or (recipe.revision if recipe else None))
    if recipe is not None:
        source = dataclasses.replace(source, base_model=recipe.base)
    output = Path(options.output) if options.output else default_output(source, list(specs.values())[-1])
    dtype = None
    if options.dtype:
        import torch

        dtype = getattr(torch, options.dtype)
    with progress_bar(not options.json) as progress:
        report = convert_checkpoint(
            source,
            specs,
            output,
            calibration=choice,
            blocks=options.blocks or (recipe.blocks if recipe else None),
            refit=not options.no_refit,
            overwrite=options.overwrite,
            device=find_device(options.device),
            dtype=dtype,
            recipe=recipe.text if recipe else None,
            progress=progress,
        )
    if not options.json:
        print_report(report.to_dict(), output)
    pushed = push(options, output)
    if options.json:
        print(json.dumps({"output": str(output), **pushed, **report.to_dict()}))
    return 0


def _specs(options: argparse.Namespace, parser: argparse.ArgumentParser, recipe: Recipe | None) -> dict[str, HeadsSpec]:
    """The settings that the options ask for, on top of the recipe's."""
    from .methods import all_methods, get_method

    given = {name: value for name in _method_options() if (value := getattr(options, name)) is not None}
    if recipe is not None:
        if options.to or given:
            parser.error("convert: the recipe says the method and its settings; leave out --to and " + _flags(given))
        return recipe.specs
    if options.to is None:
        parser.error(f"convert: --to is missing. Methods: {', '.join(all_methods())}")
    if options.to not in all_methods():
        parser.error(f"convert: unknown method '{options.to}'. Methods: {', '.join(all_methods())}")
    spec = get_method(options.to).spec
    own = {item.name for item in dataclasses.fields(spec)}
    if foreign := {name: value for name, value in given.items() if name not in own}:
        parser.error(f"convert: {options.to} has no {_flags(foreign)}")
    return {"*": spec(**given)}


def _flags(names: Any) -> str:
    return ", ".join("--" + name.replace("_", "-") for name in names) or "its settings"


# inspect


def _add_inspect(commands: Any) -> None:
    command = add_command(commands, "inspect", _inspect, "show what every attention block of a checkpoint is")
    command.add_argument("source", metavar="DIR_OR_ID", help=SOURCE)


def _inspect(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    from .checkpoint import resolve_source
    from .console import make_console, make_table, quiet

    quiet()
    from .report import percent, settings_text
    from .verification import inspect

    found = inspect(resolve_source(options.source))
    if options.json:
        print(json.dumps(found))
        return 0
    table = make_table("block", "kind", "settings", ">parameters", ">before", ">cache/token", ">before")
    for block in found["blocks"]:
        settings = f"standard, {block['heads']} heads" if block["method"] == "standard" else settings_text(block)
        table.add_row(
            block["name"],
            block["kind"],
            settings,
            *(f"{block[name]:,}" for name in ("parameters", "parameters_before", "cache", "cache_before")),
        )
    console = make_console()
    console.print(table)
    for label, name in (("attention parameters", "parameters"), ("key-value cache per token", "cache")):
        after, before = (sum(block[key] for block in found["blocks"]) for key in (name, f"{name}_before"))
        console.print(f"{label:26} {before:>14,} -> {after:>14,}  ({percent(before, after)})")
    return 0


# verify


def _add_verify(commands: Any) -> None:
    command = add_command(
        commands, "verify", _verify, "compare a converted checkpoint with its original: files, sizes and outputs"
    )
    command.add_argument("folder", metavar="DIR", help="the converted checkpoint")
    command.add_argument("--against", metavar="SOURCE", help="the original (default: the one that DIR names)")
    command.add_argument("--recipe", metavar="FILE", help="also check the figures of this recipe's [expect]")
    add_calibration(command, "--data", "inputs to compare on, as for convert --calibrate (default: random ones)")
    command.add_argument("--min-cosine", type=float, metavar="X", help="fail when the outputs' cosine is below this")
    command.add_argument("--tolerance", type=float, metavar="X", help="fail when any output differs by more than this")


def _verify(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    from .console import make_console, quiet

    quiet()
    from .checkpoint_conversion import CalibrationChoice
    from .recipes import load_recipe
    from .verification import verify

    folder = Path(options.folder)
    if not folder.is_dir():
        raise HeadsError(f"'{folder}' is no folder")
    data = None
    if options.calibrate:
        data = CalibrationChoice(options.calibrate, options.columns, samples=options.calibration_samples or 512)
    verdict = verify(
        folder,
        options.against,
        data=data,
        expect=load_recipe(options.recipe).expect if options.recipe else None,
        min_cosine=options.min_cosine,
        tolerance=options.tolerance,
    )
    if options.json:
        print(json.dumps({"figures": verdict.figures, "failures": verdict.failures}))
    else:
        console = make_console()
        for name, value in verdict.figures.items():
            text = f"{value:,}" if isinstance(value, int) else f"{value:.6g}"
            console.print(f"{name.replace('_', ' '):26} {text}")
        for failure in verdict.failures:
            console.print(f"FAILED {failure}", style="red", markup=False, soft_wrap=True)
        if not verdict.failures:
            console.print("files and figures are as they should be", style="green")
    return 1 if verdict.failures else 0


# list


def _add_list(commands: Any) -> None:
    add_command(commands, "list", _list, "show the methods and the architectures that they work on")


def _list(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    from .adapters import ADAPTERS, REFUSED
    from .console import make_console, make_table
    from .methods import all_methods, get_method

    methods = {name: get_method(name) for name in all_methods()}
    pairs = {
        name: {
            **{model_type: method.reason_against.get(model_type, "yes") for model_type in ADAPTERS},
            **{model_type: method.reason_against.get(model_type, reason) for model_type, reason in REFUSED.items()},
        }
        for name, method in methods.items()
    }
    if options.json:
        print(json.dumps(pairs))
        return 0
    console = make_console()
    table = make_table("method", *ADAPTERS, "what it does")
    for name, method in methods.items():
        table.add_row(name, *(pairs[name][model_type] for model_type in ADAPTERS), method.title)
    console.print(table)
    by_reason: dict[str, list[str]] = {}
    for model_type, reason in REFUSED.items():
        by_reason.setdefault(reason, []).append(model_type)
    for reason, model_types in by_reason.items():
        console.print(f"not {', '.join(model_types)}: {reason}", highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
