"""A checkpoint carries its code: a program without hf_heads computes the same bits, trains, saves and loads again."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file

import hf_heads
from hf_heads.attention.hosts.table import adapter_of
from hf_heads.jobs.contract import Case
from hf_heads.modeling.auto_classes import auto_classes
from hf_heads.modeling.classes import native_model
from tests.contract.test_hosts import HOSTS, _methods
from tests.modeling.test_parts import SPECS
from tests.support.twins import TWINS

STRANGER = Path(__file__).parents[2] / "support" / "stranger.py"
AUTO = {
    "bert": "AutoModelForMaskedLM",
    "bert-decoder": "AutoModelForCausalLM",
    "vit": "AutoModelForImageClassification",
    "marian": "AutoModelForSeq2SeqLM",
}
PROMPTS = {"bert-decoder": ["input_ids", "encoder_hidden_states"], "marian": ["input_ids", "attention_mask"]}
GENERATION: dict[str, Any] = {"do_sample": False, "max_new_tokens": 6}


def case(host: str, method: str, folder: Path, every: bool) -> Path:
    """A converted twin in a folder, and what it gives."""
    hf_heads.convert(TWINS[host].model(), SPECS[method], calibration="none")[0].save_pretrained(folder)
    return described(folder, AUTO[host], TWINS[host].inputs(), every, PROMPTS.get(host, []))


def described(folder: Path, auto: str, inputs: dict[str, torch.Tensor], every: bool | None, asked: list[str]) -> Path:
    """Says beside a checkpoint what it gives.

    Args:
        folder: with the checkpoint.
        auto: the Auto class that it was saved from.
        inputs: for it.
        every: have all of its classes tried; None where the bits of fused attention may differ, too.
        asked: the inputs that it is to generate from, if it does.
    """
    model: Any = getattr(transformers, auto).from_pretrained(folder).eval()  # weights lie as they will for others
    said: dict[str, Any] = {"auto": auto, "native": native_model(type(model)).__name__, "every": every}
    said["implementations"] = ["eager", "sdpa"] if model._supports_sdpa else ["eager"]
    tensors = {f"input.{name}": value.contiguous() for name, value in inputs.items()}
    for implementation in said["implementations"]:
        model.set_attn_implementation(implementation)
        with torch.no_grad():
            said["output"], found = next(iter(model(**inputs).items()))
        tensors[implementation] = found.contiguous()
    if asked:
        generation = {**GENERATION, "num_beams": 2 if auto == "AutoModelForSeq2SeqLM" else 1}
        tensors["generated"] = model.generate(**{name: inputs[name] for name in asked}, **generation).contiguous()
        said |= {"prompt": asked, "generation": generation}
    (folder / "case.json").write_text(json.dumps(said))
    save_file(tensors, folder / "expected.safetensors")
    return folder


def seen(folders: Iterable[Path], python: str = sys.executable) -> dict[str, Any]:
    """What a stranger says of each folder."""
    folders = list(folders)
    done = subprocess.run([python, "-I", str(STRANGER), *map(str, folders)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(zip([one.name for one in folders], map(json.loads, done.stdout.splitlines()), strict=True))


def check(found: dict[str, Any]) -> None:
    for name, facts in found.items():
        assert facts.pop("wrong", []) == [], name
        assert {fact for fact, holds in facts.items() if holds is not True} == set(), name
    assert found


def test_every_method_and_every_host_without_us(tmp_path: Path):
    pairs = zip([*TWINS, "bert"], SPECS, strict=True)
    check(seen(case(host, method, tmp_path / f"{host}-{method}", host == "vit") for host, method in pairs))


@pytest.mark.full
@pytest.mark.parametrize("host", TWINS)
def test_every_pair_and_every_class_without_us(tmp_path: Path, host: str):
    check(seen(case(host, method, tmp_path / f"{host}-{method}", True) for method in SPECS))


def _hosts() -> list[object]:
    """Every architecture with each of its methods; by default a few whose attention is not BERT's, with one."""
    few = {"beit": "mhe", "llama": "pruned"}
    return [
        pytest.param(host, method, id=f"{host}-{method}", marks=() if few.get(host) == method else pytest.mark.full)
        for host in HOSTS
        for method in _methods(host)
    ]


@pytest.mark.parametrize(("host", "method"), _hosts())
def test_other_hosts_without_us(tmp_path: Path, host: str, method: str):
    twin = HOSTS[host]
    model = Case(twin, method, tmp_path / "made").converted()
    native = native_model(type(model)).__name__
    auto = min((auto for auto, name in auto_classes(adapter_of(model.config)).items() if name == native), key=len)
    model.save_pretrained(tmp_path / host)
    asked = ["input_ids", "attention_mask"] if auto in ("AutoModelForCausalLM", "AutoModelForSeq2SeqLM") else []
    check(seen([described(tmp_path / host, auto, twin.inputs(), None, asked)]))
