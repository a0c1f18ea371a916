"""The command convert: a checkpoint's attention heads re-parametrized."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_heads.cli.options import (
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

if TYPE_CHECKING:
    from hf_heads.attention.spec import HeadsSpec
    from hf_heads.conversion.recipes import Recipe


# convert


def add_convert(commands: Any, methods: bool) -> None:
    """Add the command convert; without `methods` it lacks their options."""
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
    from hf_heads.methods.registry import about, all_methods

    found: dict[str, tuple[dataclasses.Field[Any], list[str]]] = {}
    for name in all_methods():
        for item in dataclasses.fields(about(name).spec):
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
    from hf_heads.checkpoints.files import check_output
    from hf_heads.checkpoints.sources import resolve_source
    from hf_heads.cli.console import print_report, progress_bar, quiet

    quiet()
    from hf_heads.conversion.checkpoint import convert_checkpoint, default_output
    from hf_heads.conversion.recipes import load_recipe
    from hf_heads.data.calibration import CalibrationChoice

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
    from hf_heads.methods.registry import about, all_methods

    given = {name: value for name in _method_options() if (value := getattr(options, name)) is not None}
    if recipe is not None:
        if options.to or given:
            parser.error("convert: the recipe says the method and its settings; leave out --to and " + _flags(given))
        return recipe.specs
    if options.to is None:
        parser.error(f"convert: --to is missing. Methods: {', '.join(all_methods())}")
    if options.to not in all_methods():
        parser.error(f"convert: unknown method '{options.to}'. Methods: {', '.join(all_methods())}")
    spec = about(options.to).spec
    own = {item.name for item in dataclasses.fields(spec)}
    if foreign := {name: value for name, value in given.items() if name not in own}:
        parser.error(f"convert: {options.to} has no {_flags(foreign)}")
    return {"*": spec(**given)}


def _flags(names: Any) -> str:
    return ", ".join("--" + name.replace("_", "-") for name in names) or "its settings"
