"""Tables of studies that time."""

from __future__ import annotations

from markdown_tables import Row, grid, table


def latency(results: Row) -> list[str]:
    """Speed by shape, beside what multiply-adds promise."""
    return grid(
        results["rows"],
        "method",
        ["batch", "length"],
        "original's time / converted's",
        "{} x {}",
        lambda row: f"{row['ratio']:.2f} ({row['work_ratio']:.2f})",
    )


def ways(results: Row) -> list[str]:
    """Ways of computing collaborative attention."""
    names = ("at once", "in pieces", "fused", "standard heads")
    body = ([f"{row['batch']} x {row['length']}", *(f"{row[name]:.2f}" for name in names)] for row in results["rows"])
    return table(["milliseconds", *names], body)


def kernels(results: Row) -> list[str]:
    """Collaborative attention beside its limit, and ways tried for its core."""
    blocks, cores = results["blocks"], results["cores"]
    body = (
        [
            f"{row['width']}, {row['batch']} x {row['length']}",
            *(f"{row['milliseconds'][name]:.1f}" for name in ("standard heads", "hf-heads")),
            f"{row['ratio']:.2f} ({row['limit']:.2f})",
            f"{row['ratio'] / row['limit']:.0%}",
            f"{core['milliseconds']['products alone'] / core['milliseconds']['hf-heads']:.0%}",
        ]
        for row, core in zip(blocks, cores, strict=True)
    )
    head = ["width, batch x length", "original, ms", "collab, ms", "original's time / collab's (limit)"]
    head += ["of the limit", "of the core: products alone"]
    names = [name for name in cores[0]["milliseconds"] if name != "hf-heads"]
    times = (
        [f"{row['width']}, {row['batch']} x {row['length']}", f"{row['milliseconds']['hf-heads']:.1f}"]
        + [_times(row, name) for name in names]
        for row in cores
    )
    return [*table(head, body), "", *table(["core alone", "hf-heads, ms", *names], times)]


def _times(row: Row, name: str) -> str:
    """How many times as long as here."""
    found = row["milliseconds"].get(name)
    return "failed" if found is None else f"{found / row['milliseconds']['hf-heads']:.2f}"


def processes(results: Row) -> list[str]:
    """One command by one process and by several."""
    body = (
        [
            row["title"] + (f", {row['samples']} sequences" if row["samples"] else ""),
            *(f"{seconds:.0f} s" for seconds in row["seconds"]),
            f"{row['ratio']:.2f}",
            row["same"],
            row["date"],
        ]
        for row in results["rows"]
    )
    size = f"layers {results['layers']}, width {results['width']}, rank {results['rank']}"
    count = results["rows"][0]["processes"][1]
    return table([f"{size}; one thread each", "1 process", f"{count} processes", "times as fast", "the same", ""], body)
