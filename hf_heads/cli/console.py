"""What the command line draws: tables, a progress bar with the time left, the report of a conversion."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from hf_heads.core.errors import HeadsWarning
from hf_heads.core.vocabulary import lowest_cosine, one_line, percent, printable
from hf_heads.jobs.evaluation.record import Comparison
from hf_heads.jobs.recommendation.record import Recommendation
from hf_heads.jobs.reporting.tables import notes, text_tables
from hf_heads.methods.words import settings_text


class _Console(Console):
    """A console that writes characters which would steer the terminal as escapes: names and data hold anything."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable(text), **options)


_format_warning = warnings.formatwarning


def make_console() -> Console:
    """Colour and the terminal's width on a terminal; elsewhere neither, and room for the tables."""
    console = _Console(highlight=False)
    if not console.is_terminal:
        console = _Console(highlight=False, width=160)
    return console


class _Table(Table):
    """A table that keeps the names in its first column whole: where it is too wide, words go below the names."""

    def __init__(self, columns: Sequence[str], names_whole: bool = False) -> None:
        super().__init__(box=box.SIMPLE)
        self.titles, self.cells = columns, list[tuple[str, ...]]()
        for place, column in enumerate(columns):
            right, whole = column.startswith(">"), names_whole and not place
            self.add_column(
                column.removeprefix(">"), justify="right" if right else "left", overflow="fold", no_wrap=whole
            )

    def add_row(self, *cells: Any, **options: Any) -> None:
        self.cells.append(cells)
        super().add_row(*cells, **options)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if self.__rich_measure__(console, options.update(max_width=10_000)).maximum <= options.max_width:
            return super().__rich_console__(console, options)
        words = [place for place, title in enumerate(self.titles) if place and not title.startswith(">")]
        numbers = [place for place in range(1, len(self.titles)) if place not in words]
        narrow = _Table([self.titles[0], *(self.titles[place] for place in numbers)], names_whole=True)
        for cells in self.cells:
            below = [f"  {cells[place]}" for place in words if cells[place]]
            narrow.add_row("\n".join([str(cells[0]), *below]), *(cells[place] for place in numbers))
        return Table.__rich_console__(narrow, console, options)


def make_table(*columns: str) -> Table:
    """An empty table; a column whose title starts with `>` is set to the right."""
    return _Table(columns)


def quiet() -> None:
    """Leave the screen to us: no progress bars or load reports of the libraries below, and our warnings in a line.

    What imports them takes seconds, so that a terminal is told of it first.
    """
    if "torch" not in sys.modules and sys.stderr is not None and sys.stderr.isatty():
        print("hf-heads: loading torch and transformers", file=sys.stderr, flush=True)
    from transformers.utils import logging  # takes a second, and no command that only shows something calls this

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.formatwarning = _one_line


def _one_line(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> str:
    if issubclass(category, HeadsWarning):
        return f"hf-heads: warning: {message}\n"
    return _format_warning(message, category, *place, **more)


@contextmanager
def progress_bar(wanted: bool) -> Iterator[Callable[[str, int, int], None] | None]:
    """A progress bar with the time left, on a terminal; nothing elsewhere."""
    console = Console(stderr=True)
    if not wanted or not console.is_terminal:
        yield None
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("starting", total=None)

        def report(what: str, done: int, total: int) -> None:
            bar.update(task, description=one_line(what), completed=done, total=total)

        yield report


def print_report(record: dict[str, Any], output: Path | None) -> None:
    """Print what a conversion did: a row for every block, then the totals, the drift, and what was written, if any."""
    table = make_table("block", "settings", ">parameters", ">before", ">error", ">refit gain")
    for block in record["blocks"]:
        gain = "" if block["refit_gain"] is None else f"{100 * block['refit_gain']:.1f} %"
        table.add_row(
            block["name"],
            settings_text(block),
            f"{block['parameters']:,}",
            f"{block['parameters_before']:,}",
            "" if block["error"] is None else f"{block['error']:.4f}",
            gain,
        )
    console = make_console()
    console.print(table)
    for label, key in (
        ("attention parameters", "attention_parameters"),
        ("model parameters", "model_parameters"),
        ("cached numbers per token", "cache_per_token"),
    ):
        before, after = record[f"{key}_before"], record[key]
        console.print(f"{label:26} {before:>14,} -> {after:>14,}  ({percent(before, after)})")
    for inputs, drift in record["drift"].items():
        figures = ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in drift.items())
        console.print(f"{f'drift, {inputs}':26} {figures}", markup=False)
    if lowest := lowest_cosine(record["drift"]):
        console.print(f"{'lowest cosine':26} {lowest[1]:.4g}, {lowest[0]}", markup=False, style="bold")
    for name, cosine in record["precision"].items():
        text = f"cosine to its own float32 {cosine['converted']:.5f}, of the original {cosine['original']:.5f}"
        console.print(f"{f'in {name}':26} {text}", markup=False)
    if jobs := record.get("jobs"):
        left = ", ".join(f"{row['job']} {row['before']:.2f} -> {row['after']:.2f}" for row in jobs)
        console.print(f"{'heads with a job':26} {left}")
    if kept := record.get("kept_heads"):
        heads = "; ".join(f"{name} {', '.join(map(str, heads))}" for name, heads in kept.items())
        console.print(f"{'heads left exact':26} {heads}", markup=False, highlight=False)
    if advice := record.get("advice"):
        console.print(f"{'advice':26} {advice}", markup=False, highlight=False)
    console.print(f"{'calibration':26} {record['calibration']}", markup=False, highlight=False)
    if output is not None:
        console.print(f"written to {output} in {record['seconds']:.0f} s", markup=False, highlight=False)


def print_heads(
    console: Console, values: Mapping[str, Sequence[float]], marks: Mapping[str, Sequence[str]] | None = None
) -> None:
    """Print a table with a row for every block and a column for every head.

    Args:
        console: where to.
        values: a number for every head by block.
        marks: what to put behind each number.
    """
    longest = max((len(row) for row in values.values()), default=0)
    table = make_table("block", *(f">{head}" for head in range(longest)))
    for name, row in values.items():
        behind = marks[name] if marks else [""] * len(row)
        table.add_row(name, *(f"{value:.3g}{mark}" for value, mark in zip(row, behind, strict=True)))
    console.print(table)


def print_ablation(record: Mapping[str, Any]) -> None:
    """Print what ablations found: heads out alone, then each block's best single head and the block without heads."""
    console = make_console()
    values: dict[str, list[float]] = {}
    marks: dict[str, list[str]] = {}
    for row in record["one_out"]:
        values.setdefault(row["block"], []).append(row["change"])
        sure = "*" if row["low"] > 0 or row["high"] < 0 else ""
        marks.setdefault(row["block"], []).append(sure + "!" * (row["p"] < 0.05))
    console.print(f"change of {record['metric']} with one head out; * where the 95 % interval leaves out zero")
    console.print("! where p < 0.05, corrected for the number of heads")
    print_heads(console, values, marks)
    better = max if record["metric"] == "accuracy" else min
    table = make_table("block", ">best head", ">all others out", ">95 % interval", ">all out", ">95 % interval")
    for none in record["none_left"]:
        left = [row for row in record["one_left"] if row["block"] == none["block"]]
        cells = ["", "", ""]
        if left:
            best = better(left, key=lambda row: row["change"])
            (head,) = set(range(len(best["out"]) + 1)) - set(best["out"])
            cells = [str(head), f"{best['change']:.3g}", _interval(best)]
        table.add_row(none["block"], *cells, f"{none['change']:.3g}", _interval(none))
    console.print(table)
    console.print(f"{record['metric']}: {record['about']}", markup=False)
    console.print(f"with all heads {record['whole']:.4g}, over {record['examples']} examples", markup=False)


def print_comparison(found: Comparison) -> None:
    """Print a comparison: sizes, speed and quality of its models, and what they were measured on."""
    console = make_console()
    for text in text_tables(found):
        table = make_table(*text.header[: text.words], *(f">{name}" for name in text.header[text.words :]))
        for row in text.rows:
            table.add_row(*(escape(cell) for cell in row))
        console.print(text.title, markup=False)
        console.print(table)
    for note in notes(found):
        console.print(note, markup=False)


def print_recommendation(found: Recommendation) -> None:
    """Print what was tried, the best for the goal first, and the command that makes the best one."""
    console = make_console()
    table = make_table("", "conversion", ">lost", f">{found.goal}", ">parameters", ">cache", ">speed")
    for place, one in enumerate(found.points):
        words = " ".join([one.method, *(f"{name} {value}" for name, value in one.settings.items())])
        mark = ">" if place == found.recommended else "*" if place in found.frontier else ""
        gains = (one.gain(found.goal, found.caches), one.parameters, one.cache, one.speed)
        table.add_row(mark, escape(words), f"{one.promised:.4f}", *(f"{gain:.2f} x" for gain in gains))
    console.print(table)
    lines = {
        "lost": f"{found.measure}, at most; > recommended, * what no other beats in loss and gain",
        "data": found.data,
        "speed of": found.timed,
        **{f"no {method}": reason for method, reason in found.left_out.items()},
        "recommended": found.reason if found.best else f"none: {found.reason}",
    }
    for name, text in lines.items():
        console.print(f"{name:26} {text}", markup=False)
    if found.best is not None:
        console.print(found.best.command, markup=False, style="bold", soft_wrap=True)


def _interval(row: Mapping[str, Any]) -> str:
    return f"{row['low']:.3g} to {row['high']:.3g}"


def print_healed(record: Mapping[str, Any], output: Path) -> None:
    """Print what healing did: the drift on held-out examples over time, and what was gained in all."""
    run = record["distillation"]
    console = make_console()
    names = [name for name in ("drift", "cosine", "kl", "agreement") if name in run["before"]]
    table = make_table(">step", ">seconds", *(f">{name}" for name in names))
    for point in run["curve"]:
        mark = " *" if point is run["after"] or point == run["after"] else ""
        table.add_row(str(point["step"]) + mark, f"{point['seconds']:.0f}", *(f"{point[name]:.4f}" for name in names))
    console.print(table)
    gains = ", ".join(f"{name} {run['before'][name]:.4f} -> {run['after'][name]:.4f}" for name in names)
    console.print(f"{'held-out examples':26} {gains}")
    console.print(f"{'healed on':26} {run['data']}", markup=False)
    console.print(f"{'teacher':26} {run['teacher']}", markup=False)
    console.print(f"written to {output} after {run['steps']} steps in {run['seconds']:.0f} s", markup=False)


def print_native(report: Mapping[str, Any], output: str) -> None:
    """Print what a checkpoint became as one of its host's own architecture."""
    console = make_console()
    if report["lost"]:
        table = make_table("block", ">lost of its scores")
        for name, lost in report["lost"].items():
            table.add_row(name, f"{100 * lost:.2f} %")
        console.print(table)
        console.print(f"{'nearest on':26} {report['calibration']}", markup=False, highlight=False)
    for heads, width in sorted({tuple(size) for size in report["sizes"].values()}):
        console.print(f"{'attention':26} {heads} heads of width {width}")
    before, after = report["parameters_before"], report["parameters"]
    console.print(f"{'model parameters':26} {before:>14,} -> {after:>14,}  ({percent(before, after)})")
    figures = ", ".join(f"{name.replace('_', ' ')} {value:.7g}" for name, value in report["drift"].items())
    console.print(f"{'drift, random':26} {figures}", markup=False)
    console.print(f"{'exact' if report['exact'] else 'LOSSY'}; written to {output}", markup=False, highlight=False)
