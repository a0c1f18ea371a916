"""Writes the tables of README.md from scripts/results/*.json, between their markers.

python scripts/tables.py [--check]
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from functools import partial
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


def pruned() -> list[str]:
    results = read("prune_stsb")
    shares = sorted({row["removed"] for row in results["rows"]})
    labels = [label for label in dict.fromkeys(row["label"] for row in results["rows"]) if "random heads" not in label]
    cell = {(row["label"], row["removed"]): f"{row['drop']:+.2f} / {row['cosine']:.3f}" for row in results["rows"]}
    body = [[label, *(cell.get((label, share), "") for share in shares)] for label in labels]
    controls = []
    for share in shares:
        rows = [row for row in results["rows"] if "random heads" in row["label"] and row["removed"] == share]
        drop, cosine = (sum(row[name] for row in rows) / len(rows) for name in ("drop", "cosine"))
        controls.append(f"{drop:+.2f} / {cosine:.3f}")
    body.append(["random heads, mean of 3", *controls])
    lines = table(["drop of Spearman / cosine, removed:", *(f"{100 * share:.0f} %" for share in shares)], body)
    return [*lines, *circumstances(results, "python scripts/prune_stsb.py --train ... --dev ...")]


def pruned_sst2() -> list[str]:
    results = read("prune_sst2")
    shares = sorted({row["removed"] for row in results["rows"]})
    labels = list(dict.fromkeys(row["label"] for row in results["rows"]))
    cell = {(row["label"], row["removed"]): f"{row['accuracy']:.1f}" for row in results["rows"]}
    body = [[label, *(cell.get((label, share), "") for share in shares)] for label in labels]
    head = [f"accuracy, all heads {results['base']:.1f}; removed:", *(f"{100 * share:.0f} %" for share in shares)]
    return [*table(head, body), *circumstances(results, "python scripts/prune_sst2.py ...")]


def pruned_marian() -> list[str]:
    results = read("prune_marian")
    shares = sorted({row["removed"] for row in results["rows"]})
    body = []
    for rule, kind in dict.fromkeys((row["rule"], row["kind"]) for row in results["rows"]):
        rows = {row["removed"]: row for row in results["rows"] if (row["rule"], row["kind"]) == (rule, kind)}
        body.append([f"{rule}, {kind}", *(f"{rows[share]['bleu']:.1f}" if share in rows else "" for share in shares)])
        if any("bleu_repaired" in row for row in rows.values()):
            repaired = [f"{rows[share]['bleu_repaired']:.1f}" if share in rows else "" for share in shares]
            body.append([f"{rule}, {kind}, repair", *repaired])
    head = [f"BLEU, all heads {results['base']:.1f}; removed:", *(f"{100 * share:.0f} %" for share in shares)]
    return [*table(head, body), *circumstances(results, "python scripts/prune_marian.py ...")]


def pruned_latency() -> list[str]:
    results = read("prune_latency")
    batches = sorted({row["batch"] for row in results["rows"]})
    cell = {
        (row["kept"], row["batch"]): f"{row['block_ratio']:.2f} / {row['model_ratio']:.2f}" for row in results["rows"]
    }
    labels = list(dict.fromkeys(row["kept"] for row in results["rows"]))
    body = [[f"{label} heads", *(cell[label, batch] for batch in batches)] for label in labels]
    head = ["original's time / pruned's: block / whole model", *(f"batch {batch}" for batch in batches)]
    whole = f"Scoring on 512 sentences and removing half of the heads took {results['conversion_seconds']:.0f} s."
    return [*table(head, body), "", whole, *circumstances(results, "python scripts/prune_latency.py --train ...")]


def mhe() -> list[str]:
    results = read("mhe_stsb")
    named = {"data": "512 training sentences", "random": "random inputs (default)"}
    body = [
        [
            f"{row['variant']}, {row['groups_qk']} / {row['groups_v']}",
            named[row["calibration"]],
            f"{row['drop']:+.2f}",
            f"{row['cosine']:.4f}",
            f"{row['attention_parameters']:,}",
            str(row["cache"]),
        ]
        for row in results["rows"]
    ]
    head = ["variant, groups of scores / of values", "calibrated on", "drop", "cosine", "parameters", "cache"]
    return [*table(head, body), *circumstances(results, "python scripts/mhe_stsb.py --train ... --dev ...")]


def mhe_latency() -> list[str]:
    results = read("mhe_latency")
    shapes = list(dict.fromkeys((row["batch"], row["length"]) for row in results["rows"]))
    labels = list(dict.fromkeys(row["method"] for row in results["rows"]))
    cell = {(row["method"], row["batch"], row["length"]): f"{row['ratio']:.2f}" for row in results["rows"]}
    body = [[label, *(cell[label, *shape] for shape in shapes)] for label in labels]
    lines = table(["original's time / converted's", *(f"{batch} x {length}" for batch, length in shapes)], body)
    batches = sorted({row["batch"] for row in results["decoding"]})
    rates = {
        (row["method"], row["batch"]): f"{row['tokens_per_second']:.0f} ({row['ratio']:.2f})"
        for row in results["decoding"]
    }
    names = list(dict.fromkeys(row["method"] for row in results["decoding"]))
    head = ["Marian, 4 beams: tokens per second (ratio)", *(f"{batch} sentences" for batch in batches)]
    lines += ["", *table(head, [[name, *(rates[name, batch] for batch in batches)] for name in names])]
    return [*lines, *circumstances(results, "python scripts/mhe_latency.py ...")]


def mhe_scratch() -> list[str]:
    results = read("mhe_scratch")
    named = {"mha": "multi-head", "single": "single head", "add": "MHE-ADD", "mul": "MHE-MUL"}
    body = []
    for heads, label in named.items():
        rows = [row for row in results["rows"] if row["heads"] == heads]
        scores = ", ".join(f"{row['perplexity']:.2f}" for row in rows)
        body.append([label, f"{rows[0]['parameters']:,.0f}", scores, f"{results['retained'][heads]:.1f} %"])
    head = ["attention", "parameters", "perplexity of each seed", "retained"]
    return [*table(head, body), *circumstances(results, "python scripts/mhe_scratch.py --max-steps 300 ...")]


def mgk() -> list[str]:
    results = read("mgk_stsb")
    body = [
        [
            row["label"],
            f"{row['drop']:+.2f}",
            f"{row['cosine']:.4f}",
            f"{row['attention_parameters']:,}",
            f"{row['cache']:.0f}",
        ]
        for row in results["rows"]
    ]
    head = ["12 heads to 6, 512 training sentences", "drop of Spearman", "cosine", "parameters", "cache"]
    return [*table(head, body), *circumstances(results, "python scripts/mgk_stsb.py --train ... --dev ...")]


def mgk_scratch() -> list[str]:
    results = read("mgk_scratch")
    named = {"listops": "ListOps", "sst2": "SST-2"}
    tasks = [task for task in named if task in results]
    rows = {(task, row["variant"]): row for task in tasks for row in results[task]["rows"]}
    body = []
    for variant in dict.fromkeys(variant for _, variant in rows):
        cells = [f"{rows[task, variant]['accuracy']:.2f} ± {rows[task, variant]['spread']:.2f}" for task in tasks]
        body.append([variant, *cells, f"{rows[tasks[0], variant]['attention']:,}"])
    head = ["mean accuracy ± standard deviation", *(named[task] for task in tasks), "attention parameters"]
    return [*table(head, body), *circumstances(results, "python scripts/mgk_scratch.py ...")]


def mgk_ways() -> list[str]:
    results = read("mgk_ways")
    lengths = sorted({row["length"] for row in results["rows"]})
    cell = {
        (row["way"], row["length"]): f"{row['milliseconds']:.1f} / {row['megabytes']:.0f}" for row in results["rows"]
    }
    ways = list(dict.fromkeys(row["way"] for row in results["rows"]))
    body = [[way, *(cell[way, length] for length in lengths)] for way in ways]
    head = ["6 heads, 2 keys: milliseconds / megabytes", *(f"length {length}" for length in lengths)]
    return [*table(head, body), *circumstances(results, "python scripts/mgk_ways.py")]


_HEALED = {"stsb": "length 128", "sst2": "length 128", "marian": "length 128", "vit": "one image"}


def healed(task: str) -> list[str]:
    """One shot and healed models beside their original, from the comparison that `scripts/heal.py` kept."""
    results = read(f"heal_{task}")
    models, metric = results["models"], results["metric"]["name"]
    first = models[0]
    body = []
    for model in models:
        base, score, speed = first["attention_parameters"], model["score"], model["latency"]
        change = f" ({100 * (model['attention_parameters'] / base - 1):+.0f} %)" if model is not first else ""
        difference = f"{score['difference']:+.2f} ({score['difference_low']:+.2f} to {score['difference_high']:+.2f})"
        adds = list(model["multiply_adds"].values())
        body.append(
            [
                model["name"],
                f"{model['attention_parameters'] / 1e6:.2f}{change}",
                str(model["cache_per_token"]),
                f"{adds[min(1, len(adds) - 1)] / 1e6:,.0f}",
                f"{speed[-1]['ratio']:.2f}" if speed else "",
                f"{model['drift']['cosine']:.4f}" if model["drift"] else "",
                f"{score['value']:.2f}",
                difference if model is not first else f"({score['low']:.1f} to {score['high']:.1f})",
            ]
        )
    last = first["latency"][-1]
    head = ["model", "attention parameters, million", "cache", f"multiply-adds, million, {_HEALED[task]}"]
    head += [f"speed, {last['batch']} x {last['length']}", "cosine", metric, "difference (95 %)"]
    lines = table(head, body)
    where = f"Healed for at most {results['minutes']:g} minutes each, without labels."
    return [*lines, "", where, *circumstances(results, f"python scripts/heal.py {task} ...")]


TABLES = {
    function.__name__: function
    for function in (
        methods,
        calibration,
        architectures,
        latency,
        ways,
        solver,
        sst2,
        pruned,
        pruned_sst2,
        pruned_marian,
        pruned_latency,
        mhe,
        mhe_latency,
        mhe_scratch,
        mgk,
        mgk_scratch,
        mgk_ways,
    )
} | {f"heal_{task}": partial(healed, task) for task in _HEALED}


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
