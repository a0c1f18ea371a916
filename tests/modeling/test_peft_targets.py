"""PEFT finds what to adapt by itself, and its adapters go from a checkpoint's own code to ours and back."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForMaskedLM

import hf_heads
from hf_heads.attention.hosts.blocks import find_blocks
from hf_heads.attention.hosts.table import ADAPTERS
from tests.modeling.test_parts import SPECS
from tests.support.twins import TWINS

peft = pytest.importorskip("peft", reason="LoRA is PEFT's")

# Without hf_heads: what was adapted there is compared, and an adapter of its own is left.
ALONE = """
import sys
class Forbidden:
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in ("hf_heads", "tests"):
            raise ImportError(name)
sys.meta_path.insert(0, Forbidden)
import peft, torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForMaskedLM
folder = sys.argv[1]
load = lambda: AutoModelForMaskedLM.from_pretrained(folder, trust_remote_code=True).eval()
case = load_file(folder + "/case.safetensors")
inputs = {key[6:]: value for key, value in case.items() if key.startswith("input.")}
with torch.no_grad():
    found = peft.PeftModel.from_pretrained(load(), folder + "/ours").eval()(**inputs)[0]
    assert (found - case["wanted"]).abs().max() < 1e-5
    torch.manual_seed(1)
    theirs = peft.get_peft_model(load(), peft.LoraConfig(r=2, init_lora_weights=False)).eval()
    theirs.save_pretrained(folder + "/theirs")
    save_file({"wanted": theirs(**inputs)[0].contiguous()}, folder + "/found.safetensors")
"""


@pytest.mark.parametrize(("host", "method"), list(zip([*TWINS, "bert"], SPECS, strict=True)))
def test_lora_reaches_every_block_by_default(host: str, method: str):
    model = hf_heads.convert(TWINS[host].model(), SPECS[method], calibration="none")[0]
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=2, init_lora_weights=False))
    adapted = [name for name, _ in wrapped.named_parameters() if "lora_A" in name]
    for block in find_blocks(model):
        assert any(f".{block.path}." in name for name in adapted), (block.path, adapted)


def test_every_derived_type_has_defaults():
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as table

    assert {f"heads_{name}" for name in ADAPTERS} <= table.keys()
    assert {"query", "value", "shared_query", "component_value"} <= set(table["heads_bert"])
    assert "c_attn" in table["heads_gpt2"] and not any("key" in name for name in table["heads_bert"])


@pytest.mark.full
def test_adapters_go_from_our_classes_to_the_folders_own_and_back(tmp_path: Path):
    from safetensors.torch import load_file, save_file

    hf_heads.convert(TWINS["bert"].model(), SPECS["collab"], calibration="none")[0].save_pretrained(tmp_path)

    def load() -> AutoModelForMaskedLM:
        return AutoModelForMaskedLM.from_pretrained(tmp_path).eval()

    torch.manual_seed(0)
    ours = peft.get_peft_model(load(), peft.LoraConfig(r=2, init_lora_weights=False)).eval()
    ours.save_pretrained(tmp_path / "ours")
    inputs = TWINS["bert"].inputs()
    tensors = {f"input.{name}": value.contiguous() for name, value in inputs.items()}
    with torch.no_grad():
        save_file({**tensors, "wanted": ours(**inputs)[0].contiguous()}, tmp_path / "case.safetensors")
        environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
        subprocess.run([sys.executable, "-I", "-c", ALONE, str(tmp_path)], check=True, env=environment)
        again = peft.PeftModel.from_pretrained(load(), tmp_path / "theirs").eval()(**inputs)[0]
    assert (again - load_file(tmp_path / "found.safetensors")["wanted"]).abs().max() < 1e-5
