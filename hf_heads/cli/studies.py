"""The commands that look at heads without converting anything: importance and ablate."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from hf_heads.cli.options import (
    SOURCE,
    add_calibration,
    add_command,
    add_device,
    add_seed,
    calibration_choice,
    number,
    print_json,
)
from hf_heads.core.numbers import Number
from hf_heads.core.vocabulary import RULES, UNITS
from hf_heads.io.checkpoints.files import check_file, write_file
from hf_heads.io.checkpoints.sources import resolve_source


def _add_study(command: argparse.ArgumentParser) -> None:
    """What importance and ablation have in common."""
    command.add_argument("source", metavar="SOURCE", help=SOURCE)
    add_calibration(command, "--calibrate", "data to measure on, as for convert (default: random, made on the spot)")
    command.add_argument("--blocks", metavar="PATTERN", help="shell patterns of the blocks to look at, as for convert")
    command.add_argument("--output", metavar="FILE", help="write the figures there as JSON")
    command.add_argument("--plot", metavar="FILE", help="draw a map of layers and heads there (.png, .svg or .pdf)")
    command.add_argument("--overwrite", action="store_true", help="replace files that exist")
    command.add_argument("--revision", metavar="REV", help="commit, branch or tag of a source on the hub")
    add_device(command)
    add_seed(command)


def _prepare(options: argparse.Namespace) -> dict[str, Any]:
    """What both studies take, after a look at what they would write."""
    # rich, torch and transformers take seconds to import: only who runs the command waits for them.
    from hf_heads.cli.console import quiet

    quiet()
    from hf_heads.io.checkpoints.loading import find_device  # takes seconds to import
    from hf_heads.jobs.reporting.figures.style import need_matplotlib
    from hf_heads.jobs.team import launched

    for path in (options.output, options.plot):
        check_file(path, options.overwrite)
    if options.plot:
        need_matplotlib(options.plot)
    device = find_device(options.device)
    return {
        "source": resolve_source(options.source, options.revision),
        "calibration": calibration_choice(options),
        "blocks": options.blocks,
        "device": device,
        "team": launched(device == "cpu"),
    }


def add_importance(commands: Any) -> None:
    """The command `importance`."""
    command = add_command(
        commands, "importance", _importance, "score how much every head matters, for reading and for convert --scores"
    )
    command.formatter_class = argparse.RawDescriptionHelpFormatter
    command.epilog = "what a score is:\n" + "\n".join(f"  {name:13} {text}" for name, text in RULES.items())
    command.add_argument(
        "--score", default="gauss-newton", choices=tuple(RULES), help="what makes a head important (below)"
    )
    command.add_argument(
        "--steps",
        type=number(Number(1, 1000, whole=True)),
        default=4,
        metavar="N",
        help="rounds; scores are renewed after each (default 4)",
    )
    command.add_argument("--normalize", action="store_true", help="divide scores by their l2 norm in each block")
    command.add_argument(
        "--unit", default="example", choices=tuple(UNITS), help="what the rule gradient takes absolute values of"
    )
    _add_study(command)


def _importance(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    common = _prepare(options)
    # rich, torch and transformers take seconds to import: only who runs the command waits for them.
    from hf_heads.cli.console import make_console, print_heads, progress_bar
    from hf_heads.jobs.reporting.figures.heads import draw_heads
    from hf_heads.jobs.scoring.checkpoint import score_checkpoint

    main = common["team"].main  # of several processes it alone writes and prints
    with progress_bar(main and not options.json) as progress:
        found = score_checkpoint(
            **common,
            rule=options.score,
            steps=options.steps,
            normalize=options.normalize,
            unit=options.unit,
            progress=progress,
        )
    if not main:
        return 0
    if options.output:
        found.save(options.output)
    if options.plot:
        draw_heads(Path(options.plot), found.importance, f"Importance of heads by {found.rule}", RULES[found.rule])
    if options.json:
        print_json(found.to_dict())
        return 0
    console = make_console()
    print_heads(console, found.importance)
    console.print(f"{found.rule}: {RULES[found.rule]}", markup=False)
    if found.data:
        console.print(f"measured on {found.data}", markup=False)
    first = ", ".join(f"{name} {head}" for name, head in found.order[:4])
    console.print(f"first to go: {first}", markup=False)
    for path in filter(None, (options.output, options.plot)):
        console.print(f"written to {path}", markup=False)
    return 0


def add_ablate(commands: Any) -> None:
    """The command `ablate`."""
    command = add_command(
        commands, "ablate", _ablate, "measure what is lost without each head, with one head a block, and with none"
    )
    command.add_argument(
        "--metric",
        choices=("drift", "accuracy", "loss", "f1", "bleu"),
        default="drift",
        help="drift (the default) needs no labels",
    )
    _add_study(command)


def _ablate(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    common = _prepare(options)
    # rich, torch and transformers take seconds to import: only who runs the command waits for them.
    from hf_heads.cli.console import print_ablation, progress_bar
    from hf_heads.jobs.reporting.figures.heads import draw_heads
    from hf_heads.jobs.scoring.checkpoint import ablate_checkpoint

    main = common["team"].main
    with progress_bar(main and not options.json) as progress:
        found = ablate_checkpoint(**common, metric=options.metric, progress=progress)
    if not main:
        return 0
    record = found.to_dict()
    if options.output:
        write_file(Path(options.output), json.dumps(record, indent=1, allow_nan=False) + "\n")
    if options.plot:
        values: dict[str, list[float]] = {}
        for row in found.one_out:
            values.setdefault(row.block, []).append(row.change)
        draw_heads(Path(options.plot), values, "Change without each head", f"{found.metric}: {record['about']}")
    if options.json:
        print_json(record)
    else:
        print_ablation(record)
    return 0
