"""Tables of the papers' experiments, over seeds where there are several."""

from __future__ import annotations

from markdown_tables import Row, grid, table


def spread(found: Row, digits: int = 1, signed: bool = False) -> str:
    """A mean over seeds and its interval."""
    form = f"{{:{'+' * signed}.{digits}f}}"
    if found["low"] is None:
        return form.format(found["mean"])
    return f"{form.format(found['mean'])} ({form.format(found['low'])} to {form.format(found['high'])})"


def told(found: Row, digits: int = 1) -> str:
    """The mean and its interval; of fewer than three seeds, whose intervals say nothing, what each gave."""
    return spread(found, digits) if len(found["values"]) > 2 else each(found, digits)


def within(found: Row, digits: int) -> str:
    """A mean over seeds, plus or minus half its interval."""
    half = "" if found["high"] is None else f" ± {found['high'] - found['mean']:.{digits}f}"
    return f"{found['mean']:.{digits}f}{half}"


def each(found: Row, digits: int) -> str:
    """What every seed gave."""
    return ", ".join(f"{value:.{digits}f}" for value in found["values"])


def prune_curve(results: Row) -> list[str]:
    """Accuracy by the share of heads removed; a star where the loss is more than chance."""
    corner = f"accuracy, all heads {results['base']:.1f}; removed:"
    rows = [{**row, "percent": round(100 * row["removed"])} for row in results["rows"]]
    lines = grid(
        rows, "label", ["percent"], corner, "{} %", lambda row: f"{row['accuracy']:.1f}" + "\\*" * (row["high"] < 0)
    )
    return [*lines, "", f"\\* below all heads by more than chance (95 %, paired over {results['examples']} sentences)."]


def head_dynamics(results: Row) -> list[str]:
    """Accuracy by the share masked, at every look."""
    shares = list(results["rows"][0]["figures"])
    head = [f"step, of {results['steps']}", "r of importance with the end's"]
    head += [f"{100 * float(share):.0f} % masked" for share in shares]
    body = (
        [
            str(row["step"]),
            within(row["pearson"], 2),
            *(within(row["figures"][share], 1) for share in shares),
        ]
        for row in results["rows"]
    )
    seeds = len(results["seeds"])
    return [
        *table(head, body),
        "",
        f"Means of {seeds} seeds ± half their intervals of 95 %." if seeds > 1 else "One seed.",
    ]


def head_correlation(results: Row) -> list[str]:
    """How alike heads matter in two domains."""
    body = (
        [row["what"], f"{row['pearson']:.2f}", f"{row['spearman']:.2f}", f"{row['p']:.4f}", str(row["heads"])]
        for row in results["rows"]
    )
    return table(["MRPC and pairs of STS-B", "Pearson", "Spearman", "p", "heads"], body)


def nmt_scratch(results: Row) -> list[str]:
    """BLEU and loss by the width of queries and keys."""
    base, *rows = results["rows"]
    whole = [f"{base['kind']}, {base['width']}", f"{base['parameters']:,}"]
    body = [[*whole, each(base["bleu"], 1), "", f"{base['loss']['mean']:.3f}", ""]]
    for row in rows:
        cells = [f"{row['kind']}, {row['width']}", f"{row['parameters']:,}", each(row["bleu"], 1)]
        cells += [spread(row["bleu_change"], 1, True), f"{row['loss']['mean']:.3f}"]
        body.append([*cells, spread(row["loss_change"], 3, True)])
    head = ["kind, width of queries and of keys", "parameters", "BLEU of each seed", "mean change"]
    lines = table([*head, "loss of a token", "mean change"], body)
    for row in results["shared_less_separate"]:
        change = f"BLEU {spread(row['bleu'], 1, True)}, loss {spread(row['loss'], 3, True)}"
        lines += ["", f"Collab less concatenated, both at {row['width']}: {change}."]
    about = f"{results['train']:,} sentences to learn, {results['translated']} translated; intervals over seeds, 95 %."
    return [*lines, "", about]


def glue(results: Row) -> list[str]:
    """Metrics of every task by rank."""
    body = []
    for row in results["rows"]:
        first, *others = (name for name in row["metrics"] if name != "shot")
        shot = row["metrics"].get("shot")
        lost = "" if row["label"].startswith("original") else told(row["lost"])
        also = ", ".join(f"{name} {row['metrics'][name]['mean']:.1f}" for name in others)
        cells = [f"{row['task']}, {row['label']}", first, told(row["metrics"][first]), also]
        body.append([*cells, told(shot) if shot else "", lost])
    head = ["task, and how it was converted", "metric", "each seed", "also, mean", "before the second tuning", "lost"]
    return table(head, body)


def lra(results: Row) -> list[str]:
    """Accuracy of every attention by task."""
    head = "{}, " + ("each seed" if len(results["seeds"]) < 3 else "over seeds")
    rows = [
        {**row, "task": {"listops": "ListOps", "text": "text"}.get(row["task"], row["task"])} for row in results["rows"]
    ]
    lines = grid(rows, "variant", ["task"], "accuracy", head, lambda row: told(row["accuracy"]))
    guesses = ", ".join(f"by {name} {value:.1f}" for name, value in results["guesses"].items())
    return [*lines, "", f"Guesses at ListOps: {guesses}."]


def lm(results: Row) -> list[str]:
    """Perplexity of a word."""
    names = list(results["rows"][0]["perplexity"])
    body = []
    for row in results["rows"]:
        cells = [row["variant"], f"{row['attention']:,}"]
        for name in names:
            ratio = told(row["ratio"][name], 3) if "ratio" in row else ""
            cells += [told(row["perplexity"][name]), ratio]
        body.append(cells)
    head = ["attention", "its parameters"]
    for name in names:
        head += [f"perplexity of a word, {name}", "by that of softmax h"]
    return table(head, body)


def mlm_pretrain(results: Row) -> list[str]:
    """Perplexity of a hidden token, and how much of multi-head attention's is kept."""
    body = (
        [row["variant"], f"{row['attention']:,}", told(row["perplexity"], 2), f"{row['retained']:.1f} %"]
        for row in results["rows"]
    )
    return table(["attention", "its parameters", "perplexity of a hidden token, each seed", "retained"], body)


def squad(results: Row) -> list[str]:
    """Answers of every model."""
    body = ([row["variant"], told(row["exact"]), told(row["f1"])] for row in results["rows"])
    train, dev = results["questions"]
    about = f"{train:,} questions to learn, {dev:,} to measure on, {results['epochs']} epochs at {results['rate']:g}."
    return [*table(["model", "exact, %, each seed", "F1, each seed"], body), "", about]


def imagenet_scratch(results: Row) -> list[str]:
    """Accuracy by the width of queries and keys."""
    body = (
        [f"{row['kind']}, {row['width']}", f"{row['parameters']:,}", told(row["accuracy"])] for row in results["rows"]
    )
    lines = table(["kind, width of queries and of keys", "parameters", "accuracy, each seed"], body)
    return [*lines, "", f"{results['train']:,} images to learn, {results['dev']:,} to measure on."]
