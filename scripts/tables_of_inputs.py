"""Tables about what is calibrated on, and when: lengths, pairs, heads with a job, fine-tuning before and after."""

from __future__ import annotations

from markdown_tables import Row, table


def lengths(results: Row) -> list[str]:
    """Cosine to the original by length and on pairs, for each calibration and method."""
    named = {
        "texts": "1,024 of them",
        "healed": "1,024 of them, healed",
        "enough": "texts of many lengths",
        "made": "made data (default)",
        "pairs": "MRPC pairs",
    }
    inputs = ["16", "64", "128", "256", "512", "stsb", "mrpc", "rte"]
    rows = results["rows"]
    refined = {(row["calibration"], row["method"]) for row in rows if row["objective"] == "attention"}
    said = {
        id(row): ", `--objective scores`" * ((row["calibration"], row["method"]) in refined)
        for row in rows
        if row["objective"] == "scores"
    }
    head = [*(f"{length} tokens" for length in inputs[:5]), "STS-B", "MRPC pairs", "RTE pairs"]
    body = (
        [
            f"{row['method']}, {named[row['calibration']]}{said.get(id(row), '')}{_times(row)}",
            *(f"{row[name]:.3f}" for name in inputs),
        ]
        for row in rows
    )
    return table(["cosine of pooled embeddings", *head], body)


def _times(row: Row) -> str:
    """How many times the passages of other rows were measured on."""
    return f", {row['passages']} times the passages" if "passages" in row else ""


def attention_error(results: Row) -> list[str]:
    """What two matching heads keep, and the drift, by calibration and objective."""
    named = {"sentences": "512 STS-B sentences", "pairs": "512 MRPC pairs", "both": "both"}
    one, other = results["original"]
    body = (
        [
            f"{row['method']}, {named[row['data']]}, `--objective {row['objective']}`",
            *(f"{row[name]:.3f}" for name in ("matching_1", "matching_2")),
            *(f"{row[name]:.4f}" for name in ("cosine_stsb", "cosine_mrpc")),
            f"{row['cpu_seconds']:.0f}",
        ]
        for row in results["rows"]
    )
    names = f"block 1, head 1 (original {one:.3f})", f"block 2, head 9 (original {other:.3f})"
    return table(["calibrated on", *names, "cosine, STS-B", "cosine, MRPC pairs", "CPU s"], body)


def joined(results: Row) -> list[str]:
    """Drift of a Marian by how many sentences are joined."""
    named = {"joined": "joined sentences (default)", "one by one": "one by one (`--no-pack`)", "made": "made data"}
    body = (
        [f"{row['method']}, {named[row['calibration']]}"]
        + [f"{row[f'kl_{count}']:.4f} / {100 * row[f'agreement_{count}']:.1f} %" for count in (1, 2, 3)]
        for row in results["rows"]
    )
    return table(["KL in nats / same word", "one sentence", "two joined", "three joined"], body)


def resolutions(results: Row) -> list[str]:
    """Drift of a ViT by the size of its images."""
    sizes = results["sizes"]
    body = (
        [row["method"], *(f"{row[f'kl_{size}']:.4f} / {100 * row[f'agreement_{size}']:.1f} %" for size in sizes)]
        for row in results["rows"]
    )
    return table(["KL in nats / same class", *(f"{size} x {size} pixels" for size in sizes)], body)


def roads(results: Row) -> list[str]:
    """Task scores by method and road, and what changed from the original of the same seed and machine: means."""
    found: dict[tuple[str, str, str], dict[int, Row]] = {}
    for row in results["rows"]:
        found.setdefault((row["task"], row["method"], row["road"]), {})[row["seed"]] = row
    ways = ("after", "after, one epoch more", "on the way", "before", "before its head")
    tasks, methods = (list(dict.fromkeys(row[name] for row in results["rows"])) for name in ("task", "method"))
    originals = {task: found[task, "original", "fine-tuned"] for task in tasks}
    lines, changes = [], {}
    for task in tasks:
        lines.append([f"**{task}**, original", _mean([row["score"] for row in originals[task].values()], ".2f")])
        for method in methods:
            cells = []
            for way in ways:
                rows = found.get((task, method, way), {})
                paired = [row["score"] - row["fine_tuned"] for row in rows.values()]
                changes[task, method, way] = paired
                cells.append(_mean(paired, "+.2f") if paired else "")
            if method == "original":
                lines[-1] += cells
            elif any(cells):
                lines.append([method, "", *cells])
    texts = [task for task in tasks if task != "cifar10"]
    for method in methods:
        each = {way: [changes[task, method, way] for task in texts] for way in ways}
        means = [sum(sum(one) / len(one) for one in each[way]) / len(texts) if all(each[way]) else None for way in ways]
        if any(mean is not None for mean in means):
            lines.append(
                [f"{method}, mean of {', '.join(texts)}", ""]
                + [f"{mean:+.2f}" if mean is not None else "" for mean in means]
            )
    head = [
        "score, and what changes (seeds)",
        "fine-tuned",
        "then converted",
        "one more epoch",
        "converted on the way",
        "before",
        "before it had its head",
    ]
    return table(head, [[*cells, *[""] * (len(head) - len(cells))] for cells in lines])


def domains(results: Row) -> list[str]:
    """Mean cosine and its 5th percentile on texts of each kind, by what was calibrated on: means over seeds."""
    kinds = list(results["rows"][0]["scores"])
    found: dict[tuple[str, int], list[Row]] = {}
    for row in results["rows"]:
        found.setdefault((row["kind"], row["samples"]), []).append(row)
    body = []
    for (kind, samples), rows in found.items():
        cells = []
        for measured in kinds:
            each = [row["scores"][measured] for row in rows]
            mean, low = (sum(one[name] for one in each) / len(each) for name in ("cosine", "low"))
            cells.append(f"{mean:.4f} ({min(one['cosine'] for one in each):.4f}) / {low:.3f}")
        seconds = sum(row["cpu_seconds"] for row in rows) / len(rows)
        body.append([f"{samples:,} {kind} ({len(rows)})", *cells, f"{seconds:.0f}"])
    head = ["calibrated on (seeds)", *kinds, "CPU s"]
    return table(head, body)


def finetune_rates(results: Row) -> list[str]:
    """Accuracy of the original and of a model that was converted first, by rate and way of training: means of seeds."""
    said = {"plain": "a plain Trainer", "groups": "`parameter_groups`", "frozen": "`freeze_factors`"}
    rates = sorted({row["rate"] for row in results["rows"]})
    found: dict[str, dict[float, list[float]]] = {}
    for row in results["rows"]:
        way = "" if row["model"] == "original" else f", {said[row['way']]}"
        name = row["model"] if row["model"] == "original" else f"collab {row['model']}"
        found.setdefault(name + way, {}).setdefault(row["rate"], []).append(row["accuracy"])
    body = (
        [name, *(_mean(each[rate], ".2f") if rate in each else "" for rate in rates)] for name, each in found.items()
    )
    return table(["accuracy (seeds)", *(f"{rate:g}" for rate in rates)], body)


def _mean(numbers: list[float], form: str) -> str:
    """With how many there are."""
    return f"{sum(numbers) / len(numbers):{form}} ({len(numbers)})"


def memory(results: Row) -> list[str]:
    """Peak memory of converting a large checkpoint."""
    same = {True: "the same bytes", False: "other bytes"}
    body = (
        [
            f"{row['way']}: a checkpoint of {row['bytes'] / 1e9:.1f} GB, {row['layers']} layers",
            f"{row['peak_mb'] / 1000:.2f} GB",
            f"{row['cpu_seconds']:.0f}",
            same[row["identical"]],
        ]
        for row in results["rows"]
    )
    lines = table(["", "peak memory", "CPU seconds", "a small one in files and in memory"], body)
    activations = [
        [f"`--activations-on {row['where']}`", f"{row['peak_mb'] / 1000:.2f} GB", f"{row['cpu_seconds']:.0f}"]
        for row in results["activations"]
    ]
    head = f"2,048 texts, three layers of width 512: {same[results['same']]}"
    return [*lines, "", *table([head, "peak memory", "CPU seconds"], activations)]


def scaling(results: Row) -> list[str]:
    """How conversions grow with each size."""
    base = ", ".join(f"{name} {value}" for name, value in results["base"].items())
    body = (
        [
            f"{row['varied']} {', '.join(map(str, row['values']))}; `{row['objective']}`",
            ", ".join(f"{size['seconds']:.0f}" for size in row["sizes"]),
            f"{row['seconds_exponent']:.2f}",
            ", ".join(f"{size['forward_seconds']:.1f}" for size in row["sizes"]),
            ", ".join(f"{size['peak_mb'] / 1000:.2f}" for size in row["sizes"]),
        ]
        for row in results["rows"]
    )
    columns = [f"collab, from {base}", "CPU seconds", "exponent", "of one forward pass", "peak GB"]
    predicted = (
        [
            f"{model['name']}: layers {model['layers']}, width {model['width']}, rank {model['rank']}",
            *(_hours(found["seconds"]) for found in model["processes"].values()),
            f"{model['processes']['1']['peak_mb'] / 1000:.0f}",
        ]
        for model in results["predicted"]["models"]
    )
    processes = [f"{count} process{'es' * (count != '1')}" for count in results["predicted"]["models"][0]["processes"]]
    head = ["predicted, one thread each", *processes, "GB in memory"]
    errors = results["predicted"]["left_out"]
    seconds, peak = ([100 * one[name] for one in errors] for name in ("seconds", "peak_mb"))
    said = (
        f"Each measured size predicted from the others: {min(seconds):+.0f} to {max(seconds):+.0f} % in time, "
        f"{min(peak):+.0f} to {max(peak):+.0f} % in memory."
    )
    return [*table(columns, body), "", *table(head, predicted), "", said]


def _hours(seconds: float) -> str:
    """Seconds, minutes or hours, in two digits or three."""
    for size, name in ((3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.{0 if seconds >= 10 * size else 1}f} {name}"
    return f"{seconds:.0f} s"


def recommend(results: Row) -> list[str]:
    """What each recommended conversion, and its frontier, promised and then lost on other data."""
    body = (
        [
            f"{row['model']}, {row['conversion']}" + ", **recommended**" * bool(row["recommended"] and "gain" in row),
            *(f"{row[name]:.2f}" if name in row else "" for name in ("gain", "parameters", "cache", "speed")),
            *(f"{row[name]:.4f}" if name in row else "" for name in ("promised", "measured")),
            f"{row['cpu_seconds']:.0f}",
        ]
        for row in results["rows"]
    )
    head = ["gain", "parameters", "cache", "speed", "lost: promised", "measured on other data", "CPU s of recommend"]
    return table([f"for `--goal {results['goal']} --max-drop {results['max_drop']:g}`", *head], body)


def precision(results: Row) -> list[str]:
    """What lower precision costs, with and without damping."""
    said = {True: "", False: ", not damped"}
    body = (
        [
            f"{row['label']}{said[row.get('damped', True)]}",
            *(f"{1e4 * row[name]:.1f}" for name in ("bfloat16", "int8")),
            f"{row['cosine']:.4f}",
            f"{row['drop']:+.2f}",
            f"{row['cpu_seconds']:.0f}" if "cpu_seconds" in row else "",
        ]
        for row in results["rows"]
    )
    head = ["bfloat16", "int8 weights", "cosine to the original", "drop of Spearman", "CPU s"]
    return table(["1e-4 of its own cosine lost", *head], body)


def attention_rank(results: Row) -> list[str]:
    """Dimensions of queries and keys, alone and joined, and the rank of attention maps."""
    share, width, number = f"{100 * results['share']:.0f} %", results["width"], results["number"]
    head = [
        f"directions that hold {share}: layer",
        f"of a head alone, of {results['head_dim']}",
        f"{number} heads, each alone, of {width}",
        f"{number} heads together, of {width}",
        "of an attention map, % of its length",
    ]
    body = (
        [str(place), f"{row['head']:.1f}", f"{row['heads']:.0f}", str(row["layer"]), f"{row['maps']:.1f}"]
        for place, row in enumerate(results["rows"])
    )
    return table(head, body)
