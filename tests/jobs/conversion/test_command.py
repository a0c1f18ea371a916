"""The command that a report names makes the conversion that was made."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from hf_heads import CollabSpec, HeadsSpec, LowRankSpec, MgkSpec, MheSpec, PrunedSpec
from hf_heads.cli import build_parser
from hf_heads.cli.convert import _request
from hf_heads.io.checkpoints.sources import Source
from hf_heads.io.data.choice import CalibrationChoice
from hf_heads.jobs.conversion.command import convert_command
from hf_heads.jobs.conversion.request import ConversionRequest

DATA = CalibrationChoice(
    ("a b.jsonl", "texts.txt"), ("one", "two"), "mood", samples=64, seed=3, pairs=False, max_length=128, pack=False
)
REQUESTS = {
    "plain": {"spec": CollabSpec(rank=96)},
    "data": {"spec": PrunedSpec(keep=0.5, score="ablation", steps=2, repair=True), "calibration": DATA},
    "ways": {
        "spec": LowRankSpec(energy=0.99),
        "revision": "v1",
        "blocks": "encoder.*,!*.0.*",
        "refit": False,
        "objective": "scores",
        "inputs": "original",
        "compute": "bfloat16",
        "dtype": "bfloat16",
        "max_shard_size": "500MB",
    },
    "heads": {"spec": CollabSpec(rank=8, form="tucker"), "keep_heads": "encoder.layer.1:7"},
    "nothing": {"spec": MheSpec(variant="add"), "calibration": CalibrationChoice("none", seed=5)},
    "merged": {"spec": MgkSpec(merge=2, queries="shared")},
}


@pytest.mark.parametrize("name", REQUESTS)
def test_it_asks_for_the_same(name: str):
    request = ConversionRequest("tiny", **REQUESTS[name])  # type: ignore[arg-type]
    line = convert_command(request, Source("tiny", Path("tiny")), public=False)
    assert line is not None
    parser = build_parser()
    program, *words = shlex.split(line)
    assert program == "hf-heads" and _request(parser.parse_args(words), parser) == request


@pytest.mark.parametrize("spec", [{"*": CollabSpec(rank=8)}, PrunedSpec(kept=(0, 2))], ids=["by block", "named heads"])
def test_what_only_a_recipe_can_say(spec: HeadsSpec):
    request = ConversionRequest("tiny", spec)
    assert convert_command(request, Source("tiny", Path("tiny")), public=True) is None


def test_a_public_one_names_no_folders(tmp_path: Path):
    choice = CalibrationChoice((str(tmp_path / "mine.txt"), "glue:sst2:train"))
    scores = tmp_path / "scores.json"
    request = ConversionRequest(str(tmp_path), PrunedSpec(keep=0.5, scores=str(scores)), calibration=choice)
    line = convert_command(request, Source(str(tmp_path), tmp_path), public=True)
    assert line == (
        f"hf-heads convert ./{tmp_path.name} --to pruned --keep 0.5 --scores scores.json --calibrate mine.txt "
        "--calibrate glue:sst2:train"
    )
