"""The command report: a page from records of comparisons."""

from __future__ import annotations

import argparse
from typing import Any

from hf_heads.cli.options import add_command, print_json
from hf_heads.jobs.reporting.page import write_report


def add_report(commands: Any) -> None:
    """The command `report`."""
    command = add_command(commands, "report", _report, "make a page with tables and figures from comparisons")
    command.add_argument(
        "comparisons", metavar="COMPARISON.json", nargs="+", help="what `hf-heads compare --output` wrote"
    )
    command.add_argument(
        "--importance", metavar="SCORES.json", help="what `hf-heads importance --output` wrote, for a map of the heads"
    )
    command.add_argument(
        "--output",
        metavar="DIR",
        required=True,
        help="folder to write: index.html, which needs no other file, and PNGs",
    )
    command.add_argument("--title", metavar="TEXT", help="of the page (default: says what was compared)")
    command.add_argument("--overwrite", action="store_true", help="replace an earlier report")


def _report(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    written = write_report(
        options.comparisons,
        options.output,
        importance=options.importance,
        title=options.title,
        overwrite=options.overwrite,
    )
    if options.json:
        figures = [str(path) for path in written.figures]
        print_json({"page": str(written.page), "figures": figures, "summary": written.summary})
        return 0
    from hf_heads.cli.console import make_console  # rich takes a while to import; JSON does without

    console = make_console()
    for sentences in written.summary:
        for sentence in sentences:
            console.print(sentence, markup=False, soft_wrap=True)
    console.print(f"written to {written.page}", markup=False, soft_wrap=True)
    return 0
