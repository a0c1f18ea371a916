"""The command export: checkpoints that load where hf-heads is not installed."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

from hf_heads.cli.options import add_calibration, add_command, add_device, add_seed, calibration_choice, print_json
from hf_heads.io.checkpoints.files import check_output
from hf_heads.io.checkpoints.sources import resolve_source
from hf_heads.io.data.choice import CalibrationChoice


def add_export(commands: Any) -> None:
    """Add the command export."""
    command = add_command(
        commands, "export", _export, "have a converted checkpoint load where hf-heads is not installed"
    )
    command.add_argument("source", metavar="CONVERTED", help="the converted checkpoint, a folder or a hub id")
    ways = command.add_mutually_exclusive_group(required=True)
    ways.add_argument(
        "--portable",
        action="store_true",
        help="put its code beside it, in its own folder, where an earlier version wrote none",
    )
    ways.add_argument(
        "--native",
        action="store_true",
        help="write its attention out as its host's own: exact, or refused (with the savings "
        "where its config has room for them, as a Llama's)",
    )
    ways.add_argument(
        "--onnx",
        action="store_true",
        help="write an encoder as an ONNX file, savings and all, laid out as sentence-transformers reads it, a "
        "language model with its cache, or an encoder-decoder as three files",
    )
    ways.add_argument(
        "--pt2",
        action="store_true",
        help="write the same as programs of torch.export, which torch alone loads",
    )
    command.add_argument(
        "--int8",
        action="store_true",
        help="with --onnx: also files with weights in 8 bits, and what that loses",
    )
    command.add_argument("--output", metavar="DIR", help="folder to write; not for --portable")
    command.add_argument("--overwrite", action="store_true", help="replace the output folder if it exists")
    command.add_argument(
        "--nearest",
        action="store_true",
        help="with --native: where the host's heads are too narrow, take the nearest, at a loss that is measured",
    )
    add_calibration(
        command,
        "--calibrate",
        "data that --nearest is the nearest on, as for convert (default: random); `none` weighs the weights alone",
    )
    add_device(command)
    add_seed(command)


def _export(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    choice = calibration_choice(options)
    if not options.nearest and choice != type(choice)():
        parser.error("export: data is what --nearest looks at: give --nearest as well")
    if options.nearest and not options.native:
        parser.error("export: --nearest is for --native")
    if options.int8 and not options.onnx:
        parser.error("export: --int8 is for --onnx")
    if options.portable:
        if options.output is not None or options.overwrite:
            parser.error("export: --portable writes into the folder itself: leave out --output and --overwrite")
        return _portable(options)
    if options.output is None:
        parser.error("export: --output is missing: the folder to write")
    check_output(Path(options.output), options.overwrite)
    if options.pt2:
        return _pt2(options)
    return _onnx(options) if options.onnx else _native(options, choice if options.nearest else None)


def _native(options: argparse.Namespace, nearest: CalibrationChoice | None) -> int:
    # rich, torch and transformers take seconds to import: only who runs the command waits for them.
    from hf_heads.cli.console import print_native, progress_bar, quiet

    quiet()
    from hf_heads.jobs.export.native import export_native  # takes seconds to import

    with progress_bar(not options.json) as progress:
        report = export_native(
            resolve_source(options.source),
            Path(options.output),
            nearest=nearest,
            overwrite=options.overwrite,
            device=options.device,
            progress=progress,
        ).to_dict()
    if options.json:
        print_json({"output": options.output, **report})
    else:
        print_native(report, options.output)
    return 0


def _onnx(options: argparse.Namespace) -> int:
    # transformers takes seconds to import: only who runs the command waits for it.
    from hf_heads.cli.console import quiet

    quiet()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it tells of packages that it does without
    from hf_heads.jobs.export.onnx import export_onnx  # takes seconds to import

    source, output = resolve_source(options.source), Path(options.output)
    report = export_onnx(source, output, overwrite=options.overwrite, int8=options.int8).to_dict()
    if options.json:
        print_json({"output": options.output, **report})
    else:
        size, difference = report["bytes"] / 1e6, report["max_difference"]
        cache = f", with a cache of {report['cached_layers']} layers" if report["cached_layers"] else ""
        print(
            f"{', '.join(report['files'])}: {', '.join(report['inputs'])} -> {report['output']}{cache}, {size:,.1f} MB"
        )
        if lower := report["int8"]:
            print(f"in 8 bits {lower['bytes'] / 1e6:,.1f} MB, cosine {lower['cosine']:.4f} to float32 on random inputs")
        print(f"largest difference from torch at other sizes: {difference:.2g}; written to {options.output}")
    return 0


def _pt2(options: argparse.Namespace) -> int:
    # transformers takes seconds to import: only who runs the command waits for it.
    from hf_heads.cli.console import quiet

    quiet()
    from hf_heads.jobs.export.program import export_program  # takes seconds to import

    report = export_program(resolve_source(options.source), Path(options.output), overwrite=options.overwrite).to_dict()
    if options.json:
        print_json({"output": options.output, **report})
    else:
        print(f"{', '.join(report['files'])}: {report['bytes'] / 1e6:,.1f} MB")
        print(f"largest difference at other sizes: {report['max_difference']:.2g}; written to {options.output}")
    return 0


def _portable(options: argparse.Namespace) -> int:
    # transformers takes seconds to import: only who runs the command waits for it.
    from hf_heads.cli.console import quiet

    quiet()
    from hf_heads.jobs.export.portable import make_portable  # takes seconds to import

    code = make_portable(resolve_source(options.source))
    if options.json:
        print_json({"output": options.source, "code": code})
    else:
        print(f"{code} is in {options.source}: load it with trust_remote_code=True wherever transformers is installed")
    return 0
