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
