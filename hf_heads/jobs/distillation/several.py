"""Healing of several converted models against the one that they were made from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_heads.core.errors import HeadsError
from hf_heads.io.checkpoints.files import check_apart, check_output
from hf_heads.io.checkpoints.record import read_record
from hf_heads.io.checkpoints.sources import Source
from hf_heads.io.data.choice import CalibrationChoice
from hf_heads.jobs.distillation.checkpoint import Common, Healed, OnlyWorse, distill_checkpoint, load_pair
from hf_heads.jobs.distillation.settings import DistillSettings
from hf_heads.jobs.distillation.work import Work
from hf_heads.jobs.team import launched


class SomeOnlyWorse(HeadsError):
    """Of several models some only got worse.

    Attributes:
        healed: what was done of the others, by folder.
    """

    def __init__(self, said: str, healed: dict[Path, Healed]) -> None:
        super().__init__(said)
        self.healed = healed


def distill_checkpoints(
    sources: Sequence[Source],
    output: Path,
    settings: DistillSettings,
    data: CalibrationChoice,
    *,
    teacher: str | None = None,
    overwrite: bool = False,
    resume: bool = False,
    **how: Any,
) -> dict[Path, Healed]:
    """Heal several converted checkpoints of one original, one after the other, each into a folder of its own name.

    The original and the data are loaded once, and what the teacher said in one run it need not say again in the next.
    Every folder is the same as if it had been healed alone.

    Args:
        sources: the converted checkpoints.
        output: the folder in which their folders are made.
        settings, data, teacher: see `distill_checkpoint`.
        overwrite: replace folders that exist.
        resume: leave what is done, go on with what was interrupted, and begin what was not begun.
        how: what else `distill_checkpoint` takes.

    Returns:
        What was done, by folder.

    Raises:
        HeadsError: two have one name, or they were made from different originals, before anything is done; or see
            `distill_checkpoint`.
        SomeOnlyWorse: some could not be healed, when all others are.
    """
    places = {output / source.name: source for source in sources}
    for place, source in places.items():
        if sum(one.name == source.name for one in sources) > 1:
            raise HeadsError(f"two checkpoints would become '{place}': heal them one by one")
    done = {place for place in places if resume and not overwrite and (place / "config.json").is_file()}
    begun = {place for place in places if resume and Work(place.absolute(), {}).checkpoints()}
    if resume and not done | begun:
        raise HeadsError(f"nothing to resume in '{output}': leave out --resume")
    common = Common(len(places) - len(done))
    for place, source in places.items():
        if place not in done:
            Work(check_output(place, overwrite).path, {}).check_unused(overwrite or resume)
            check_apart(place, source.folder, "source")
            load_pair(source, teacher, common)
    found, failed = dict[Path, Healed](), list[str]()
    main = not done or launched(how.get("device") == "cpu").main
    for place, source in places.items():
        if place in done:
            found[place] = Healed(read_record(place), main)
            continue
        options: dict[str, Any] = {
            "teacher": teacher,
            "overwrite": overwrite,
            "resume": place in begun,
            "common": common,
        }
        try:
            found[place] = distill_checkpoint(source, place, settings, data, **options, **how)
        except OnlyWorse as error:
            failed.append(f"'{source.given}': {error}")
    if failed:
        others = "the others are" if found else "none is"
        raise SomeOnlyWorse(f"{len(failed)} of {len(places)} not healed, {others}: {'; '.join(failed)}", found)
    return found
