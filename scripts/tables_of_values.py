"""Tables of what is shared or narrower: values, and the key and value heads of decoders."""

from __future__ import annotations

from markdown_tables import Row, table


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
