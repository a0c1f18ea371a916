"""Writes the tables of README.md from scripts/results/*.json, between their markers.

python scripts/readme_tables.py [--check]
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent


def read(name: str) -> dict[str, Any]:
    return json.loads((ROOT / "scripts" / "results" / f"{name}.json").read_text(encoding="utf-8"))


def table(header: list[str], rows: list[list[str]]) -> list[str]:
    lines = ["| " + " | ".join(header) + " |", "|---" + "|---:" * (len(header) - 1) + "|"]
    return [*lines, *("| " + " | ".join(row) + " |" for row in rows)]


def circumstances(results: dict[str, Any], command: str) -> list[str]:
    found = results["circumstances"]
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    return ["", f"<sub>`{command}`, {found['date']}, {versions}, {found['machine']}.</sub>"]


def methods() -> list[str]:
    results = read("stsb")
    rows = [row for row in results["rows"] if row["table"] == "methods"]
    ranks = sorted({row["rank"] for row in rows}, reverse=True)
    labels = list(dict.fromkeys(row["label"] for row in rows))
    cell = {(row["label"], row["rank"]): f"{row['drop']:+.2f} / {row['cosine']:.4f}{_other(row)}" for row in rows}
    body = [[label, *(cell.get((label, rank), "") for rank in ranks)] for label in labels]
    head = ["drop of Spearman / cosine", *(f"R = {rank}" for rank in ranks)]
    lines = table(head, body)
    return [*lines, *circumstances(results, "python scripts/stsb.py --train ... --dev ... --text ...")]


def _other(row: dict[str, Any]) -> str:
    """The rank of low-rank, where it has to be the next multiple of the heads."""
    used = row["ranks"][0]
    return f" (R = {used})" if row["label"] == "low-rank" and used != row["rank"] else ""


def calibration() -> list[str]:
    results = read("stsb")
    rows = [row for row in results["rows"] if row["table"] == "calibration"]
    body = [[row["label"], f"{row['drop']:+.2f}", f"{row['cosine']:.4f}"] for row in rows]
    return table(["calibrated on (collab, R = 96)", "drop of Spearman", "cosine"], body)


def architectures() -> list[str]:
    results = read("architectures")
    named = {"data": "its own data", "random": "made data (default)", "white": "white noise", "none": "weights alone"}
    lines: list[str] = []
    for model, score in (("marian", "BLEU"), ("vit", "accuracy")):
        rows = [row for row in results["rows"] if row["model"] == model]
        original = next(row["score"] for row in rows if row["label"] == "original")
        labels = list(dict.fromkeys(row["label"] for row in rows if row["label"] != "original"))
        cell = {(row["label"], row.get("calibration")): f"{row['score']:.2f} / {row.get('kl', 0):.5f}" for row in rows}
        kinds = [kind for kind in named if (labels[0], kind) in cell]
        body = [[label, *(cell[label, kind] for kind in kinds)] for label in labels]
        head = [f"{model}, original {score} {original:.2f}: {score} / KL", *(named[kind] for kind in kinds)]
        lines += [*table(head, body), ""]
    return [*lines[:-1], *circumstances(results, "python scripts/architectures.py ...")]


def latency() -> list[str]:
    results = read("latency")
    rows = results["rows"]
    shapes = list(dict.fromkeys((row["batch"], row["length"]) for row in rows))
    labels = list(dict.fromkeys(row["method"] for row in rows))
    cell = {
        (row["method"], row["batch"], row["length"]): f"{row['ratio']:.2f} ({row['work_ratio']:.2f})" for row in rows
    }
    body = [[label, *(cell[label, *shape] for shape in shapes)] for label in labels]
    lines = table(["original's time / converted's", *(f"{batch} x {length}" for batch, length in shapes)], body)
    return [*lines, *circumstances(results, "python scripts/latency.py")]


def ways() -> list[str]:
    results = read("ways")
    names = ("at once", "in pieces", "fused", "standard heads")
    body = [[f"{row['batch']} x {row['length']}", *(f"{row[name]:.2f}" for name in names)] for row in results["rows"]]
    return [*table(["milliseconds", *names], body), *circumstances(results, "python scripts/ways.py")]


def solver() -> list[str]:
    results = read("solver")
    body = [
        [
            f"{row['layer']}, {row['rank']}",
            f"{row['error']:.4f}, {row['seconds']:.1f} s",
            f"{row['equal_error']:.4f}, {row['equal_seconds']:.2f} s",
            f"{row['random_error']:.4f}, {row['random_seconds']:.1f} s",
            f"{row['svd_error']:.4f}, {row['svd_seconds']:.1f} s",
        ]
        for row in results["rows"]
    ]
    lines = table(
        ["layer, rank", "hf-heads", "hf-heads, to tensorly's error", "tensorly, random start", "tensorly, SVD start"],
        body,
    )
    whole = f"A whole conversion at R = 96, statistics and refit included, took {results['conversion_seconds']:.0f} s."
    return [*lines, "", whole, *circumstances(results, "python scripts/solver.py")]


def sst2() -> list[str]:
    results = read("sst2")
    labels = list(dict.fromkeys(row["label"] for row in results["rows"]))
    body = []
    for label in labels:
        scores = [row["accuracy"] for row in results["rows"] if row["label"] == label]
        body.append([label, ", ".join(f"{score:.2f}" for score in scores)])
    return [*table(["checkpoint", "dev accuracy"], body), *circumstances(results, "python scripts/sst2.py ...")]


TABLES = {
    function.__name__: function for function in (methods, calibration, architectures, latency, ways, solver, sst2)
}


def filled(text: str) -> str:
    """The README with every table between `<!-- table: NAME -->` and `<!-- end -->` made anew."""

    def replace(found: re.Match[str]) -> str:
        return f"<!-- table: {found[1]} -->\n" + "\n".join(TABLES[found[1]]()) + "\n<!-- end -->"

    return re.sub(r"<!-- table: (\w+) -->\n.*?<!-- end -->", replace, text, flags=re.S)


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--check", action="store_true", help="only say whether README.md is up to date")
    check = options.parse_args().check
    path = ROOT / "README.md"
    text = path.read_text(encoding="utf-8")
    if check:
        return int(filled(text) != text)
    path.write_text(filled(text), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
