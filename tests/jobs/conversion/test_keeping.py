"""Heads that match stay exact where the data are pairs of texts, unless the caller says otherwise."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertForMaskedLM

from hf_heads import CollabSpec, HeadsSpec, MheSpec, PrunedSpec
from hf_heads.attention.hosts.blocks import find_blocks
from hf_heads.cli.console import print_report
from hf_heads.core.batches import Batch
from hf_heads.core.vocabulary import NONE
from hf_heads.jobs.conversion import keeping
from hf_heads.jobs.conversion.convert import convert
from hf_heads.jobs.scoring.probe import HeadJobs, share_of_pairs
from tests.support.tokenizers import save_tokenizer
from tests.support.twins import WIDTH, bert_config

HEAD_DIM = 4


def twin() -> BertForMaskedLM:
    """A BERT of eight heads, of which one fits into less than a quarter of the width."""
    config = bert_config()
    config.num_attention_heads = WIDTH // HEAD_DIM
    return BertForMaskedLM(config)


FIRST, SECOND = (block.name for block in find_blocks(twin()))


def sequences(pairs: int, singles: int = 0) -> list[Batch]:
    """A batch of random sequences, of which so many are two texts."""
    ids = torch.randint(5, 99, (pairs + singles, 8), generator=torch.Generator().manual_seed(0))
    types = torch.zeros_like(ids)
    types[:pairs, 4:] = 1
    return [{"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": types}]


@pytest.fixture
def matches(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Says which heads match."""

    def say(**attention: tuple[float, ...]) -> None:
        jobs = HeadJobs({"matching": {FIRST: attention["first"], SECOND: attention["second"]}}, "")
        monkeypatch.setattr(keeping, "probe_heads", lambda model: jobs)

    say(first=(0, 0, 0.6, 0), second=(0, 0, 0, 0))
    return say


@pytest.mark.parametrize("spec", [CollabSpec(rank=WIDTH // 4 - 1), PrunedSpec(keep=0.25, score="ablation")])
@pytest.mark.parametrize(
    ("pairs", "keep", "kept"),
    [(8, None, {FIRST: (2,)}), (5, None, {FIRST: (2,)}), (4, None, {}), (0, None, {}), (8, NONE, {})],
)
def test_heads_that_match_are_kept_where_most_are_pairs(
    spec: HeadsSpec, pairs: int, keep: str | None, kept: dict[str, Any], matches: Any, capsys: pytest.CaptureFixture
):
    batches = sequences(pairs, 8 - pairs)
    _, report = convert(twin(), spec, calibration=batches, keep_heads=keep)
    assert report.kept_heads == kept
    block: Any = report.blocks[0].spec
    if kept:
        assert 2 in (block.exact if isinstance(spec, CollabSpec) else block.kept)
    print_report(report.to_dict(), Path("out"))
    assert (f"heads left exact           {FIRST} 2" in capsys.readouterr().out) == bool(kept)


def test_what_the_caller_names_is_kept_instead(matches: Any):
    batches = sequences(8)
    report = convert(twin(), CollabSpec(rank=WIDTH // 4 - 1), calibration=batches, keep_heads=f"{SECOND}:1")[1]
    assert report.kept_heads == {SECOND: (1,)}


def test_where_there_is_no_room_none_is_kept(matches: Any):
    """Two heads of the first block would take all of the rank; the one of the second fits."""
    matches(first=(0.5, 0, 0.6, 0), second=(0, 0.4, 0, 0))
    report = convert(twin(), CollabSpec(rank=2 * HEAD_DIM - 1), calibration=sequences(8))[1]
    assert report.kept_heads == {SECOND: (1,)}
    assert [block.spec.exact for block in report.blocks] == [None, (1,)]


@pytest.mark.parametrize(
    "spec",
    [
        MheSpec(),
        CollabSpec(rank=WIDTH // 4),
        CollabSpec(rank=WIDTH // 4 - 1, form="tucker"),
        PrunedSpec(keep=0.5, score="random"),
        PrunedSpec(kept=(0, 1)),
    ],
)
def test_methods_and_rules_that_choose_otherwise_are_left_alone(spec: HeadsSpec, matches: Any):
    report = convert(twin(), spec, calibration=sequences(8))[1]
    assert report.kept_heads == {}


def test_pairs_are_told_by_separators_where_there_are_no_segments(tmp_path: Path):
    save_tokenizer(tmp_path)
    model = twin()
    model.config._name_or_path = model.name_or_path = str(tmp_path)
    cls, sep, pad = 2, 3, 0
    one, two = [cls, 9, 8, 7, 6, 5, sep, pad], [cls, 9, 8, sep, sep, 7, 6, sep]
    assert share_of_pairs(model, [{"input_ids": torch.tensor([one, one, one, two])}]) == 0.25
    assert share_of_pairs(model, [{"input_ids": torch.tensor([one, two])}, {"input_ids": torch.tensor([two])}]) == 2 / 3
    assert share_of_pairs(model, [{"pixel_values": torch.zeros(2, 3, 8, 8)}]) == 0
    assert share_of_pairs(twin(), [{"input_ids": torch.tensor([one, two])}]) == 0  # no tokenizer says what separates
