"""The commands that look at checkpoints: inspect, verify and list."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from hf_heads.attention.hosts.table import REFUSED, architectures
from hf_heads.cli.heads import inspect_heads
from hf_heads.cli.options import SOURCE, add_calibration, add_command, calibration_choice, number, print_json
from hf_heads.core.errors import HeadsError
from hf_heads.core.numbers import COSINE, Number
from hf_heads.core.vocabulary import PRECISIONS, percent
from hf_heads.io.checkpoints.sources import resolve_source
from hf_heads.io.data.choice import CalibrationChoice
from hf_heads.jobs.conversion.recipes import load_recipe
from hf_heads.methods.registry import about, all_methods
from hf_heads.methods.words import refusals, settings_text

# inspect


def add_inspect(commands: Any) -> None:
    """Add the command inspect."""
    command = add_command(commands, "inspect", _inspect, "show what every attention block of a checkpoint is")
    command.add_argument("source", metavar="DIR_OR_ID", help=SOURCE)
    command.add_argument(
        "--heads", action="store_true", help="load the model and show its heads with a job: where they look"
    )
    command.add_argument(
        "--plot", metavar="FILE", help="with --heads: draw a map for each job there (.png, .svg, .pdf)"
    )
    command.add_argument("--overwrite", action="store_true", help="replace pictures that exist")


def _inspect(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    if options.heads:
        return inspect_heads(options)
    if options.plot or options.overwrite:
        parser.error("inspect: --plot draws what --heads finds, --overwrite replaces that: give --heads as well")
    # rich, torch and transformers take seconds to import: only who runs the command waits for them.
    from hf_heads.cli.console import make_console, make_table, quiet

    quiet()
    from hf_heads.io.checkpoints.inspection import inspect  # takes seconds to import

    found = inspect(resolve_source(options.source))
    if options.json:
        print_json(found)
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


def add_verify(commands: Any) -> None:
    """Add the command verify."""
    command = add_command(
        commands, "verify", _verify, "compare a converted checkpoint with its original: files, sizes and outputs"
    )
    command.add_argument("folder", metavar="DIR", help="the converted checkpoint")
    command.add_argument("--against", metavar="SOURCE", help="the original (default: the one that DIR names)")
    command.add_argument("--recipe", metavar="FILE_OR_NAME", help="also check the figures of this recipe's [expect]")
    add_calibration(command, "--data", "inputs to compare on, as for convert --calibrate (default: random ones)")
    command.add_argument(
        "--min-cosine", type=number(COSINE), metavar="X", help="fail when the outputs' cosine is below this"
    )
    command.add_argument(
        "--tolerance", type=number(Number(0)), metavar="X", help="fail when any output differs by more than this"
    )
    command.add_argument(
        "--dtype", choices=PRECISIONS, help="also compare both models in this precision with themselves in float32"
    )


def _verify(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    folder = Path(options.folder)
    if not folder.is_dir():
        raise HeadsError(f"'{folder}' is not a folder")
    data = calibration_choice(options)
    expect = load_recipe(options.recipe).expect if options.recipe else None
    # rich, torch and transformers take seconds to import: only who runs the command waits for them.
    from hf_heads.cli.console import make_console, quiet

    quiet()
    from hf_heads.jobs.evaluation.verify import verify  # takes seconds to import

    verdict = verify(
        folder,
        options.against,
        data=None if data == CalibrationChoice() else data,
        expect=expect,
        min_cosine=options.min_cosine,
        tolerance=options.tolerance,
        dtype=options.dtype,
    )
    if options.json:
        print_json({"figures": verdict.figures, "failures": verdict.failures})
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


def add_list(commands: Any) -> None:
    """Add the command list."""
    add_command(commands, "list", _list, "show the methods and the architectures that they work on")


def _list(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    pairs, methods = refusals(), all_methods()
    if options.json:
        print_json(
            {
                name: {
                    **{model_type: row[name] or "yes" for model_type, row in pairs.items()},
                    **REFUSED,
                }
                for name in methods
            }
        )
        return 0
    from hf_heads.cli.console import make_console, make_table  # rich takes a while to import; JSON does without

    console = make_console()
    reasons = list(dict.fromkeys(reason for row in pairs.values() for reason in row.values() if reason))
    table = make_table("architecture", "inputs", *methods)
    for model_type, row in pairs.items():
        cells = ("yes" if row[name] is None else f"({1 + reasons.index(str(row[name]))})" for name in methods)
        table.add_row(model_type, architectures()[model_type].modality, *cells)
    console.print(table)
    for place, reason in enumerate(reasons, 1):
        console.print(f"({place}) {reason}", highlight=False)
    for reason in dict.fromkeys(REFUSED.values()):
        model_types = (model_type for model_type, why in REFUSED.items() if why == reason)
        console.print(f"not {', '.join(model_types)}: {reason}", highlight=False)
    console.print()
    for name in methods:
        console.print(f"{name}: {about(name).title}", highlight=False)
    return 0
