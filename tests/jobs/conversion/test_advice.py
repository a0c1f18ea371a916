"""What a conversion tells who is to fine-tune its model on pairs."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from hf_heads import CollabSpec, HeadsSpec, MgkSpec, MheSpec, PrunedSpec
from hf_heads.cli.console import print_report
from hf_heads.jobs.conversion.convert import convert
from hf_heads.jobs.conversion.report import Report
from tests.support.twins import TWINS, WIDTH


def report_of(spec: HeadsSpec, *jobs: tuple[str, float, float]) -> Report:
    """That of a tiny BERT, whose second block has the heads of these jobs, before and after."""
    report = convert(TWINS["bert"].model(), spec)[1]
    rows = [{"job": job, "head": 0, "before": before, "after": after} for job, before, after in jobs]
    report.jobs = [{**row, "block": report.blocks[1].name} for row in rows]
    return report


@pytest.mark.parametrize("spec", [CollabSpec(rank=WIDTH // 2), PrunedSpec(keep=0.5)])
def test_heads_that_match_can_be_kept(spec: HeadsSpec, capsys: pytest.CaptureFixture[str]):
    report = report_of(spec, ("matching", 0.4, 0.3), ("matching", 0.3, 0.1))
    assert str(report.advice()).endswith(": --keep-heads matching")
    print_report(report.to_dict(), Path("out"))
    assert "--keep-heads matching" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("spec", [MheSpec(), MgkSpec(merge=2)])
def test_blocks_with_heads_that_match_can_be_left_out_where_single_heads_cannot(spec: HeadsSpec):
    report = report_of(spec, ("matching", 0.4, 0.0), ("matching", 0.3, 0.1))
    option, blocks = shlex.split(str(report.advice()))[-2:]
    assert option == "--blocks" and blocks == f"!{report.blocks[1].name}"
    left = convert(TWINS["bert"].model(), spec, blocks=blocks)[1]
    assert [block.name for block in left.blocks] == [report.blocks[0].name]


@pytest.mark.parametrize("jobs", [(), (("matching", 0.4, 0.2),), (("previous", 0.9, 0.0), ("same", 0.3, 0.1))])
def test_nothing_is_advised_where_heads_that_match_are_left_or_there_are_none(
    jobs: tuple[tuple[str, float, float], ...], capsys: pytest.CaptureFixture[str]
):
    report = report_of(MheSpec(), *jobs)
    assert report.advice() is None
    print_report(report.to_dict(), None)
    assert "advice" not in capsys.readouterr().out
