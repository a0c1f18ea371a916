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
    """Blocks of two widths beside their limits, and the ways tried for the core."""
    blocks = (
        [
            f"{row['width']}, {row['batch']} x {row['length']}",
            f"{row['milliseconds']['standard heads']:.1f}",
            f"{row['milliseconds']['hf-heads']:.1f}",
            f"{row['ratio']:.2f}",
            f"{row['limit']:.2f}",
            f"{100 * row['ratio'] / row['limit']:.0f} %",
        ]
        for row in results["blocks"]
    )
    head = [
        "width, batch x length",
        "original, ms",
        "collab, ms",
        "original's time / collab's",
        "limit",
        "of the limit",
    ]
    cores = [{**row, "shape": f"{row['width']}, {row['batch']} x {row['length']}"} for row in results["cores"]]
    names = dict.fromkeys(name for row in cores for name in (*row["milliseconds"], *row["reasons"]))

    def cell(row: Row, name: str) -> str:
        return f"{row['milliseconds'][name]:.1f}" if name in row["milliseconds"] else "-"

    tried = ([name, *(cell(row, name) for row in cores)] for name in names)
    reached = [f"{row['ratio']:.2f} of {row['limit']:.2f}" for row in cores]
    lines = table(["the core alone, ms", *(row["shape"] for row in cores)], tried)
    lines.append("| standard heads' time / hf-heads' | " + " | ".join(reached) + " |")
    reasons = {f"{name}: {reason}" for row in cores for name, reason in row["reasons"].items()}
    return [*table(head, blocks), "", *lines, *(["", "; ".join(sorted(reasons)) + "."] if reasons else [])]
