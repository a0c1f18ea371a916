"""Fills the documents' tables from scripts/results/*.json, between `<!-- table: NAME -->` and `<!-- end -->`."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from markdown_tables import Row, grid, table
from table_of_hosts import hosts
from tables_of_exports import export_int8, export_native, export_onnx
from tables_of_families import grouped_made, rotary_collab, speech
from tables_of_healing import healed, healed_seeds, polish
from tables_of_inputs import (
    attention_error,
    attention_rank,
    domains,
    finetune_rates,
    joined,
    lengths,
    memory,
    precision,
    recommend,
    resolutions,
    roads,
    scaling,
)
from tables_of_papers import (
    glue,
    head_correlation,
    head_dynamics,
    imagenet_scratch,
    lm,
    lra,
    mlm_pretrain,
    nmt_scratch,
    prune_curve,
    squad,
)
from tables_of_speed import kernels, latency, processes, ways
from tables_of_values import grouped, kept, merge, values

ROOT = Path(__file__).resolve().parent.parent


def read(name: str) -> Row:
    """What a study kept."""
    return json.loads((ROOT / "scripts" / "results" / f"{name}.json").read_text(encoding="utf-8"))


def methods(results: Row) -> list[str]:
    """Collaborative and low-rank heads by rank."""

    def cell(row: Row) -> str:
        # Low-rank takes the next multiple of the heads.
        other = f" (R = {row['ranks'][0]})" if row["label"] == "low-rank" and row["ranks"][0] != row["rank"] else ""
        return f"{row['drop']:+.2f} / {row['cosine']:.4f}{other}"

    rows = [row for row in results["rows"] if row["table"] == "methods"]
    return grid(rows, "label", ["rank"], "drop of Spearman / cosine", "R = {}", cell)


def calibration(results: Row) -> list[str]:
    """The same by what they are calibrated on."""
    rows = [row for row in results["rows"] if row["table"] == "calibration"]
    body = ([row["label"], f"{row['drop']:+.2f}", f"{row['cosine']:.4f}"] for row in rows)
    return table(["calibrated on (collab, R = 96)", "drop of Spearman", "cosine"], body)


def architectures(results: Row) -> list[str]:
    """A table for the Marian and one for the ViT."""
    named = {"data": "its own data", "random": "made data (default)", "white": "white noise", "none": "weights alone"}
    lines: list[str] = []
    for model, score in (("marian", "BLEU"), ("vit", "accuracy")):
        original, *rows = (row for row in results["rows"] if row["model"] == model)
        rows = [{**row, "named": named[row["calibration"]]} for row in rows]
        corner = f"{model}, original {score} {original['score']:.2f}: {score} / KL"
        cells = grid(rows, "label", ["named"], corner, "{}", lambda row: f"{row['score']:.2f} / {row['kl']:.5f}")
        lines += [*cells, ""]
    return lines[:-1]


def solver(results: Row) -> list[str]:
    """CP here and in tensorly."""
    runs = {
        "hf-heads": ("", 2),
        "hf-heads, to tensorly's error": ("equal_", 2),
        "tensorly, random start": ("random_", 1),
        "tensorly, SVD start": ("svd_", 1),
    }
    body = (
        [
            f"{row['model']} {row['layer']}, {row['rank']}",
            *(f"{row[f'{run}error']:.4f}, {row[f'{run}seconds']:.{digits}f} s" for run, digits in runs.values()),
        ]
        for row in results["rows"]
    )
    faster = sorted(min(row["random_seconds"], row["svd_seconds"]) / row["equal_seconds"] for row in results["rows"])
    higher = sum(row["error"] > min(row["random_error"], row["svd_error"]) for row in results["rows"])
    large = ", ".join(f"{row['seconds']:.1f} s at R = {row['rank']}" for row in results["large"])
    whole = results["conversion_seconds"]
    said = (
        f"Ours ends above tensorly's better error in {higher} of {len(faster)} cases, and gets to it {faster[0]:.0f} "
        f"to {faster[-1]:.0f} times as fast as tensorly's faster start, {faster[len(faster) // 2]:.0f} times in the "
        f"median. Made weights of BERT-base's sizes take {large}. A whole conversion of MiniLM at R = 96 on 512 short "
        f"made sequences took {whole['attention']:.0f} CPU seconds, with `--objective scores` {whole['scores']:.0f}."
    )
    return [*table(["layer, rank", *runs], body), "", said]


def sst2(results: Row) -> list[str]:
    """Fine-tuning after conversion."""
    scores: dict[str, list[str]] = {}
    for row in results["rows"]:
        scores.setdefault(row["label"], []).append(f"{row['accuracy']:.2f}")
    return table(["checkpoint", "dev accuracy"], ([label, ", ".join(found)] for label, found in scores.items()))


def _percent(rows: Iterable[Row]) -> list[Row]:
    return [{**row, "percent": round(100 * row["removed"])} for row in rows]


def pruned(results: Row) -> list[str]:
    """Rules for choosing heads, with the mean of the controls."""
    rows = [row for row in results["rows"] if "random heads" not in row["label"]]
    for share in dict.fromkeys(row["removed"] for row in rows):
        controls = [row for row in results["rows"] if "random heads" in row["label"] and row["removed"] == share]
        mean = {name: sum(row[name] for row in controls) / len(controls) for name in ("drop", "cosine")}
        rows.append({"label": f"random heads, mean of {len(controls)}", "removed": share, **mean})
    return grid(
        _percent(rows),
        "label",
        ["percent"],
        "drop of Spearman / cosine, removed:",
        "{} %",
        lambda row: f"{row['drop']:+.2f} / {row['cosine']:.3f}",
    )


def pruned_sst2(results: Row) -> list[str]:
    """Accuracy by the share removed."""
    corner = f"accuracy, all heads {results['base']:.1f}; removed:"
    rows = _percent(results["rows"])
    return grid(rows, "label", ["percent"], corner, "{} %", lambda row: f"{row['accuracy']:.1f}")


def pruned_marian(results: Row) -> list[str]:
    """BLEU by the kind of heads and the share removed."""
    rows = []
    for row in results["rows"]:
        rows.append({**row, "label": f"{row['rule']}, {row['kind']}"})
        if "bleu_repaired" in row:
            rows.append({**row, "label": f"{row['rule']}, {row['kind']}, repair", "bleu": row["bleu_repaired"]})
    corner = f"BLEU, all heads {results['base']:.1f}; removed:"
    return grid(_percent(rows), "label", ["percent"], corner, "{} %", lambda row: f"{row['bleu']:.1f}")


def pruned_latency(results: Row) -> list[str]:
    """Speed with fewer heads."""
    lines = grid(
        [{**row, "heads": f"{row['kept']} heads"} for row in results["rows"]],
        "heads",
        ["batch"],
        "original's time / pruned's: block / whole model",
        "batch {}",
        lambda row: f"{row['block_ratio']:.2f} / {row['model_ratio']:.2f}",
    )
    whole = f"Scoring on 512 sentences and removing half of the heads took {results['conversion_seconds']:.0f} s."
    return [*lines, "", whole]


def _lost_and_kept(row: Row) -> list[str]:
    return [
        f"{row['drop']:+.2f}",
        f"{row['cosine']:.4f}",
        f"{row['attention_parameters']:,}",
        f"{row['cache']:.0f}",
    ]


def mhe(results: Row) -> list[str]:
    """Head embeddings, one shot."""
    named = {"data": "512 training sentences", "random": "random inputs (default)"}
    body = (
        [f"{row['variant']}, {row['groups_qk']} / {row['groups_v']}", named[row["calibration"]], *_lost_and_kept(row)]
        for row in results["rows"]
    )
    head = ["variant, groups of scores / of values", "calibrated on", "drop", "cosine", "parameters", "cache"]
    return table(head, body)


def mhe_latency(results: Row) -> list[str]:
    """Speed of a block, and of decoding."""
    lines = grid(
        results["rows"],
        "method",
        ["batch", "length"],
        "original's time / converted's",
        "{} x {}",
        lambda row: f"{row['ratio']:.2f}",
    )
    decoding = grid(
        results["decoding"],
        "method",
        ["batch"],
        "Marian, 4 beams: tokens per second (ratio)",
        "{} sentences",
        lambda row: f"{row['tokens_per_second']:.0f} ({row['ratio']:.2f})",
    )
    return [*lines, "", *decoding]


def mhe_scratch(results: Row) -> list[str]:
    """Language models from scratch."""
    named = {"mha": "multi-head", "sha": "single head, as the paper counts", "single": "single head"}
    named |= {"mqa": "multi-query", "add": "MHE-ADD", "mul": "MHE-MUL"}
    elastic, body = results.get("elasticity"), []
    for heads, label in named.items():
        if rows := [row for row in results["rows"] if row["heads"] == heads]:
            scores = ", ".join(f"{row['perplexity']:.2f}" for row in rows)
            cells = [label, f"{rows[0]['parameters']:,.0f}", scores, f"{results['retained'][heads]:.1f} %"]
            body.append(cells if elastic is None else [*cells, f"{elastic[heads]:.2f}" if heads in elastic else ""])
    head = ["attention", "parameters", "perplexity of each seed", "retained"]
    return table(head if elastic is None else [*head, "elasticity"], body)


def mgk(results: Row) -> list[str]:
    """Heads merged into half as many."""
    head = ["12 heads to 6, 512 training sentences", "drop of Spearman", "cosine", "parameters", "cache"]
    return table(head, ([row["label"], *_lost_and_kept(row)] for row in results["rows"]))


def mgk_scratch(results: Row) -> list[str]:
    """Classifiers from scratch."""
    tasks = {task: name for task, name in {"listops": "ListOps", "sst2": "SST-2"}.items() if task in results}
    body = []
    for rows in zip(*(results[task]["rows"] for task in tasks), strict=True):
        scores = (f"{row['accuracy']:.2f} ± {row['spread']:.2f}" for row in rows)
        body.append([rows[0]["variant"], *scores, f"{rows[0]['attention']:,}"])
    return table(["mean accuracy ± standard deviation", *tasks.values(), "attention parameters"], body)


def mgk_ways(results: Row) -> list[str]:
    """Ways of computing a mixture of Gaussian keys."""
    return grid(
        results["rows"],
        "way",
        ["length"],
        "6 heads, 2 keys: milliseconds / megabytes",
        "length {}",
        lambda row: f"{row['milliseconds']:.1f} / {row['megabytes']:.0f}",
    )


# The results that each table is made of, and how.
TABLES: dict[str, tuple[str, Callable[[Row], list[str]]]] = {
    "methods": ("stsb", methods),
    "kept": ("kept", kept),
    "calibration": ("stsb", calibration),
    "lengths": ("lengths", lengths),
    "roads": ("roads", roads),
    "finetune_rates": ("finetune_rates", finetune_rates),
    "domains": ("domains", domains),
    "polish": ("polish", polish),
    "joined": ("joined", joined),
    "resolutions": ("resolutions", resolutions),
    "memory": ("memory", memory),
    "recommend": ("recommend", recommend),
    "scaling": ("scaling", scaling),
    "precision": ("precision", precision),
    "export_native": ("export", export_native),
    "export_onnx": ("export", export_onnx),
    "export_int8": ("export", export_int8),
    "attention_error": ("attention_error", attention_error),
    "attention_rank": ("attention_rank", attention_rank),
    "prune_curve": ("prune_curve", prune_curve),
    "glue": ("glue", glue),
    "head_dynamics": ("head_dynamics", head_dynamics),
    "head_correlation": ("head_correlation", head_correlation),
    "nmt_scratch": ("nmt_scratch", nmt_scratch),
    "imagenet_scratch": ("imagenet_scratch", imagenet_scratch),
    "mlm_pretrain": ("mlm_pretrain", mlm_pretrain),
    "squad": ("squad", squad),
    "lm": ("lm", lm),
    "lra": ("lra", lra),
    "architectures": ("architectures", architectures),
    "kernels": ("kernels", kernels),
    "processes": ("processes", processes),
    "latency": ("latency", latency),
    "ways": ("ways", ways),
    "solver": ("solver", solver),
    "sst2": ("sst2", sst2),
    "pruned": ("prune_stsb", pruned),
    "pruned_sst2": ("prune_sst2", pruned_sst2),
    "pruned_marian": ("prune_marian", pruned_marian),
    "pruned_latency": ("prune_latency", pruned_latency),
    "mhe": ("mhe_stsb", mhe),
    "grouped": ("grouped", grouped),
    "grouped_made": ("grouped_made", grouped_made),
    "rotary_collab": ("rotary_collab", rotary_collab),
    "speech": ("speech", speech),
    "values": ("values", values),
    "mhe_latency": ("mhe_latency", mhe_latency),
    "mhe_scratch": ("mhe_scratch", mhe_scratch),
    "mgk": ("mgk_stsb", mgk),
    "merge": ("merge", merge),
    "mgk_scratch": ("mgk_scratch", mgk_scratch),
    "mgk_ways": ("mgk_ways", mgk_ways),
    "healed_seeds": ("healed_seeds", healed_seeds),
    **{f"heal_{task}": (f"heal_{task}", healed) for task in ("stsb", "sst2", "marian", "vit")},
}


def made(name: str) -> list[str]:
    """The lines of a table, and below it the command, date, versions and machine."""
    study, lines = TABLES[name]
    results = read(study)
    found = results["circumstances"]
    versions = ", ".join(f"{package} {version}" for package, version in found["versions"].items())
    command = f"`python scripts/run.py reproduce {name}`"
    return [*lines(results), "", f"<sub>{command}, {found['date']}, {versions}, {found['machine']}.</sub>"]


def filled(text: str) -> str:
    """A document with every table between its markers made anew."""

    def replace(found: re.Match[str]) -> str:
        return f"<!-- table: {found[1]} -->\n" + "\n".join(made(found[1])) + "\n<!-- end -->"

    text = re.sub(r"<!-- table: (\w+) -->\n.*?<!-- end -->", replace, text, flags=re.S)
    rows = "\n".join(["<!-- hosts -->", *hosts(), "<!-- end -->"])
    return re.sub(r"<!-- hosts -->\n.*?<!-- end -->", lambda _: rows, text, flags=re.S)


def documents() -> list[Path]:
    """Where tables may be: the README and docs/."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def fill(check: bool = False) -> int:
    """Write the documents that are not up to date, or only name them; 1 where some were and nothing was written."""
    old = [path for path in documents() if filled(text := path.read_text(encoding="utf-8")) != text]
    for path in old:
        print(path.relative_to(ROOT))
        if not check:
            path.write_text(filled(path.read_text(encoding="utf-8")), encoding="utf-8")
    return int(check and bool(old))


def add_options(parser: argparse.ArgumentParser) -> None:
    """One option."""
    parser.add_argument("--check", action="store_true", help="only name the documents that are not up to date")


def run(options: argparse.Namespace) -> int:
    """Fill the documents."""
    return fill(options.check)
