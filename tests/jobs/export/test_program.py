"""`hf-heads export --pt2`: programs that torch runs where hf-heads and transformers are not."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import hf_heads
from hf_heads import CollabSpec, HeadsSpec, LowRankSpec, MgkSpec, MheSpec, PrunedSpec
from hf_heads.io.checkpoints.sources import resolve_source
from hf_heads.jobs.export.program import export_program
from tests.contract.test_hosts import HOSTS
from tests.support.cli import Run, check_refused, leftovers
from tests.support.twins import TWINS

ALONE = """
import sys
class Forbidden:
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in ("transformers", "hf_heads"):
            raise ImportError(name)
sys.meta_path.insert(0, Forbidden)
import torch
inputs = torch.load(sys.argv[1])
exec(open(sys.argv[2]).read())
torch.save(outputs[0], sys.argv[3])
"""
MADE = {
    "vit, without heads": ("vit", PrunedSpec(kept=())),
    "bert, mgk": ("bert", MgkSpec()),
    "gpt2, collab": ("gpt2", CollabSpec(rank=8)),
    "llama, mhe": ("llama", MheSpec(groups=1)),
    "marian, low-rank": ("marian", LowRankSpec(rank=8)),
    "whisper, pruned": ("whisper", PrunedSpec(kept=(0, 2))),
}


def saved(host: str, spec: HeadsSpec, folder: Path) -> Path:
    hf_heads.convert({**HOSTS, **TWINS}[host].model(), spec, calibration="none")[0].save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "name", [next(iter(MADE)), *(pytest.param(one, marks=pytest.mark.full) for one in [*MADE][1:])]
)
def test_other_sizes_give_what_the_model_gives(name: str, tmp_path: Path):
    report = export_program(resolve_source(str(saved(*MADE[name], tmp_path / "converted"))), tmp_path / "out")
    assert report.max_difference < 1e-5 and set(report.files) <= set(leftovers(tmp_path / "out"))
    assert len(report.files) == (3 if name.startswith(("marian", "whisper")) else 1)


def test_a_program_runs_where_transformers_is_not(run: Run, tmp_path: Path):
    saved("bert", LowRankSpec(rank=8), tmp_path / "converted")
    found = run("export", tmp_path / "converted", "--pt2", "--output", tmp_path / "out", "--json")
    assert found.code == 0, found.err
    taken = found.json["files"]["model.pt2"]["inputs"]
    assert taken[0] == "input_ids" and found.json["max_difference"] < 1e-5
    given = TWINS["bert"].inputs()
    inputs = tuple(given.get(name, torch.zeros_like(given["input_ids"])) for name in taken)
    torch.save(inputs, tmp_path / "in.pt")
    (code,) = re.findall(r"^```python\n(.*?)^```", (tmp_path / "out" / "README.md").read_text(), re.M | re.S)
    (tmp_path / "code.py").write_text(code.replace('load("', f'load("{tmp_path}/out/'))
    words = [tmp_path / "in.pt", tmp_path / "code.py", tmp_path / "found.pt"]
    subprocess.run([sys.executable, "-I", "-c", ALONE, *map(str, words)], check=True)
    model = hf_heads.convert(TWINS["bert"].model(), LowRankSpec(rank=8), calibration="none")[0].eval()
    with torch.no_grad():
        wanted = model(**dict(zip(taken, inputs, strict=True))).logits
    assert (torch.load(words[2]) - wanted).abs().max() < 1e-5


@pytest.mark.full
def test_what_torch_cannot_export_is_refused(run: Run, tmp_path: Path):
    saved("t5", LowRankSpec(rank=8), tmp_path / "t5")
    refused = run("export", tmp_path / "t5", "--pt2", "--output", tmp_path / "x")
    check_refused(refused, "torch.export cannot have decoder_model for all sizes", "--onnx can")
    assert leftovers(tmp_path) == ["t5"]


def test_what_is_not_converted_is_refused(run: Run, bert_folder: Path, tmp_path: Path):
    check_refused(run("export", bert_folder, "--pt2", "--output", tmp_path / "x"), "is not converted")
