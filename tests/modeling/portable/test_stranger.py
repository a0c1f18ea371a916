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
from hf_heads.modeling.classes import native_model
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
    model: Any = getattr(transformers, AUTO[host]).from_pretrained(folder).eval()  # weights lie as they will for others
    inputs = TWINS[host].inputs()
    said: dict[str, Any] = {"auto": AUTO[host], "native": native_model(type(model)).__name__, "every": every}
    tensors = {f"input.{name}": value for name, value in inputs.items()}
    for implementation in ("eager", "sdpa"):
        model.set_attn_implementation(implementation)
        with torch.no_grad():
            tensors[implementation] = model(**inputs)[0].contiguous()
    if host in PROMPTS:
        prompt = {name: inputs[name] for name in PROMPTS[host]}
        generation = {**GENERATION, "num_beams": 2 if host == "marian" else 1}
        tensors["generated"] = model.generate(**prompt, **generation).contiguous()
        said |= {"prompt": PROMPTS[host], "generation": generation}
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
