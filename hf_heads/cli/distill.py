"""The command that heals: distill."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from hf_heads.cli.options import (
    SOURCE,
    add_command,
    add_data,
    add_push,
    add_seed,
    calibration_choice,
    check_push,
    name_list,
    number,
    print_json,
    push,
)
from hf_heads.core.errors import HeadsError
from hf_heads.core.numbers import EXAMPLES
from hf_heads.core.vocabulary import LESSONS, LOSSES
from hf_heads.io.checkpoints.files import check_output
from hf_heads.io.checkpoints.sources import resolve_source
from hf_heads.jobs.distillation.settings import NUMBERS, OPTIMIZERS, PRECISIONS, TRAIN, WEIGHT, DistillSettings

if TYPE_CHECKING:
    from hf_heads.jobs.distillation.checkpoint import Healed


def add_distill(commands: object) -> None:
    """The command `distill`."""
    command = add_command(
        commands, "distill", _distill, "heal a converted checkpoint: train its attention to do what its original does"
    )
    command.formatter_class = argparse.RawDescriptionHelpFormatter
    command.epilog = "what can be matched (--losses):\n" + "\n".join(
        f"  {name:10} {text}" for name, text in LOSSES.items()
    )
    command.add_argument(
        "sources",
        metavar="CONVERTED",
        nargs="+",
        help="the converted checkpoint, a folder or a hub id; several of one original are healed one after the other",
    )
    command.add_argument("--teacher", metavar="ORIGINAL", help=f"{SOURCE} (default: what CONVERTED was made from)")
    add_data(
        command,
        "--data",
        "data to learn from, no labels needed: anything `datasets` loads, or `random` for made inputs",
        label="column with labels, for the loss `task`",
        required=True,
        several=True,
        packs=True,
    )
    command.add_argument(
        "--samples", metavar="N", type=number(EXAMPLES), help="examples at most (default 20000; 5000 images)"
    )
    command.add_argument(
        "--output", metavar="DIR", required=True, help="folder to write; of several, the one in which theirs are made"
    )
    command.add_argument("--overwrite", action="store_true", help="replace the output folder if it exists")
    command.add_argument(
        "--resume", action="store_true", help="go on where an interrupted run into the same folder left off"
    )
    _add_training(command)
    add_seed(command)
    add_push(command)


def _add_training(command: argparse.ArgumentParser) -> None:
    """How to train: options that go by the names of `DistillSettings`, which has their defaults."""
    default = DistillSettings()
    command.add_argument(
        "--train", choices=TRAIN, help=f"converted attention alone, or all parameters (default {default.train})"
    )
    command.add_argument(
        "--losses",
        metavar="NAME=W,...",
        type=_losses,
        help="what to match, with weights (below; default output=1,hidden=1, for texts' embeddings embedding=1)",
    )
    command.add_argument(
        "--optimizer",
        choices=OPTIMIZERS,
        help=f"AdamW, or orthogonalized momentum for matrices (default {default.optimizer})",
    )
    command.add_argument(
        "--minutes",
        metavar="X",
        type=number(NUMBERS["minutes"]),
        help="stop after so much time, healed as far as it goes",
    )
    command.add_argument(
        "--epochs",
        metavar="X",
        type=number(NUMBERS["epochs"]),
        help=f"rounds over the data (default {default.epochs:g})",
    )
    command.add_argument("--steps", metavar="N", type=number(NUMBERS["steps"]), help="so many steps instead of epochs")
    command.add_argument(
        "--learning-rate",
        metavar="X",
        type=number(NUMBERS["learning_rate"]),
        help="the highest (default 1e-3, 1e-4 with --train all, and less where a model starts near its original)",
    )
    command.add_argument(
        "--warmup",
        metavar="N",
        type=number(NUMBERS["warmup"]),
        help="steps in which the learning rate rises (default 20, but no more than a tenth of the run)",
    )
    _add_rounds(command, default)


def _add_rounds(command: argparse.ArgumentParser, default: DistillSettings) -> None:
    """How much at a time, how often to look, and in which precision."""
    command.add_argument(
        "--batch-size",
        metavar="N",
        type=number(NUMBERS["batch_size"]),
        help=f"in each process (default {default.batch_size})",
    )
    command.add_argument(
        "--accumulate",
        metavar="N",
        type=number(NUMBERS["accumulate"]),
        help=f"batches whose gradients make one step (default {default.accumulate})",
    )
    command.add_argument(
        "--evaluations",
        metavar="N",
        type=number(NUMBERS["evaluations"]),
        help=f"how often to measure drift (default {default.evaluations})",
    )
    command.add_argument(
        "--patience",
        metavar="N",
        type=number(NUMBERS["patience"]),
        help="stop after so many evaluations without a new best (default: never)",
    )
    command.add_argument(
        "--temperature",
        metavar="X",
        type=number(NUMBERS["temperature"]),
        help=f"of the logits (default {default.temperature:g})",
    )
    command.add_argument("--precision", choices=PRECISIONS, help=f"mixed precision (default {default.precision})")
    command.add_argument(
        "--teacher-outputs",
        choices=tuple(LESSONS),
        help=f"where the teacher's outputs are until an example is seen again (default {default.teacher_outputs}: "
        f"{LESSONS['auto']})",
    )
    command.add_argument("--gradient-checkpointing", action="store_true", default=None, help="less memory, more time")
    command.add_argument("--report-to", metavar="NAME", default="none", help="a logging integration of the Trainer")
    command.add_argument("--device", choices=("auto", "cpu"), default="auto", help="where to compute (default auto)")


def _losses(text: str) -> dict[str, float]:
    """`output=1,hidden=0.5` as a dict; a name alone weighs 1."""
    found = {}
    for part in name_list(text):
        name, _, weight = part.partition("=")
        try:
            found[name.strip()] = number(WEIGHT)(weight or "1")
        except argparse.ArgumentTypeError as error:
            raise argparse.ArgumentTypeError(f"{name.strip()}: {error}") from None
    return found


def _distill(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    output = Path(options.output)
    several = len(options.sources) > 1
    if several and options.push_to_hub is not None:
        parser.error("--push-to-hub uploads one checkpoint: give one, or upload the folders later")
    if not several:
        check_output(output, options.overwrite)
    check_push(options, parser)
    if options.label is not None and "task" not in (options.losses or {}):
        raise HeadsError("--label is for the loss 'task'; name it, as in --losses output=1,hidden=1,task=1")
    given = {item.name: getattr(options, item.name) for item in dataclasses.fields(DistillSettings)}
    settings = DistillSettings(**{name: value for name, value in given.items() if value is not None})
    data = calibration_choice(options)
    # rich, torch and transformers take seconds to import: only who runs the command waits for them.
    from hf_heads.cli.console import progress_bar, quiet

    quiet()
    from hf_heads.jobs.distillation.checkpoint import distill_checkpoint  # takes seconds to import
    from hf_heads.jobs.distillation.several import SomeOnlyWorse, distill_checkpoints

    failed: SomeOnlyWorse | None = None
    sources = [resolve_source(given) for given in options.sources]
    with progress_bar(not options.json) as progress:
        how = {
            "teacher": options.teacher,
            "samples": options.samples,
            "overwrite": options.overwrite,
            "resume": options.resume,
            "device": options.device,
            "arguments": {"report_to": options.report_to},
            "progress": progress,
        }
        if several:
            try:
                healed = distill_checkpoints(sources, output, settings, data, **how)
            except SomeOnlyWorse as error:
                healed, failed = error.healed, error
        else:
            healed = {output: distill_checkpoint(sources[0], output, settings, data, **how)}
    if all(found.main for found in healed.values()):
        _show(healed, options, output, several)
    if failed:
        raise failed
    return 0


def _show(healed: dict[Path, Healed], options: argparse.Namespace, output: Path, several: bool) -> None:
    """Print what was done, and upload it where that was asked for."""
    from hf_heads.cli.console import print_healed  # takes seconds to import

    if not options.json:
        for place, found in healed.items():
            print_healed(found.record, place)
    pushed = push(options, output)
    if options.json:
        records = [{"output": str(place), **pushed, **found.record} for place, found in healed.items()]
        print_json({"models": records} if several else records[0])
