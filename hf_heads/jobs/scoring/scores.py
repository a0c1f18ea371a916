"""Scores of heads: what they are of, the order in which heads go, and their file."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from hf_heads.attention.hosts.blocks import find_blocks
from hf_heads.core.errors import HeadsError
from hf_heads.core.vocabulary import RULES
from hf_heads.io.checkpoints.files import write_file
from hf_heads.io.checkpoints.json_files import as_record, read_json
from hf_heads.methods.pruned import PrunedSpec

FORMAT = 1
Head = tuple[str, int]


@dataclass(frozen=True)
class HeadScores:
    """How much every head matters, and the order in which heads go.

    Attributes:
        rule: the name of the rule, see `hf_heads.core.vocabulary.RULES`.
        importance: for every block its heads' scores with all heads in place. Of `gauss-newton` and `ablation` a score
            is a drift of the output: 1 - cosine of pooled hidden states, or KL divergence of predictions in nats.
        order: all heads as (block, place in the block), the first to go first.
        steps: rounds in which the order was made.
        normalize: whether scores are divided by their l2 norm in each block.
        model: fingerprint of the attention weights that were scored.
        data: what they were scored on.
        unit: of the rule gradient, see `hf_heads.core.vocabulary.UNITS`.
        least: how many heads of each block go last.

    Raises:
        HeadsError: a score is not finite.
    """

    rule: str
    importance: Mapping[str, tuple[float, ...]]
    order: tuple[Head, ...]
    steps: int
    normalize: bool
    model: str
    data: str = ""
    unit: str = "example"
    least: int = 0

    def __post_init__(self) -> None:
        if not all(math.isfinite(value) for values in self.importance.values() for value in values):
            raise HeadsError("some scores of heads are not finite numbers: the model's outputs overflow")

    def order_of(self, names: Iterable[str]) -> list[Head]:
        """The order of removal within some blocks.

        Raises:
            HeadsError: a block was not scored.
        """
        wanted = set(names)
        if missing := sorted(wanted - set(self.importance)):
            raise HeadsError(f"the scores say nothing of '{missing[0]}'; they are of {', '.join(self.importance)}")
        return [head for head in self.order if head[0] in wanted]

    def keep(self, share: float) -> dict[str, PrunedSpec]:
        """Settings for `hf_heads.convert` that keep the most important heads.

        Args:
            share: of all scored heads, 0 to 1.

        Raises:
            HeadsError: the share is no share.
        """
        if not 0 <= share <= 1:
            raise HeadsError(f"keep {share:g} is not a share between 0 and 1")
        gone = set(self.order[: len(self.order) - round(share * len(self.order))])
        return {
            name: PrunedSpec(kept=tuple(head for head in range(len(values)) if (name, head) not in gone))
            for name, values in self.importance.items()
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "format": FORMAT,
            "rule": self.rule,
            "about": RULES[self.rule],
            "steps": self.steps,
            "normalize": self.normalize,
            "unit": self.unit,
            "least": self.least,
            "data": self.data,
            "model": self.model,
            "importance": {name: list(values) for name, values in self.importance.items()},
            "order": [list(head) for head in self.order],
        }

    def save(self, path: str | Path) -> None:
        """Write the scores as JSON."""
        write_file(Path(path), json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n")


def load_scores(path: str | Path, model: PreTrainedModel) -> HeadScores:
    """Read scores that `HeadScores.save` wrote.

    Raises:
        HeadsError: the file cannot be read, is something else, or was made for other attention weights than `model`'s.
    """
    entries = read_json(path, "scores")
    if (version := entries.get("format", FORMAT)) != FORMAT:
        raise HeadsError(f"the scores '{path}' have format {version!r}, this hf-heads reads {FORMAT}")
    refusal = f"'{path}' does not hold scores of heads as `hf-heads importance` writes them"
    found = as_record(HeadScores, entries, refusal)
    complete = {(name, head) for name, values in found.importance.items() for head in range(len(values))}
    if set(found.order) != complete or len(found.order) != len(complete):
        raise HeadsError(f"{refusal}: order is not of every head once")
    if found.model != fingerprint(model):
        raise HeadsError(f"the scores '{path}' were made for another model: its attention weights are not these")
    return found


def fingerprint(model: PreTrainedModel) -> str:
    """A hash of a model's attention weights in float32, by which scores know their model."""
    digest = hashlib.sha256()
    for block in find_blocks(model):
        digest.update(block.name.encode())
        for part in (block.module, block.output):
            for name, tensor in sorted(part.state_dict().items()):
                digest.update(name.encode())
                digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
