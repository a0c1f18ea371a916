"""The table and pictures of heads with a job, for `inspect --heads`."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

from hf_heads.cli.options import print_json
from hf_heads.core.vocabulary import JOBS
from hf_heads.io.checkpoints.files import check_file
from hf_heads.io.checkpoints.sources import resolve_source


def inspect_heads(options: argparse.Namespace) -> int:
    """Load a checkpoint, look where its heads look, and show it."""
    # rich, torch and transformers take seconds to import: only who runs the command waits for them.
    from hf_heads.cli.console import make_console, make_table, quiet

    quiet()
    from hf_heads.io.checkpoints.loading import load_source  # takes seconds to import
    from hf_heads.jobs.reporting.figures.heads import draw_heads
    from hf_heads.jobs.reporting.figures.style import need_matplotlib
    from hf_heads.jobs.scoring.probe import HAS_JOB, probe_heads

    source = resolve_source(options.source)
    if options.plot:
        need_matplotlib(options.plot)
    found = probe_heads(load_source(source, "cpu"))
    pictures = picture_names(options.plot, found.found) if options.plot else {}
    for path in pictures.values():
        check_file(str(path), options.overwrite)
    for job, path in pictures.items():
        draw_heads(path, found.found[job], f"Attention to {JOBS[job]}", "mean attention, where there is such a key")
    if options.json:
        print_json({"source": source.given, **found.to_dict()})
        return 0
    console = make_console()
    table = make_table("job", "block", ">head", ">attention", "looks at")
    for job, block, head, attention in found.employed():
        table.add_row(job, block, str(head), f"{attention:.2f}", JOBS[job])
    console.print(table)
    console.print(f"heads with a mean attention of {HAS_JOB} or more, on {found.inputs}; --json has all", markup=False)
    for path in pictures.values():
        console.print(f"written to {path}", markup=False)
    return 0


def picture_names(plot: str, jobs: Iterable[str]) -> dict[str, Path]:
    """A file for each job: its name goes before the ending of the given one."""
    path = Path(plot)
    return {job: path.with_name(f"{path.stem}-{job}{path.suffix}") for job in jobs}
