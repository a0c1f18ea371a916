"""What conversions keep in a cache: they go on after an end to the bit, and others run no forward pass."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import hf_heads
from hf_heads import CollabSpec, HeadsError, HeadsSpec, LowRankSpec, MgkSpec, MheSpec, PrunedSpec
from hf_heads.jobs.conversion import cache as caches
from hf_heads.jobs.conversion import convert as conversions
from hf_heads.jobs.conversion.report import Report
from tests.support.files import save_checkpoint
from tests.support.kills import Command, digest, ended
from tests.support.twins import TWINS

PAIRS = {
    "bert": CollabSpec(rank=16),
    "vit": PrunedSpec(keep=0.5),
    "marian": MheSpec(groups=1),
}
MORE = {"bert": MgkSpec(merge=2), "vit": LowRankSpec(rank=16), "marian": CollabSpec(rank=16)}


def convert(kind: str, spec: HeadsSpec, **how: Any) -> tuple[dict[str, Tensor], Report]:
    """The tensors of a converted twin."""
    batches = [TWINS[kind].inputs()] * 3
    model, report = hf_heads.convert(TWINS[kind].model(), spec, calibration=batches, **how)
    return model.state_dict(), report


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def stop_at(block: int) -> Callable[[str, int, int], None]:
    def progress(what: str, done: int, total: int) -> None:
        if what.startswith("converting") and done == block:
            raise KeyboardInterrupt

    return progress


FULL = pytest.mark.full


@pytest.mark.parametrize(
    ("kind", "inputs"),
    [
        ("bert", "converted"),
        ("vit", "original"),
        ("marian", "converted"),
        pytest.param("bert", "original", marks=FULL),
        pytest.param("vit", "converted", marks=FULL),
        pytest.param("marian", "original", marks=FULL),
    ],
)
def test_a_conversion_goes_on_where_it_was_ended(
    kind: str, inputs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    how = {"inputs": inputs, "cache": tmp_path}
    wanted, report = convert(kind, PAIRS[kind], inputs=inputs)
    with pytest.raises(KeyboardInterrupt):
        convert(kind, PAIRS[kind], progress=stop_at(1), **how)
    done: list[str] = []
    one_block = conversions._convert_block
    monkeypatch.setattr(conversions, "_convert_block", lambda *args: done.append(args[3]) or one_block(*args))
    found, again = convert(kind, PAIRS[kind], **how)
    assert same(found, wanted) and again.blocks == report.blocks
    assert done == [block.name for block in report.blocks[1:]]
    assert same(convert(kind, PAIRS[kind], **how)[0], wanted) and len(done) == len(report.blocks) - 1


@pytest.mark.full
@pytest.mark.parametrize("kind", MORE)
def test_a_conversion_goes_on_where_it_was_ended_by_other_methods(kind: str, tmp_path: Path):
    wanted, report = convert(kind, MORE[kind])
    with pytest.raises(KeyboardInterrupt):
        convert(kind, MORE[kind], progress=stop_at(1), cache=tmp_path)
    found, again = convert(kind, MORE[kind], cache=tmp_path)
    assert same(found, wanted) and again.blocks == report.blocks


@pytest.mark.parametrize("kind", ["bert", pytest.param("vit", marks=FULL), pytest.param("marian", marks=FULL)])
def test_another_rank_or_method_runs_no_forward_pass(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    others = [CollabSpec(rank=8), MheSpec(groups=2), LowRankSpec(rank=12)][: 2 if kind == "bert" else 3]
    wanted = [convert(kind, spec, inputs="original")[0] for spec in others]
    convert(kind, CollabSpec(rank=16), inputs="original", cache=tmp_path)
    monkeypatch.setattr(caches.Stepper, "_run", lambda *_: pytest.fail("the model ran"))
    for spec, one in zip(others, wanted, strict=True):
        assert same(convert(kind, spec, inputs="original", cache=tmp_path)[0], one)


def test_the_originals_inputs_are_what_blocks_are_converted_on(monkeypatch: pytest.MonkeyPatch):
    seen: dict[str, list[Tensor]] = {}
    statistics = conversions.statistics_of

    def spy(block: Any, dense: Any, stops: Any, team: Any) -> Any:
        kept = list(stops)
        seen.setdefault(block.name, []).append(kept[0].hidden_states)
        return statistics(block, dense, kept, team)

    monkeypatch.setattr(conversions, "statistics_of", spy)
    _, first = convert("bert", CollabSpec(rank=4), inputs="original")
    convert("bert", CollabSpec(rank=4))
    hidden = TWINS["bert"].model()(**TWINS["bert"].inputs(), output_hidden_states=True).hidden_states
    ours, usual = (torch.stack([two[side] for two in seen.values()]) for side in (0, 1))
    assert first.to_dict()["inputs"] == "original"
    torch.testing.assert_close(ours, torch.stack(hidden[: len(ours)]))
    assert not torch.allclose(usual[-1], ours[-1])


def test_nothing_is_taken_for_something_else(tmp_path: Path):
    def folders(**how: Any) -> int:
        spec = how.pop("spec", CollabSpec(rank=8))
        convert("bert", spec, cache=tmp_path, **how)
        return Counter(path.name.partition("-")[0] for path in tmp_path.iterdir())["blocks"]

    assert [folders(), folders(), folders(seed=1), folders(refit=False), folders(spec=CollabSpec(rank=9))] == [
        *(1, 1, 2, 3, 4)
    ]
    model = TWINS["bert"].model()
    before = caches.model_fingerprint(model)
    with torch.no_grad():
        model.bert.encoder.layer[1].output.dense.weight[0, 0] += 1e-3
    assert caches.model_fingerprint(model) != before == caches.model_fingerprint(TWINS["bert"].model())


def test_damaged_files_are_not_there(tmp_path: Path):
    wanted, _ = convert("bert", CollabSpec(rank=8), cache=tmp_path)
    for path in sorted(tmp_path.rglob("*.*")):
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        assert same(convert("bert", CollabSpec(rank=8), cache=tmp_path)[0], wanted)
    for path in sorted(tmp_path.rglob("*.json")):
        path.write_text('{"encoder.layer.0.attention.self": {"method": 5}, "spec": []}')
        assert same(convert("bert", CollabSpec(rank=8), cache=tmp_path)[0], wanted)


def test_damaged_inputs_are_refused(tmp_path: Path):
    convert("bert", CollabSpec(rank=8), inputs="original", cache=tmp_path)
    path = min(tmp_path.glob("inputs-*/*.pt"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(HeadsError, match=r"is damaged or gone: remove '.*inputs-[0-9a-f]+' and start again"):
        convert("bert", CollabSpec(rank=9), inputs="original", cache=tmp_path)
    path.unlink()
    with pytest.raises(HeadsError, match="is damaged or gone"):
        convert("bert", CollabSpec(rank=9), inputs="original", cache=tmp_path)


def test_a_cache_that_is_no_folder_is_refused(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(HeadsError, match="file' is not a folder that can be made; choose another --cache"):
        convert("bert", CollabSpec(rank=8), cache=tmp_path / "file")
    with pytest.raises(HeadsError, match="inputs is 'other', expected one of converted, original"):
        convert("bert", CollabSpec(rank=8), inputs="other")


def try_kills(kills: int, folder: Path) -> Counter[str]:
    """Conversions killed at random times, each run again to its end: what the kill left, and whether that was right."""
    generator, found = random.Random(0), Counter[str]()
    bert = save_checkpoint(TWINS["bert"].model(), folder / "bert")
    cache, output = folder / "cache", folder / "here" / "out"
    output.parent.mkdir()
    arguments = ("convert", str(bert), "--to", "collab", "--rank", "16", "--calibration-samples", "32")
    assert Command(arguments, output, digest).finish() == 0
    wanted = digest(output / "model.safetensors")
    command = Command((*arguments, "--cache", str(cache)), output, digest)
    for _ in range(kills):
        shutil.rmtree(cache, ignore_errors=True)
        began = time.monotonic()
        assert command.finish() == 0
        took = time.monotonic() - began
        shutil.rmtree(cache)
        pid = command.start()
        time.sleep(took * generator.uniform(0.2, 1))
        os.kill(pid, signal.SIGKILL)
        code = ended(pid)
        done = len([path for path in cache.rglob("*.json") if path.name != "plan.json"])
        found["ended before" if code == 0 else f"{done} blocks done"] += 1
        if command.finish() != 0 or digest(output / "model.safetensors") != wanted:
            found["wrong"] += 1
    return found


@pytest.mark.parametrize("kills", [pytest.param(2, marks=FULL), pytest.param(100, marks=pytest.mark.slow)])
def test_killed_conversions_go_on_to_the_bit(kills: int, tmp_path: Path):
    found = try_kills(kills, tmp_path)
    print(dict(found))
    assert found.total() == kills and not found["wrong"]
