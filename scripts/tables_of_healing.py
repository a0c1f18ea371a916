"""Tables about healing: one shot and healed, seed by seed, and right after a conversion."""

from __future__ import annotations

from markdown_tables import Row, table


def healed(results: Row) -> list[str]:
    """One shot and healed models beside their original, from the comparison that the study kept."""
    models, metric = results["models"], results["metric"]["name"]
    first = models[0]
    body = []
    for model in models:
        base, score = first["attention_parameters"], model["score"]
        speed = model["generation"] or model["latency"]
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
    lengths = list(first["multiply_adds"])  # an image has one
    inputs = f"length {lengths[1]}" if len(lengths) > 1 else "one image"
    head = ["model", "attention parameters, million", "cache", f"multiply-adds, million, {inputs}"]
    timed = f"generating {last['batch']} texts" if first["generation"] else f"{last['batch']} x {last['length']}"
    head += [f"speed, {timed}", "cosine", metric, "difference (95 %)"]
    limit = f"{results['steps']} steps" if "steps" in results else f"at most {results['minutes']:g} minutes"
    least, most = results.get("cpu_seconds", (0, 0))
    seconds = f", {least} to {most} CPU seconds, in {results['precision']}" if most else ""
    where = f"Healed for {limit} each{seconds}, without labels."
    return [*table(head, body), "", where]


def healed_seeds(results: Row) -> list[str]:
    """Cosine, KL and score of what was converted and healed by several seeds."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in results["rows"]:
        found.setdefault((row["task"], row["model"]), []).append(row)
    body = []
    for (task, model), rows in found.items():
        if len(rows) == 1:
            continue
        cells = []
        for name, worst, said in (("cosine", min, ".4f"), ("kl", max, ".4f"), ("difference", min, "+.2f")):
            values = [row[name] for row in rows if name in row]
            cells += [format(sum(values) / len(values), said), format(worst(values), said)] if values else ["", ""]
        body.append([f"{task}, {model} ({len(rows)})", *cells])
    names = ("cosine", "the least", "KL of logits", "the most", "difference of the score", "the least")
    return table(["model (seeds)", *names], body)


def polish(results: Row) -> list[str]:
    """What CPU seconds are worth: more examples, or some seconds of healing."""
    seconds = f"polished {results['polish']:g} s"
    body = []
    for row in results["rows"]:
        way = f"{seconds}, {row['steps']} steps" if row["way"] == "polished" else row["way"]
        name = f"{row['setting']}, {way}"
        body.append([name, f"{row['drop']:+.2f}", f"{row['cosine']:.4f}", f"{row['cpu_seconds']:.0f}"])
    return table(["STS-B dev", "drop of Spearman", "cosine", "CPU s in all"], body)
