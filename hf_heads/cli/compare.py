"""The command compare: converted checkpoints beside their original."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hf_heads.cli.options import SOURCE, add_command, add_data, add_device, add_seed, calibration_choice, number
from hf_heads.core.errors import HeadsError
from hf_heads.core.numbers import Number
from hf_heads.core.vocabulary import PRECISIONS, printable
from hf_heads.io.checkpoints.files import check_file, write_file
from hf_heads.io.checkpoints.sources import resolve_source
from hf_heads.jobs.evaluation.choices import NUMBERS, SIZES, Choices
from hf_heads.jobs.reporting.tables import to_csv, to_json, to_markdown

_METRICS = ("auto", "none", "spearman", "accuracy", "bleu", "perplexity", "pseudo-perplexity")


def add_compare(commands: Any) -> None:
    """The command `compare`."""
    command = add_command(
        commands, "compare", _compare, "measure converted checkpoints beside their original: size, speed, drift, score"
    )
    command.add_argument("original", metavar="ORIGINAL", help=SOURCE)
    command.add_argument(
        "converted", metavar="CONVERTED", nargs="+", help="checkpoints of the same architecture and sizes"
    )
    add_data(
        command,
        "--data",
        "inputs of the drift and the score: anything `datasets` loads, as for convert --calibrate (default: random "
        "inputs, no score)",
    )
    _add_measures(command)
    command.add_argument("--format", choices=("table", "markdown", "csv"), default="table", help="of what is printed")
    command.add_argument("--output", metavar="FILE", help="write all of it there, as .json, .md or .csv")
    command.add_argument("--overwrite", action="store_true", help="replace a file that exists")
    command.add_argument(
        "--write-cards", action="store_true", help="put the numbers into the model card of every converted checkpoint"
    )
    command.add_argument("--revision", metavar="REV", help="commit, branch or tag of an original on the hub")
    add_device(command)
    add_seed(command)


def _add_measures(command: argparse.ArgumentParser) -> None:
    """What is measured, and how closely."""
    command.add_argument(
        "--metric",
        choices=_METRICS,
        default="auto",
        help="score of the task: by the model's class and the data (auto, the default), or by name",
    )
    command.add_argument(
        "--beams", type=number(NUMBERS["beams"]), default=1, metavar="N", help="of translations (default 1, greedy)"
    )
    command.add_argument(
        "--samples",
        type=number(NUMBERS["samples"]),
        default=1000,
        metavar="N",
        help="examples to score, for pseudo-perplexity tokens (default 1000)",
    )
    command.add_argument(
        "--drift-samples",
        type=number(NUMBERS["drift_samples"]),
        default=256,
        metavar="N",
        help="examples of the drift (default 256)",
    )
    command.add_argument(
        "--resamples",
        type=number(NUMBERS["resamples"]),
        default=1000,
        metavar="N",
        help="of the bootstrap intervals (default 1000)",
    )
    command.add_argument(
        "--lengths",
        type=_sizes(SIZES["lengths"]),
        metavar="A,B",
        help="tokens of an example (default 32,128,512 for multiply-adds, 32,128 for time and memory)",
    )
    command.add_argument(
        "--batches",
        type=_sizes(SIZES["batches"]),
        default=(1, 8),
        metavar="A,B",
        help="examples at a time (default 1,8)",
    )
    command.add_argument(
        "--seconds",
        type=number(NUMBERS["seconds"]),
        default=2.0,
        metavar="X",
        help="of timing at each batch and length, for all models together (default 2)",
    )
    command.add_argument(
        "--dtype", choices=PRECISIONS, help="also compare each model in this precision with itself in float32"
    )
    command.add_argument("--no-latency", action="store_true", help="time nothing")
    command.add_argument(
        "--no-control", action="store_true", help="leave out the original with uniform attention (scores of rank 0)"
    )


def _sizes(allowed: Number) -> Callable[[str], tuple[int, ...]]:
    """The type of an option with several numbers: `1,8` as (1, 8), each once."""

    def read(text: str) -> tuple[int, ...]:
        return tuple(dict.fromkeys(number(allowed)(part) for part in text.split(",")))

    return read


def _compare(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    writers = {".json": lambda found: to_json(found, 1) + "\n", ".md": to_markdown, ".csv": to_csv}
    if options.output and Path(options.output).suffix not in writers:
        raise HeadsError(f"cannot tell what to write from '{options.output}': end it in {', '.join(writers)}")
    check_file(options.output, options.overwrite)
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler writes to the terminal by itself
    # rich, torch and transformers take seconds to import: only who runs the command waits for them.
    from hf_heads.cli.console import print_comparison, progress_bar, quiet

    quiet()
    from hf_heads.io.checkpoints.loading import find_device  # takes seconds to import
    from hf_heads.jobs.evaluation.compare import compare_checkpoints
    from hf_heads.jobs.reporting.cards import check_cards, write_cards

    choices = Choices(
        calibration_choice(options),
        metric=options.metric,
        beams=options.beams,
        samples=options.samples,
        drift_samples=options.drift_samples,
        resamples=options.resamples,
        lengths=options.lengths,
        batches=options.batches,
        seconds=options.seconds,
        latency=not options.no_latency,
        control=not options.no_control,
        dtype=options.dtype,
    )
    original = resolve_source(options.original, options.revision)
    converted = [resolve_source(given) for given in options.converted]
    if options.write_cards:
        check_cards(converted)
    with progress_bar(not options.json) as progress:
        found = compare_checkpoints(original, converted, choices, device=find_device(options.device), progress=progress)
    if found.busy:
        print(f"hf-heads: warning: {found.busy}", file=sys.stderr)
    if options.output:
        write_file(Path(options.output), writers[Path(options.output).suffix](found))
    if options.write_cards:
        write_cards(found, original, converted, Path(choices.data.single).name)
    if options.json:
        print(to_json(found))
    elif options.format == "table":
        print_comparison(found)
    else:
        print(printable({"markdown": to_markdown, "csv": to_csv}[options.format](found)), end="")
    if options.output and not options.json and options.format == "table":
        print(printable(f"written to {options.output}"))
    return 0
