"""Tables of real models of other families."""

from __future__ import annotations

from markdown_tables import Row, table


def speech(results: Row) -> list[str]:
    """What converted encoders of Whisper understand."""
    body = []
    for row in results["rows"]:
        drift = row["drift"] or {}
        figures = [f"{drift[name]:.3f}" if name in drift else "" for name in ("kl", "agreement")]
        sizes = f"{row['attention_parameters'] / 1e6:.2f}"
        body.append([row["label"], sizes, *figures, f"{row['word_errors']:.1f} %", row["first"]])
    head = ["Whisper tiny.en", "attention parameters, million", "KL", "agreement", "word errors"]
    said = results["said"].rstrip(".")
    return table([*head, f'"{said}" is heard as'], body)
