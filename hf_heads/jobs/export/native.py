"""A converted checkpoint as one of its host's own architecture, which needs no code of ours: exact, or refused."""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from hf_heads.attention.hosts.blocks import find_blocks
from hf_heads.attention.spec import HeadsSpec
from hf_heads.core.batches import Progress
from hf_heads.core.errors import HeadsError
from hf_heads.core.vocabulary import NONE
from hf_heads.io.checkpoints.exported_card import MadeBy, native_card
from hf_heads.io.checkpoints.files import check_apart, check_output, finished_folder, write_file
from hf_heads.io.checkpoints.loading import find_device, load_source
from hf_heads.io.checkpoints.sources import Source
from hf_heads.io.checkpoints.tensors import tensor_names
from hf_heads.io.checkpoints.weights import Weights
from hf_heads.io.checkpoints.writing import SHARD_BYTES, copy_companions
from hf_heads.io.data.calibration import calibration_data, probes
from hf_heads.io.data.choice import CalibrationChoice
from hf_heads.jobs.conversion.convert import convert
from hf_heads.jobs.evaluation.drift import measure_drift
from hf_heads.jobs.export.building import Wider, block_size, native_of
from hf_heads.methods.settings.low_rank import LowRankSpec
from hf_heads.modeling.blocks import block_shape, block_specs

_SAME = 0.9999  # a cosine above this is what rounding leaves, in half precision too


@dataclass
class NativeReport:
    """What became of a checkpoint.

    Attributes:
        model_type: of what was written.
        sizes: of its blocks, (heads, width of a head) by name.
        parameters, parameters_before: of the model.
        lost: by block, the share of its scores that the nearest heads lose on the data; none where all is exact.
        calibration: what the nearest heads are the nearest on.
        drift: how far its outputs are from those of the converted model, on random inputs.
    """

    model_type: str
    sizes: dict[str, tuple[int, int]]
    parameters: int
    parameters_before: int
    lost: dict[str, float] = field(default_factory=dict)
    calibration: str = "none"
    drift: dict[str, float] = field(default_factory=dict)

    @property
    def exact(self) -> bool:
        """Whether nothing is lost but rounding."""
        return not self.lost

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON and the model card."""
        return {**dataclasses.asdict(self), "exact": self.exact}


def export_native(
    source: Source,
    output: Path,
    *,
    nearest: CalibrationChoice | None = None,
    overwrite: bool = False,
    device: str = "auto",
    shard_bytes: int = SHARD_BYTES,
    made_by: MadeBy | None = None,
    progress: Progress | None = None,
) -> NativeReport:
    """Write a converted checkpoint as one of its host's own architecture.

    Args:
        source: the converted checkpoint.
        output: the folder to make; it appears when it is complete.
        nearest: where heads of the host's width cannot hold a block's scores, take the nearest that can, on this data.
        overwrite: replace `output` if it exists.
        device: where to compute.
        shard_bytes: of a file of weights, at most.
        made_by: for the model card, where a conversion ends in this.
        progress: called with (what, done, total).

    Raises:
        HeadsError: it is not converted, or a block is no attention of the host; see also `load_source`.
    """
    place = check_output(output, overwrite)
    check_apart(output, source.folder, "source")
    model = load_source(source, find_device(device))
    if not block_specs(model):
        raise HeadsError(f"'{source.given}' is not converted: plain transformers loads it as it is")
    dtype = next(iter(tensor_names(model, Weights(source.folder)).dtypes.values()), torch.float32)
    made: Any
    made, lost, calibration = _native(source, model, nearest, progress)
    made.to(dtype)
    report = NativeReport(
        made.config.model_type,
        {block.name: block_size(block) for block in find_blocks(made)},
        count(made),
        count(model),
        lost,
        calibration,
        measure_drift(copy.deepcopy(made).float(), model, probes(source, model)).to_dict(),
    )
    if report.exact and not report.drift["cosine"] > _SAME:
        raise HeadsError(
            f"the outputs of '{source.given}' as plain {report.model_type} are not its own (cosine "
            f"{report.drift['cosine']:.6f}): nothing was written; --portable loses nothing"
        )
    if progress:
        progress("writing", 0, 1)
    with finished_folder(place) as folder:
        copy_companions(source.folder, folder)
        made.save_pretrained(folder, max_shard_size=shard_bytes)
        write_file(folder / "README.md", native_card(source, report.to_dict(), made_by))
    return report


def _native(
    source: Source, model: PreTrainedModel, nearest: CalibrationChoice | None, progress: Progress | None
) -> tuple[PreTrainedModel, dict[str, float], str]:
    """The host's own model, what was lost of the scores of blocks, and on what data."""
    try:
        return native_of(model), {}, NONE
    except Wider as refused:
        if nearest is None:
            raise
        data = None if nearest.source == NONE else calibration_data(source, model, nearest)
        heads = {block.name: block_shape(block).heads for block in find_blocks(model)}
        wide: dict[str, HeadsSpec] = {name: LowRankSpec(rank=heads[name] * refused.width) for name in refused.blocks}
        batches = NONE if data is None else data.batches
        narrow, found = convert(model, wide, calibration=batches, seed=nearest.seed, progress=progress)
        lost = {block.name: block.error for block in found.blocks if block.error is not None}
        return native_of(narrow), lost, "the weights alone" if data is None else data.description


def count(model: PreTrainedModel) -> int:
    """Parameters of a model."""
    return sum(one.numel() for one in model.parameters())
