"""The table of architectures and methods, from the rows themselves."""

from __future__ import annotations

from hf_heads.attention.hosts.table import REFUSED, architectures
from hf_heads.methods.registry import all_methods
from hf_heads.methods.words import refusals


def hosts() -> list[str]:
    """Markdown: a line for each architecture, a column for each method, and the reasons below."""
    pairs, methods = refusals(), all_methods()
    reasons = list(dict.fromkeys(reason for row in pairs.values() for reason in row.values() if reason))
    lines = [f"| model type | inputs | {' | '.join(methods)} |", "|---|---" + "|:---:" * len(methods) + "|"]
    for model_type, row in pairs.items():
        cells = ("yes" if row[name] is None else f"({1 + reasons.index(str(row[name]))})" for name in methods)
        lines.append(f"| `{model_type}` | {architectures()[model_type].modality} | {' | '.join(cells)} |")
    lines += ["", *(f"({number}) {reason}.  " for number, reason in enumerate(reasons, 1)), ""]
    for reason in dict.fromkeys(REFUSED.values()):
        model_types = ", ".join(f"`{model_type}`" for model_type, why in REFUSED.items() if why == reason)
        lines.append(f"Not {model_types}: {reason}.  ")
    return lines
