"""The command that heals: distill."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from hf_heads.cli.options import SOURCE, add_command, add_push, add_seed, check_push, name_list, positive, push
from hf_heads.errors import HeadsError
from hf_heads.vocabulary import LOSSES


def add_distill(commands: object) -> None:
    """The command `distill`."""
    command = add_command(
        commands, "distill", _distill, "heal a converted checkpoint: train its attention to do what its original does"
    )
    command.formatter_class = argparse.RawDescriptionHelpFormatter
    command.epilog = "what can be matched (--losses):\n" + "\n".join(
        f"  {name:10} {text}" for name, text in LOSSES.items()
    )
    command.add_argument("source", metavar="CONVERTED", help="the converted checkpoint, a folder or a hub id")
    command.add_argument("--teacher", metavar="ORIGINAL", help=f"{SOURCE} (default: what CONVERTED was made from)")
    command.add_argument(
        "--data",
        metavar="SRC",
        required=True,
        help="data to learn from, no labels needed: anything `datasets` loads, or `random` for made inputs",
    )
    command.add_argument("--columns", metavar="A,B", type=name_list, help="columns to read (found if left out)")
    command.add_argument("--label", metavar="COLUMN", help="column with labels, for the loss `task`")
    command.add_argument("--samples", metavar="N", type=positive, help="examples at most (default 20000; 5000 images)")
    command.add_argument("--output", metavar="DIR", required=True, help="folder to write")
    command.add_argument("--overwrite", action="store_true", help="replace the output folder if it exists")
    command.add_argument(
        "--resume", action="store_true", help="go on where an interrupted run into the same folder left off"
    )
    _add_training(command)
    add_seed(command)
    add_push(command)


def _add_training(command: argparse.ArgumentParser) -> None:
    """How to train."""
    command.add_argument(
        "--train",
        choices=("attention", "all"),
        default="attention",
        help="converted attention alone (the default) or all parameters",
    )
    command.add_argument(
        "--losses",
        metavar="NAME=W,...",
        type=_losses,
        default={},
        help="what to match, with weights (below; default output=1,hidden=1, for texts' embeddings embedding=1)",
    )
    command.add_argument("--minutes", metavar="X", type=float, help="stop after so much time, healed as far as it goes")
    command.add_argument("--epochs", metavar="X", type=float, default=5.0, help="rounds over the data (default 5)")
    command.add_argument("--steps", metavar="N", type=positive, help="so many steps instead of epochs")
    command.add_argument("--learning-rate", metavar="X", type=float, help="default 1e-3; 1e-4 with --train all")
    command.add_argument("--batch-size", metavar="N", type=positive, default=64, help="in each process (default 64)")
    command.add_argument(
        "--accumulate", metavar="N", type=positive, default=1, help="batches whose gradients make one step (default 1)"
    )
    command.add_argument(
        "--evaluations", metavar="N", type=positive, default=10, help="how often to measure drift (default 10)"
    )
    command.add_argument(
        "--patience",
        metavar="N",
        type=positive,
        help="stop after so many evaluations without a new best (default: never)",
    )
    command.add_argument("--temperature", metavar="X", type=float, default=1.0, help="of the logits (default 1)")
    command.add_argument(
        "--precision", choices=("float32", "bfloat16", "float16"), default="float32", help="mixed precision"
    )
    command.add_argument("--gradient-checkpointing", action="store_true", help="less memory, more time")
    command.add_argument("--report-to", metavar="NAME", default="none", help="a logging integration of the Trainer")
    command.add_argument("--device", choices=("auto", "cpu"), default="auto", help="where to compute (default auto)")


def _losses(text: str) -> dict[str, float]:
    """`output=1,hidden=0.5` as a dict; a name alone weighs 1."""
    found = {}
    for part in name_list(text):
        name, _, weight = part.partition("=")
        try:
            found[name.strip()] = float(weight or 1)
        except ValueError:
            raise argparse.ArgumentTypeError(f"'{weight}' in '{part}' is no number") from None
    return found


def _distill(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    from hf_heads.checkpoints.files import check_output
    from hf_heads.checkpoints.sources import resolve_source
    from hf_heads.cli.console import print_healed, progress_bar, quiet

    quiet()
    output = Path(options.output)
    check_output(output, options.overwrite)
    check_push(options, parser)
    from hf_heads.data.calibration import CalibrationChoice
    from hf_heads.distillation.checkpoint import distill_checkpoint
    from hf_heads.distillation.settings import DistillSettings

    losses = dict(options.losses)
    if options.label is not None and "task" not in losses:
        raise HeadsError("--label is for the loss 'task'; name it, as in --losses output=1,hidden=1,task=1")
    settings = DistillSettings(
        losses=losses,
        train=options.train,
        learning_rate=options.learning_rate,
        batch_size=options.batch_size,
        accumulate=options.accumulate,
        epochs=options.epochs,
        steps=options.steps,
        minutes=options.minutes,
        evaluations=options.evaluations,
        patience=options.patience,
        temperature=options.temperature,
        precision=options.precision,
        gradient_checkpointing=options.gradient_checkpointing,
        seed=options.seed or 0,
    )
    choice = CalibrationChoice(options.data, options.columns, options.label, seed=options.seed or 0)
    with progress_bar(not options.json) as progress:
        found = distill_checkpoint(
            resolve_source(options.source),
            output,
            settings,
            choice,
            teacher=options.teacher,
            samples=options.samples,
            overwrite=options.overwrite,
            resume=options.resume,
            device=options.device,
            arguments={"report_to": options.report_to},
            progress=progress,
        )
    if not found.main:
        return 0
    if not options.json:
        print_healed(found.record, output)
    pushed = push(options, output)
    if options.json:
        print(json.dumps({"output": str(output), **pushed, **found.record}))
    return 0
