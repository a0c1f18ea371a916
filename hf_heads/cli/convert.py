"""The command convert: a checkpoint's attention heads re-parametrized."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hf_heads.attention.spec import HeadsSpec
from hf_heads.cli.options import (
    SOURCE,
    add_calibration,
    add_command,
    add_device,
    add_push,
    add_seed,
    calibration_choice,
    check_push,
    number,
    print_json,
    push,
)
from hf_heads.core.errors import HeadsError
from hf_heads.core.nearest import did_you_mean
from hf_heads.core.numbers import Number, byte_count
from hf_heads.core.vocabulary import ACTIVATIONS, COMPUTE, INPUTS, OBJECTIVES
from hf_heads.io.checkpoints.files import check_output
from hf_heads.io.data.choice import EXAMPLES_USUAL, TOKENS_ENOUGH
from hf_heads.jobs.conversion.recipes import load_recipe
from hf_heads.jobs.conversion.request import DTYPES, ConversionRequest, default_output
from hf_heads.jobs.distillation.settings import SECONDS
from hf_heads.methods.registry import about, all_methods

_EXAMPLES = """\
examples:
  hf-heads convert bert-base-uncased --to collab --rank 256 --calibrate texts.txt
  hf-heads convert bert-base-uncased --to low-rank --energy 0.99
  hf-heads convert MODEL --to pruned --keep 0.5 --calibrate train.jsonl --label label --push-to-hub ME/MODEL
  hf-heads convert --recipe all-MiniLM-L6-v2-collab-96"""


def add_convert(commands: Any, methods: bool) -> None:
    """Add the command convert; without `methods` it lacks their options."""
    command = add_command(
        commands, "convert", _convert, "convert a checkpoint's attention heads and write an ordinary checkpoint"
    )
    command.formatter_class = argparse.RawDescriptionHelpFormatter
    command.epilog = _EXAMPLES
    command.add_argument("source", metavar="SOURCE", nargs="?", help=f"{SOURCE}; the recipe's base if left out")
    command.add_argument("--to", metavar="METHOD", help="what to convert to; `hf-heads list` shows the methods")
    if methods:
        _add_settings(command)
    add_calibration(
        command,
        "--calibrate",
        "data to calibrate on: anything `datasets` loads (a hub id, a .jsonl, .csv, .tsv, .parquet or .txt file, a "
        "folder of images); `random` (the default) makes its own, which language models write themselves, `none` looks "
        "at the weights alone",
        packs=True,
        usual=f"{EXAMPLES_USUAL}; of short texts as many as come to {TOKENS_ENOUGH:,} tokens",
    )
    command.add_argument(
        "--blocks",
        metavar="PATTERN",
        help="shell patterns of the blocks to convert, comma-separated; !PATTERN leaves out",
    )
    command.add_argument(
        "--keep-heads",
        metavar="LIST",
        help="heads to leave exact, as encoder.layer.1:7,encoder.layer.2:9, those with a job, as matching (`inspect "
        "--heads` shows them), or none; by default those that match where the data are pairs, and for collab the rank "
        "is below a quarter [collab, pruned]",
    )
    _add_ways(command)
    command.add_argument(
        "--recipe",
        metavar="FILE_OR_NAME",
        help="a TOML recipe that says all of this: a file, or one of `hf-heads recipes` by its name",
    )
    command.add_argument("--no-refit", action="store_true", help="leave the output projections as they are")
    command.add_argument("--revision", metavar="REV", help="commit, branch or tag of a source on the hub")
    command.add_argument(
        "--output", metavar="DIR", help="folder to write (default: a name made of source and settings)"
    )
    command.add_argument("--overwrite", action="store_true", help="replace the output folder if it exists")
    command.add_argument(
        "--native",
        action="store_true",
        help="write a checkpoint of the source's own architecture, as export --native does; settings that it cannot "
        "say are refused before the work",
    )
    add_device(command)
    command.add_argument("--dtype", choices=DTYPES, help="of the weights written (default: the source's)")
    command.add_argument(
        "--max-shard-size",
        metavar="SIZE",
        type=_size,
        help="of each file of weights, as 2GB or 500MB (default 5GB); less takes less memory",
    )
    add_seed(command)
    add_push(command)


def _add_ways(command: argparse.ArgumentParser) -> None:
    """The options of how a conversion goes about its work."""
    command.add_argument(
        "--objective",
        choices=tuple(OBJECTIVES),
        help="what errors of scores are weighed by: attention (the default), or scores, which takes less time",
    )
    command.add_argument(
        "--inputs",
        choices=tuple(INPUTS),
        help="what a block is converted on: what reaches it behind converted blocks (the default), or in the original, "
        "which then runs once for all blocks",
    )
    command.add_argument(
        "--cache",
        metavar="DIR",
        help="keep what is done in DIR: a conversion that was killed goes on from there, and with --inputs original "
        "another rank or method takes no forward pass to convert",
    )
    command.add_argument(
        "--activations-on",
        choices=tuple(ACTIVATIONS),
        help="where what the calibration data has become waits: in memory up to 1 GiB and beyond it on disk (auto, the "
        "default), in memory, or on disk; the result is the same",
    )
    command.add_argument(
        "--compute",
        choices=tuple(COMPUTE),
        help="what the forward passes over the calibration data are computed in (default float32): bfloat16 is faster "
        "where the processor has it; statistics stay in float64",
    )
    command.add_argument(
        "--polish",
        metavar="SECONDS",
        type=number(SECONDS),
        help="then train the converted attention for so long to do what the original does, on the calibration data, as "
        "distill does; nothing is trained where it is left out",
    )


def _method_options() -> dict[str, tuple[dataclasses.Field[Any], list[str]]]:
    """The fields of all methods' settings by name, with the methods that have them."""
    found: dict[str, tuple[dataclasses.Field[Any], list[str]]] = {}
    for name in all_methods():
        for item in dataclasses.fields(about(name).spec):
            if item.metadata["command"]:
                found.setdefault(item.name, (item, []))[1].append(name)
    return found


def _add_settings(command: argparse.ArgumentParser) -> None:
    """The options of methods: those of several first, then each one's own."""
    options = _method_options()
    groups: dict[str, Any] = {"": command.add_argument_group("settings of several methods, named in brackets")}
    for name, (item, used_by) in sorted(options.items(), key=lambda one: len(one[1][1]) == 1):
        own = used_by[0] if len(used_by) == 1 else ""
        if own not in groups:
            groups[own] = command.add_argument_group(f"settings of {own} ({about(own).title})")
        _add_option(groups[own], name, item, used_by)


def _add_option(command: Any, name: str, item: dataclasses.Field[Any], used_by: list[str]) -> None:
    flag = "--" + name.replace("_", "-")
    text = item.metadata["help"] + f" [{', '.join(used_by)}]" * (len(used_by) > 1)
    kind = str(item.type)
    if "bool" in kind:
        command.add_argument(flag, action="store_true", default=None, help=text)
    elif "float" in kind:
        command.add_argument(flag, type=_number(item, whole=False), metavar="X", help=text)
    elif "int" in kind:
        command.add_argument(flag, type=_number(item, whole=True), metavar="N", help=text)
    else:
        choices = item.metadata["choices"]
        command.add_argument(flag, choices=choices, metavar=None if choices else "FILE", help=text)


def _size(text: str) -> str:
    """A size as it was given, if it is one."""
    try:
        byte_count("it", text)
    except HeadsError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix("it is ").replace(", expected", " is not")) from None
    return text


def _number(item: dataclasses.Field[Any], *, whole: bool) -> Callable[[str], Any]:
    """The type of an option with the bounds of a setting."""
    bounds = {"least": item.metadata["at_least"], "most": item.metadata["at_most"]}
    return number(Number(**{name: bound for name, bound in bounds.items() if bound is not None}, whole=whole))


def _convert(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    if options.native and options.polish is not None:
        parser.error("convert: --polish writes a converted checkpoint: leave out --native, and export --native it then")
    request = _request(options, parser)
    output = Path(options.output) if options.output else default_output(request, native=options.native)
    check_output(output, options.overwrite)
    check_push(options, parser)
    # rich, torch and transformers take seconds to import: only who runs the command waits for them.
    from hf_heads.cli.console import print_report, progress_bar, quiet

    quiet()
    if options.native:
        return _native(options, request, output)
    if options.polish is not None:
        return _polished(options, request, output)
    from hf_heads.jobs.conversion.checkpoint import convert_checkpoint  # takes seconds to import

    with progress_bar(not options.json) as progress:
        report = convert_checkpoint(request, output, overwrite=options.overwrite, progress=progress)
    if not report.main:
        return 0
    if not options.json:
        print_report(report.to_dict(), output)
    pushed = push(options, output)
    if options.json:
        print_json({"output": str(output), **pushed, **report.to_dict()})
    return 0


def _polished(options: argparse.Namespace, request: ConversionRequest, output: Path) -> int:
    # rich, torch and transformers take seconds to import: only who runs the command waits for them.
    from hf_heads.cli.console import make_console, print_healed, print_report, progress_bar
    from hf_heads.jobs.finetuning.polishing import convert_polished

    with progress_bar(not options.json) as progress:
        done = convert_polished(request, output, options.polish, overwrite=options.overwrite, progress=progress)
    report = done.report.to_dict()
    if not options.json:
        print_report(report, None if done.healed else output)
        if done.healed:
            print_healed(done.healed.record, output)
        else:
            make_console().print("polishing found nothing better than the conversion, which was written as it was")
    pushed = push(options, output)
    if options.json:
        print_json({"output": str(output), **pushed, **(done.healed.record if done.healed else report)})
    return 0


def _native(options: argparse.Namespace, request: ConversionRequest, output: Path) -> int:
    # rich, torch and transformers take seconds to import: only who runs the command waits for them.
    from hf_heads.cli.console import print_native, print_report, progress_bar
    from hf_heads.jobs.export.converting import convert_native

    with progress_bar(not options.json) as progress:
        made = convert_native(request, output, overwrite=options.overwrite, progress=progress)
    converted, native = (one.to_dict() for one in made)
    if not options.json:
        print_report(converted, None)
        print_native(native, str(output))
    pushed = push(options, output)
    if options.json:
        print_json({"output": str(output), **pushed, **converted, "native": native})
    return 0


_PLAIN = (
    "source",
    "revision",
    "blocks",
    "keep_heads",
    "objective",
    "inputs",
    "cache",
    "activations_on",
    "compute",
    "device",
    "dtype",
    "max_shard_size",
)


def _request(options: argparse.Namespace, parser: argparse.ArgumentParser) -> ConversionRequest:
    """The request that the options make, on top of the recipe's if there is one."""
    given = {name: getattr(options, name) for name in _PLAIN}
    given["refit"] = False if options.no_refit else None
    changes = {name: value for name, value in given.items() if value is not None}
    settings = {name: value for name in _method_options() if (value := getattr(options, name)) is not None}
    if options.recipe is not None:
        recipe = load_recipe(options.recipe)
        if options.to is not None or settings:
            parser.error("convert: the recipe says the method and its settings; leave out --to and " + _flags(settings))
        return dataclasses.replace(recipe, calibration=calibration_choice(options, recipe.calibration), **changes)
    spec = _spec(options.to, settings, parser)
    if options.source is None:
        parser.error("convert: SOURCE is missing: " + SOURCE)
    return ConversionRequest(spec=spec, calibration=calibration_choice(options), **changes)


def _spec(method: str | None, settings: dict[str, Any], parser: argparse.ArgumentParser) -> HeadsSpec:
    """The settings that the options ask for."""
    if method not in all_methods():
        problem = "--to is missing" if method is None else f"unknown method '{method}'"
        problem += did_you_mean(method, all_methods())
        parser.error(f"convert: {problem}. Methods: {', '.join(all_methods())}")
    spec = about(method).spec
    own = {item.name for item in dataclasses.fields(spec)}
    if foreign := [name for name in settings if name not in own]:
        parser.error(f"convert: {method} has no {_flags(foreign)}")
    return spec(**settings)


def _flags(names: Any) -> str:
    return ", ".join("--" + name.replace("_", "-") for name in names) or "its settings"
