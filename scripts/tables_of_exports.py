"""Tables of the ways out."""

from __future__ import annotations

from markdown_tables import Row, grid, table


def export_native(results: Row) -> list[str]:
    """What is exact, host by host, and what the nearest loses."""

    def cell(row: Row) -> str:
        if row.get("refused"):
            return "refused"
        size = row["parameters"] / row["original"]
        return f"{row['difference']:.1e} of {row['largest']:.1f}" + f", {size:.2f} x the size" * (size < 1)

    lines = grid(results["native"], "method", ["host"], "largest difference of outputs, of how large", "{}", cell)
    found = results["nearest"]
    said = (
        f"`--nearest` on MiniLM collab 96: {100 * found['least_lost']:.1f} to {100 * found['most_lost']:.1f} % of the "
        f"scores' norm lost by block, cosine to the collab model's embeddings {found['cosine']:.5f} in the mean and "
        f"{found['lowest']:.4f} at the lowest of {found['sentences']:,} STS-B dev sentences; Spearman x 100 "
        f"{found['native']:.2f}, collab {found['collab']:.2f}, original {found['original']:.2f}."
    )
    return [*lines, "", said]


def export_onnx(results: Row) -> list[str]:
    """ONNX beside torch."""
    body = (
        [
            f"{row['method']}, {row['batch']} x {row['length']}",
            f"{row['difference']:.1e}",
            f"{row['bytes'] / 1e6:.1f}",
            f"{row['torch_bytes'] / 1e6:.1f}",
            f"{row['ratio']:.2f}",
        ]
        for row in results["onnx"]
    )
    return table(
        ["MiniLM", "largest difference", "MB of model.onnx", "MB of safetensors", "speed, torch in sdpa = 1"], body
    )


def export_int8(results: Row) -> list[str]:
    """Weights in 8 bits on real text."""
    body = (
        [
            row["method"],
            f"{row['bytes'] / 1e6:.1f}",
            f"{row['int8_bytes'] / 1e6:.1f}",
            f"{row['cosine']:.4f}",
            f"{row['lowest']:.4f}",
            f"{row['float32']:.2f}",
            f"{row['int8']:.2f}",
        ]
        for row in results["int8"]
    )
    first = results["int8"][0]
    head = ["MiniLM", "MB", "MB, int8", "cosine to float32, mean", "lowest", "Spearman x 100", "int8"]
    said = (
        f"Embeddings of {first['sentences']:,} STS-B dev sentences; the original's Spearman is {first['original']:.2f}."
    )
    return [*table(head, body), "", said]
