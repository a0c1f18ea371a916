"""What a conversion is asked to do: the one record that recipes, the command line and Python build."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from hf_heads.attention.spec import HeadsSpec, by_pattern
from hf_heads.core.errors import HeadsError
from hf_heads.core.numbers import byte_count
from hf_heads.core.vocabulary import ACTIVATIONS, COMPUTE, INPUTS, OBJECTIVES
from hf_heads.io.checkpoints.sources import Source, resolve_source, short_name
from hf_heads.io.data.choice import CalibrationChoice

DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class ConversionRequest:
    """A conversion from checkpoint to checkpoint, checked as far as it can be before anything is read.

    Attributes:
        source: a hub id, a folder or `package:NAME`, or what `resolve_source` made of it.
        spec: settings for all blocks, or by block name pattern; the first match counts.
        revision: commit, branch or tag of a source on the hub.
        base: the hub id that the checkpoint goes by, where `source` does not tell.
        calibration: what to calibrate on.
        blocks: which blocks to convert, see `hf_heads.convert`; None takes all.
        refit: refit output projections.
        keep_heads: heads to leave exact, `BLOCK:HEAD` separated by commas, `none`, or None for what `hf_heads.convert`
            keeps by itself.
        objective: what errors of scores are weighed by, one of `OBJECTIVES`.
        inputs: what blocks are converted on, one of `INPUTS`.
        cache: a folder for what can be used again, see `hf_heads.convert`; None keeps nothing.
        activations_on: where activations wait, one of `ACTIVATIONS`.
        compute: what the forward passes over the data are computed in, one of `COMPUTE`.
        device: where to compute: auto, cpu, cuda, cuda:1, ...
        dtype: of the weights written, one of `DTYPES`; as in the source when None.
        max_shard_size: of a file of weights, as `2GB` or `500MB` or in bytes; only a tensor that is larger by itself
            exceeds it.
        text: of the recipe that asks for this, for the model card.

    Raises:
        HeadsError: a value of the wrong kind; the message names the attribute and what it may be.
    """

    source: str | Source
    spec: HeadsSpec | dict[str, HeadsSpec]
    revision: str | None = None
    base: str | None = None
    calibration: CalibrationChoice = field(default_factory=CalibrationChoice)
    blocks: str | None = None
    refit: bool = True
    keep_heads: str | None = None
    objective: str = "attention"
    inputs: str = "converted"
    cache: str | Path | None = None
    activations_on: str = "auto"
    compute: str = "float32"
    device: str = "auto"
    dtype: str | None = None
    max_shard_size: str | int = "5GB"
    text: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.source, str | Source) or not self.source:
            raise HeadsError(f"source is {self.source!r}, expected a hub id, a folder or package:NAME")
        by_pattern(self.spec)
        if not isinstance(self.calibration, CalibrationChoice):
            raise HeadsError(f"calibration is {self.calibration!r}, expected a CalibrationChoice")
        if not isinstance(self.refit, bool):
            raise HeadsError(f"refit is {self.refit!r}, expected True or False")
        if not isinstance(self.device, str):
            raise HeadsError(f"device is {self.device!r}, expected a name: auto, cpu, cuda, cuda:1, ...")
        if self.objective not in OBJECTIVES:
            raise HeadsError(f"objective is {self.objective!r}, expected one of {', '.join(OBJECTIVES)}")
        if self.inputs not in INPUTS:
            raise HeadsError(f"inputs is {self.inputs!r}, expected one of {', '.join(INPUTS)}")
        if not isinstance(self.cache, str | Path | None):
            raise HeadsError(f"cache is {self.cache!r}, expected a folder")
        if self.activations_on not in ACTIVATIONS:
            raise HeadsError(f"activations_on is {self.activations_on!r}, expected one of {', '.join(ACTIVATIONS)}")
        if self.compute not in COMPUTE:
            raise HeadsError(f"compute is {self.compute!r}, expected one of {', '.join(COMPUTE)}")
        if self.dtype not in (None, *DTYPES):
            raise HeadsError(f"dtype is {self.dtype!r}, expected one of {', '.join(DTYPES)}, or None for the source's")
        byte_count("max_shard_size", self.max_shard_size)
        for name in ("revision", "base", "blocks", "keep_heads", "text"):
            if not isinstance(getattr(self, name), str | None):
                raise HeadsError(f"{name} is {getattr(self, name)!r}, expected text")

    @property
    def shard_bytes(self) -> int:
        """`max_shard_size` as a number."""
        return byte_count("max_shard_size", self.max_shard_size)

    @property
    def specs(self) -> dict[str, HeadsSpec]:
        """The settings by block name pattern."""
        return by_pattern(self.spec)

    def find_source(self) -> Source:
        """The checkpoint to convert.

        Raises:
            HeadsError: see `resolve_source`.
        """
        found = resolve_source(self.source, self.revision) if isinstance(self.source, str) else self.source
        return found if self.base is None else replace(found, base_model=self.base)


def default_output(request: ConversionRequest, *, native: bool = False) -> Path:
    """A folder name that says what it holds, such as `bert-base-uncased-collab-256`, or `llama-mhe-groups-2-native`."""
    spec = list(request.specs.values())[-1]
    parts = [request.source.name if isinstance(request.source, Source) else short_name(request.source), spec.method]
    for item in fields(spec):
        value = getattr(spec, item.name)
        if not item.metadata["command"] or value == item.default:
            continue
        plain = item.name == "rank" or isinstance(value, str)
        text = Path(value).stem if item.name == "scores" else str(value)
        parts.append(text if plain else item.name if value is True else f"{item.name}-{text}")
    return Path("-".join([*parts, "native"] if native else parts))
