"""A conversion and some seconds of healing in one step: nothing is written before both are done."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from hf_heads.core.batches import Progress
from hf_heads.core.errors import HeadsError
from hf_heads.core.vocabulary import NONE
from hf_heads.io.checkpoints.files import check_apart, check_output, finished_folder
from hf_heads.io.checkpoints.hidden import beside
from hf_heads.io.checkpoints.loading import find_device, load_source
from hf_heads.io.checkpoints.sources import resolve_source
from hf_heads.jobs.conversion.checkpoint import convert_checkpoint
from hf_heads.jobs.conversion.report import Report
from hf_heads.jobs.conversion.request import ConversionRequest
from hf_heads.jobs.distillation.checkpoint import Common, Healed, OnlyWorse, distill_checkpoint
from hf_heads.jobs.distillation.settings import DistillSettings, Precision
from hf_heads.jobs.team import launched

_EVALUATIONS = 5  # of a run so short that ten would be a good part of it
_ROUNDS = 1_000_000  # over the data, which are never done: the time is over before


@dataclass(frozen=True)
class Polished:
    """What a conversion did, and what became of it.

    Attributes:
        report: of the conversion.
        healed: what healing did; None where it found nothing better, so that what was written is the conversion.
    """

    report: Report
    healed: Healed | None


def convert_polished(
    request: ConversionRequest,
    output: Path,
    seconds: float,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Polished:
    """Convert a checkpoint, and heal it for some seconds, on the data that it was calibrated on, without labels.

    It is `convert_checkpoint` and then `distill_checkpoint`, both into a hidden folder beside the output. Where healing
    finds nothing better than the conversion, that is what is written. The precision of training is `request.compute`.

    Args:
        request: what to convert, and how.
        output: the folder to make; it appears when it is complete.
        seconds: of training, evaluations included.
        overwrite: replace `output` if it exists.
        progress: called with (what, done, total).

    Raises:
        HeadsError: there is no data, are several processes or a device that healing does not choose, all before
            anything is done; see also `convert_checkpoint` and `distill_checkpoint`.
    """
    place = check_output(output, overwrite)
    source = request.find_source()
    check_apart(output, source.folder, "source")
    settings = DistillSettings(
        minutes=seconds / 60,
        epochs=_ROUNDS,
        evaluations=_EVALUATIONS,
        precision=cast(Precision, request.compute),
        seed=request.calibration.seed,
    )
    device = find_device(request.device)
    if request.calibration.source == NONE:
        raise HeadsError("--polish trains on the calibration data: name some with --calibrate, or take `random`")
    if request.device not in ("auto", "cpu"):
        raise HeadsError(f"--polish trains where accelerate does: leave out --device {request.device}")
    if launched(device == "cpu").size > 1:
        raise HeadsError("--polish takes one process: convert with several, and then `hf-heads distill`")
    place.path.parent.mkdir(parents=True, exist_ok=True)
    with beside(place.path, lambda hidden: hidden.mkdir(mode=0o700)) as hidden:
        converted = hidden / "converted"
        report = convert_checkpoint(replace(request, source=source), converted, progress=progress)
        found: Healed | None = None
        try:
            found = distill_checkpoint(
                replace(resolve_source(str(converted)), given=str(output), base_model=source.base_model),
                hidden / "healed",
                settings,
                request.calibration,
                teacher=None if source.revision else source.given,
                device="cpu" if device == "cpu" else None,
                progress=progress,
                shard_bytes=request.shard_bytes,
                common=Common(original=source, teacher=load_source(source)),
            )
        except OnlyWorse:
            pass
        except KeyboardInterrupt as stop:
            stop.args = ()  # nothing is left to resume
            raise
        with finished_folder(place) as folder:
            for path in (converted if found is None else hidden / "healed").iterdir():
                path.rename(folder / path.name)
    return Polished(report, found)
