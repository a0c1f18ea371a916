"""The command recommend: which conversion a model should get."""

from __future__ import annotations

import argparse
import sys
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
from hf_heads.io.checkpoints.files import check_file
from hf_heads.io.checkpoints.sources import resolve_source
from hf_heads.io.data.choice import CalibrationChoice
from hf_heads.jobs.recommendation.record import GOALS, MAX_DROP, SAMPLES


def add_recommend(commands: Any) -> None:
    """The command `recommend`."""
    command = add_command(
        commands, "recommend", _recommend, "try a handful of conversions on a model and say which one to make"
    )
    command.add_argument("source", metavar="SOURCE", help=SOURCE)
    add_calibration(
        command,
        "--calibrate",
        "data to convert and to measure on: anything `datasets` loads, as for convert (default: made from nothing)",
        packs=True,
        usual=str(SAMPLES),
    )
    goals = "; ".join(f"{name}: {text}" for name, text in GOALS.items())
    command.add_argument("--goal", choices=tuple(GOALS), default="balanced", help=goals)
    command.add_argument(
        "--max-drop",
        type=number(Number(0, 1, above=True)),
        default=MAX_DROP,
        metavar="X",
        help=f"the most that may be lost: 1 - cosine of the outputs, or the share of predictions that change (default "
        f"{MAX_DROP})",
    )
    command.add_argument("--figure", metavar="FILE", help="draw what is lost against what is gained (.png, .svg, .pdf)")
    command.add_argument("--overwrite", action="store_true", help="replace a figure that exists")
    command.add_argument("--revision", metavar="REV", help="commit, branch or tag of a source on the hub")
    add_device(command)
    add_seed(command)


def _recommend(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    choice = calibration_choice(options, CalibrationChoice(samples=SAMPLES))
    check_file(options.figure, options.overwrite)
    source = resolve_source(options.source, options.revision)
    # rich, torch and transformers take seconds to import: only who runs the command waits for them.
    from hf_heads.cli.console import print_recommendation, progress_bar, quiet

    quiet()
    from hf_heads.jobs.recommendation.figure import draw_recommendation  # takes seconds to import
    from hf_heads.jobs.recommendation.recommend import recommend  # takes seconds to import
    from hf_heads.jobs.reporting.figures.style import need_matplotlib

    if options.figure:
        need_matplotlib(options.figure)
    with progress_bar(not options.json) as progress:
        found = recommend(
            source,
            choice,
            goal=options.goal,
            max_drop=options.max_drop,
            device=options.device,
            progress=progress,
        )
    if found.busy:
        print(f"hf-heads: warning: {found.busy}", file=sys.stderr)
    if options.figure:
        draw_recommendation(Path(options.figure), found)
    if options.json:
        print_json(found.to_dict())
    else:
        print_recommendation(found)
    return 0
