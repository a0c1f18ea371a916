"""What several commands of the command line have in common."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hf_heads.core.errors import HeadsError
from hf_heads.core.numbers import EXAMPLES, SEED, Number, shown
from hf_heads.io.checkpoints.json_files import without_nan
from hf_heads.io.data.choice import EXAMPLES_USUAL, MAX_LENGTH, TOKENS, CalibrationChoice

SOURCE = "a hub id, a folder, or package:NAME for a checkpoint inside an installed Python package"
_NOTHING_SAID = CalibrationChoice()


def add_command(commands: Any, name: str, run: Callable[..., int], text: str) -> argparse.ArgumentParser:
    """A new command, with what all commands have."""
    command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    command.set_defaults(run=run, parser=command)
    command.add_argument("--json", action="store_true", help="print one JSON object for machines instead of a table")
    return command


def add_data(
    command: argparse.ArgumentParser,
    option: str,
    text: str,
    *,
    label: str = "column with labels: never read as an input, found if left out where labels are needed",
    required: bool = False,
    several: bool = False,
    packs: bool = False,
) -> None:
    """Options that say what data to read, from several sources, and with texts packed, where the command can."""
    if several:
        text += "; given again, it adds data: each source gives an equal share of the examples"
    command.add_argument(
        option, dest="calibrate", metavar="SRC", required=required, action="append" if several else "store", help=text
    )
    command.add_argument(
        "--columns",
        metavar="A,B",
        type=name_list,
        help="columns of the data to read, as `translation.en` in others (found if left out)",
    )
    command.add_argument(
        "--subset", metavar="NAME", help="configuration of a data set on the hub, such as sst2 of glue"
    )
    command.add_argument("--label", metavar="COLUMN", help=label)
    command.add_argument(
        "--pairs",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="two text columns are two segments of one sequence, or so many single texts (default: pairs where the "
        "checkpoint's class takes them, as a sequence classifier does)",
    )
    command.add_argument(
        "--max-length",
        metavar="N",
        type=number(TOKENS),
        help=f"cut texts after so many tokens (default: what the model takes, up to {MAX_LENGTH})",
    )
    if packs:
        command.add_argument(
            "--no-pack",
            dest="pack",
            action="store_false",
            default=None,
            help="leave texts as they are, instead of packing and cutting a part of them to a mixture of lengths",
        )


def add_calibration(
    command: argparse.ArgumentParser, option: str, text: str, *, packs: bool = False, usual: str = str(EXAMPLES_USUAL)
) -> None:
    """Options that say what data to read, and how much of it: `usual` where nothing is said."""
    add_data(command, option, text, several=True, packs=packs)
    command.add_argument(
        "--calibration-samples",
        metavar="N",
        type=number(EXAMPLES),
        help=f"how many examples to read (default {usual})",
    )


def name_list(text: str) -> tuple[str, ...]:
    """`a, b` as (a, b)."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def number(allowed: Number) -> Callable[[str], Any]:
    """The type of an option that takes such numbers."""

    def read(text: str) -> Any:
        try:
            value = int(text) if allowed.whole else float(text)
        except ValueError:
            value = None
        if not allowed.allows(value):
            raise argparse.ArgumentTypeError(f"{shown(text)} is not {allowed}")
        return value

    return read


def add_device(command: argparse.ArgumentParser) -> None:
    """The option --device."""
    command.add_argument(
        "--device", default="auto", help="where to compute: auto, cpu, cuda, cuda:1, ... (default auto)"
    )


def add_seed(command: argparse.ArgumentParser) -> None:
    """The option --seed."""
    command.add_argument(
        "--seed", type=number(SEED), metavar="N", help="of the choice or making of data and all else random (default 0)"
    )


def add_push(command: argparse.ArgumentParser) -> None:
    """The options --push-to-hub and --private, for commands that write a checkpoint folder."""
    command.add_argument(
        "--push-to-hub", metavar="ID", help="upload the finished folder to this model repository on the hub as well"
    )
    command.add_argument("--private", action="store_true", help="make that repository private, if it is made")


def check_push(options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Refuse, before any work, an upload that the options ask for and that could not be.

    Raises:
        HeadsError: see `publish.check_push`.
    """
    if options.push_to_hub is not None:
        from hf_heads.io.checkpoints.publish import check_push  # takes seconds to import

        check_push(options.push_to_hub)
    elif options.private:
        parser.error("--private says how --push-to-hub uploads: give --push-to-hub ID as well")


def push(options: argparse.Namespace, output: Path) -> dict[str, str]:
    """Upload a finished folder if the options ask for it, and say so.

    Returns:
        What to add to the JSON that --json prints: the repository's address as `url`, or nothing.

    Raises:
        HeadsError: the upload failed or was interrupted; the folder stays.
    """
    if options.push_to_hub is None:
        return {}
    from hf_heads.io.checkpoints.publish import push_folder, upload_later  # takes seconds to import

    try:
        url = push_folder(output, options.push_to_hub, private=options.private)
    except KeyboardInterrupt:
        raise HeadsError(
            "the upload was interrupted; " + upload_later(output, options.push_to_hub, private=options.private)
        ) from None
    if not options.json:
        print(f"uploaded to {url}")
    return {"url": url}


def print_json(record: Mapping[str, Any]) -> None:
    """Print one JSON object for machines; figures that are not finite are null there."""
    print(json.dumps(without_nan(record), allow_nan=False))


def calibration_choice(options: argparse.Namespace, base: CalibrationChoice = _NOTHING_SAID) -> CalibrationChoice:
    """What the options say to calibrate or measure on, on top of `base`."""
    names = {
        "source": "calibrate",
        "columns": "columns",
        "label": "label",
        "samples": "calibration_samples",
        "seed": "seed",
        "pairs": "pairs",
        "max_length": "max_length",
        "pack": "pack",
    }
    found = {name: getattr(options, option, None) for name, option in names.items()}  # not every command has all
    changes = {name: value for name, value in found.items() if value is not None}
    if isinstance(options.calibrate, list):
        changes["source"] = tuple(options.calibrate)
    if options.subset is not None:
        named = changes.get("source", ())
        named = named if isinstance(named, tuple) else (named,)
        if len(named) != 1:
            raise HeadsError("--subset says what to read of one data set: name one")
        name, _, split = named[0].partition(":")
        changes["source"] = f"{name}:{options.subset}:{split or 'train'}"
    if "source" in changes:  # what `base` says of columns is said of other data
        changes = {"columns": None, "label": None, **changes}
    return dataclasses.replace(base, **changes)
