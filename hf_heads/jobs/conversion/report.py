"""What a conversion did, in numbers."""

from __future__ import annotations

import warnings
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from hf_heads.attention.spec import HeadsSpec
from hf_heads.core.errors import HeadsWarning
from hf_heads.core.vocabulary import MATCHING


@dataclass(frozen=True)
class BlockReport:
    """What happened to one block.

    Attributes:
        name: the block's name inside the base model.
        kind: self, causal or cross.
        spec: the settings, resolved.
        parameters, parameters_before: of the block, output projection included.
        cache, cache_before: numbers per token in a key-value cache.
        error: relative error of the decomposition in the norm that it minimised; None where it is lossy without one.
        refit_gain: share of the output's squared error that the refit removed on data it was not fitted to, or None.
        divergence, divergence_before: KL from the original's attention maps, nats for each query and head, on
            sequences that the refinement was not fitted to, after it and before; equal where it did not help and was
            left out; None where it was not tried.
    """

    name: str
    kind: str
    spec: HeadsSpec
    parameters: int
    parameters_before: int
    cache: int
    cache_before: int
    error: float | None
    refit_gain: float | None
    divergence: float | None = None
    divergence_before: float | None = None


@dataclass
class Report:
    """What a conversion did, in numbers; `to_dict` gives plain JSON."""

    blocks: list[BlockReport] = field(default_factory=list)
    model_parameters: int = 0
    model_parameters_before: int = 0
    calibration: str = "none"
    seconds: float = 0.0
    drift: dict[str, dict[str, float]] = field(default_factory=dict)
    precision: dict[str, dict[str, float]] = field(default_factory=dict)
    objective: str = "scores"
    inputs: str = "converted"
    compute: str = "float32"
    jobs: list[dict[str, Any]] = field(default_factory=list)
    kept_heads: dict[str, tuple[int, ...]] = field(default_factory=dict)
    main: bool = True  # of several processes, the one that measures and writes

    def warn(self, *, informed: bool) -> None:
        """Say what errors of blocks make doubtful, if data were there to measure them; a line for each thing."""
        said = Counter(block.spec.doubt(block.error) for block in self.blocks if informed and block.error is not None)
        for text, count in said.items():
            if text is not None:
                warnings.warn(f"in {count} of {len(self.blocks)} blocks {text}", HeadsWarning, stacklevel=3)

    def advice(self) -> str | None:
        """What to do before fine-tuning on pairs, where heads that it lives by lost half of their attention."""
        lost = [row["block"] for row in self.jobs if row["job"] == MATCHING and 2 * row["after"] < row["before"]]
        specs = {block.name: block.spec for block in self.blocks if block.name in lost}
        if not specs:
            return None
        able = all(spec.keeps_heads() for spec in specs.values())
        how = f"--keep-heads {MATCHING}" if able else f"--blocks '{','.join(f'!{name}' for name in specs)}'"
        return f"before fine-tuning on pairs, leave the heads that match as they are: {how}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON and the model card."""
        return {
            "blocks": [
                {**{name: value for name, value in vars(block).items() if name != "spec"}, **block.spec.to_config()}
                for block in self.blocks
            ],
            "attention_parameters": sum(block.parameters for block in self.blocks),
            "attention_parameters_before": sum(block.parameters_before for block in self.blocks),
            "model_parameters": self.model_parameters,
            "model_parameters_before": self.model_parameters_before,
            "cache_per_token": sum(block.cache for block in self.blocks),
            "cache_per_token_before": sum(block.cache_before for block in self.blocks),
            "calibration": self.calibration,
            "seconds": round(self.seconds, 1),
            "drift": self.drift,
            "precision": self.precision,
            "objective": self.objective,
            "inputs": self.inputs,
            "compute": self.compute,
            "jobs": self.jobs,
            "advice": self.advice(),
            "kept_heads": {name: list(heads) for name, heads in self.kept_heads.items()},
        }
