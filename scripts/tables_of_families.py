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


def grouped_made(results: Row) -> list[str]:
    """A language model calibrated without data, and what its native output gives."""
    body = [
        [row["label"], f"{row['kl']:.2f}", f"{row['perplexity']:,.1f}", f"{100 * row['agreement']:.0f} %"]
        for row in results["rows"]
    ]
    native = results["native"]
    text = native["text"].replace("\n", " ").strip()
    said = (
        f"What the model wrote begins: {' '.join(results['written'].split()[:16])} ... The last row's native output is "
        f"a plain `{native['model_type']}` of {native['num_attention_heads']} heads and "
        f"{native['num_key_value_heads']} key-value head, {native['parameters'] / 1e6:.1f} million parameters. Loaded "
        "by plain transformers, in a process that cannot import hf-heads, its logits differ by "
        f"{native['difference']:.1e} of {native['largest']:.0f} at most, and the largest is the same in "
        f'{100 * native["agreement"]:.1f} % of places. It writes: "{text}"'
    )
    return [*table(["calibrated on", "KL", "perplexity", "same first choice"], body), "", said]


def rotary_collab(results: Row) -> list[str]:
    """What collab frequency by frequency keeps of scores beside shared keys with queries of their own."""
    exact = results["exact"]
    body = [
        [
            f"{row['cache']}",
            f"{100 * row['cache'] / exact['grouped']:.0f} %",
            f"{100 * row['collab']:.2f} %",
            f"{100 * row['least']:.2f} %",
            f"{100 * row['own']:.2f} %",
            f"{row['collab_parameters'] / 1e3:,.0f}",
            f"{row['own_parameters'] / 1e3:,.0f}",
        ]
        for row in results["rows"]
    ]
    head = [
        "numbers cached for a token's keys",
        "of what there are",
        "lost by collab",
        "at least",
        "by shared keys",
        "thousand parameters, collab",
        "shared keys",
    ]
    return table(head, body)
