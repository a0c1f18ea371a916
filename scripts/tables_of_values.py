"""Tables of what is shared or narrower: values, and the key and value heads of decoders."""

from __future__ import annotations

from statistics import fmean

from markdown_tables import Row, table


def kept(results: Row) -> list[str]:
    """What one-shot conversions keep: means over seeds, and the range of the first figure."""
    rows: dict[str, list[Row]] = {}
    for row in results["rows"]:
        rows.setdefault(row["label"], []).append(row)
    body = []
    for label, own in rows.items():
        drops, means, lows = ([row[name] for row in own] for name in ("drop", "cosine", "cosine_low"))
        spread = f" ({min(drops):+.2f} to {max(drops):+.2f})" if len(own) > 1 else ""
        lowest = f" ({min(means):.4f} at least)" if len(own) > 1 else ""
        cells = [f"{fmean(drops):+.2f}{spread}", f"{fmean(means):.4f}{lowest}", f"{fmean(lows):.4f}"]
        parameters = f"{own[0]['attention_parameters'] / 1e6:.2f}"
        body.append([label, str(len(own)), parameters, *cells, f"{fmean(row['cpu_seconds'] for row in own):.0f}"])
    head = ["seeds", "attention parameters, million", "drop of Spearman", "cosine", "its 5th percentile", "CPU s"]
    return table(["conversion", *head], body)


def values(results: Row) -> list[str]:
    """Narrower values against shared ones of about the same cache."""
    rows = {(row["label"], row["groups"]): row for row in results["rows"]}
    body = []
    for groups in dict.fromkeys(row["groups"] for row in results["rows"]):
        cells = [f"{groups} of 12 heads' width"]
        for label in ("narrower", "shared"):
            row = rows[label, groups]
            cells += [f"{row['cosine']:.4f}", f"{row['cache']:.0f}"]
        body.append(cells)
    ways = ("`low-rank --value-rank`", "`mhe --groups-qk 12 --groups-v`")
    return table(["values of a token", *(part for way in ways for part in (f"cosine, {way}", "cache"))], body)


def grouped(results: Row) -> list[str]:
    """Fewer key-value heads of a language model."""
    original, *rows = results["rows"]
    first = ["original", "", "0", "", f"{original['perplexity']:.1f}", f"{original['cache']:,}", "9, 3"]
    body = [first]
    for row in rows:
        healed = f"{row['healed']['kl']:.2f}" if "healed" in row else ""
        heads = f"{row['native_heads']}, {row['native_kv_heads']}"
        named = [row["label"], row["side"], f"{row['kl']:.2f}", healed]
        body.append([*named, f"{row['perplexity']:,.1f}", f"{row['cache']:,}", heads])
    head = ["3 key-value heads to 1 by", "of", "KL", f"KL after {results['steps']} steps", "perplexity", "cache"]
    return table([*head, "heads, key-value heads of the native model"], body)


def merge(results: Row) -> list[str]:
    """What merged heads have in common, and what it costs, by model."""
    names = {"minilm": "MiniLM, STS-B", "marian": "Marian, Multi30k", "vit": "ViT, CIFAR-10"}
    shared = list(dict.fromkeys(row["shared"] for row in results["rows"]))
    found = {(row["model"], row["shared"]): row for row in results["rows"]}
    body = []
    for model, said in names.items():
        cells = []
        for one in shared:
            row = found[model, one]
            cells.append(f"{row['cosine']:.4f}" + (f" / {row['kl']:.4f}" if row["kl"] is not None else ""))
        apart = found[model, shared[0]]["apart"]
        body.append([said, *cells, f"{min(apart):.2f} to {max(apart):.2f}"])
    return table(["cosine / KL; in common:", *shared, "maps apart, by block"], body)
