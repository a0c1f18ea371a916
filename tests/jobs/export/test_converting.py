"""`hf-heads convert --native`: a plain checkpoint in one step, or a refusal before the work."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedModel

import hf_heads
from hf_heads import CollabSpec, HeadsError, HeadsSpec, LowRankSpec, MgkSpec, MheSpec, PrunedSpec
from hf_heads.jobs.export import converting
from hf_heads.jobs.export.building import Wider
from hf_heads.jobs.export.converting import check_native
from hf_heads.jobs.team import Team
from tests.support.cli import Run, check_refused, leftovers
from tests.support.text_twins import TEXT_TWINS
from tests.support.twins import TWINS, logits

FITTING = {
    "low-rank": ("bert", LowRankSpec(rank=12)),
    "collab": ("bert", CollabSpec(rank=7)),
    "mhe": ("bert", MheSpec(groups=2)),
    "without heads": ("marian", PrunedSpec(kept=())),
    "wider heads": ("vit", CollabSpec(rank=12)),
    "fewer key-value heads": ("llama", MheSpec(groups=1)),
    "found from data": ("bert", CollabSpec(energy=0.5)),
    "some blocks": ("bert", {"encoder.layer.0.*": LowRankSpec(rank=8), "*": MheSpec(variant="add")}),
}
HOSTS = {**TWINS, **TEXT_TWINS}


def without_weights(host: str) -> PreTrainedModel:
    model = HOSTS[host].model()
    with torch.device("meta"):
        return type(model)(model.config)


@pytest.mark.parametrize("case", FITTING)
def test_what_fits_is_let_through(case: str):
    host, spec = FITTING[case]
    check_native(without_weights(host), spec)


@pytest.mark.parametrize(
    ("host", "spec", "said"),
    [
        (
            "bert",
            CollabSpec(rank=10),
            r"encoder\.layer\.0\.attention\.self has scores of rank 11, and heads of width 8",
        ),
        ("marian", MgkSpec(), r"encoder\.layers\.0\.self_attn: .*mixture of Gaussian keys"),
    ],
)
def test_what_does_not_fit_is_refused_by_its_sizes(host: str, spec: HeadsSpec, said: str):
    with pytest.raises(HeadsError, match=said):
        check_native(without_weights(host), spec)


def test_one_step_gives_what_two_give(run: Run, tmp_path: Path):
    twin = TEXT_TWINS["llama"]
    twin.model().save_pretrained(tmp_path / "llama")
    options = ("--to", "mhe", "--groups", 1, "--calibrate", "none")
    found = run("convert", tmp_path / "llama", *options, "--native", "--output", tmp_path / "out", "--json")
    assert found.code == 0, found.err
    assert found.json["native"]["exact"] and found.json["native"]["drift"]["max_difference"] < 1e-4
    assert leftovers(tmp_path) == sorted(["llama", "out"])
    files = set(leftovers(tmp_path / "out"))
    assert {"README.md", "config.json", "model.safetensors"} <= files and "heads_report.json" not in files
    assert not [one for one in files if one.endswith(".py")]
    entries = json.loads((tmp_path / "out" / "config.json").read_text())
    assert entries["model_type"] == "llama" and entries["num_key_value_heads"] == 1 and "heads" not in entries
    plain = LlamaForCausalLM.from_pretrained(tmp_path / "out")
    wanted = logits(hf_heads.convert(twin.model(), MheSpec(groups=1), calibration="none")[0], twin.inputs())
    assert (logits(plain, twin.inputs()) - wanted).abs().max() < 1e-5 * wanted.abs().max()
    card = (tmp_path / "out" / "README.md").read_text()
    assert "by `hf-heads convert ./llama --to mhe --groups 1 --calibrate none --native`" in card
    assert "# out as plain llama" in card and "beyond what the conversion lost" in card and "trust_remote" not in card
    assert "## Lost" in card


def test_nothing_is_left_of_what_is_refused(
    run: Run, bert_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    options = ("--native", "--output", tmp_path / "x")
    with monkeypatch.context() as early:
        early.setattr(converting, "convert_checkpoint", None)
        refused = run("convert", bert_folder, "--to", "collab", "--rank", 16, "--calibrate", "none", *options)
    check_refused(refused, "rank 17", "--portable")
    monkeypatch.setattr(converting, "check_native", lambda *_: None)  # as where only data tells the ranks
    with pytest.raises(Wider):
        request = hf_heads.ConversionRequest(
            str(bert_folder), CollabSpec(rank=16), calibration=hf_heads.CalibrationChoice("none")
        )
        converting.convert_native(request, tmp_path / "x")
    monkeypatch.setattr(converting, "launched", lambda _: Team(0, 2))
    check_refused(run("convert", bert_folder, "--to", "low-rank", "--rank", 8, *options), "--native takes one process")
    assert leftovers(tmp_path) == ["tiny-bert"]
