"""`hf-heads export --onnx`: a file that onnxruntime runs without torch, whatever the method."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForMaskedLM, GenerationMixin

import hf_heads
from hf_heads import CollabSpec, LowRankSpec, MgkSpec, MheSpec, PrunedSpec
from hf_heads.attention.hosts.blocks import find_blocks
from hf_heads.io.checkpoints.sources import resolve_source
from hf_heads.jobs.export import onnx as export
from hf_heads.jobs.export.writers import writer_graphs
from hf_heads.modeling.blocks import block_size
from tests.contract.test_hosts import HOSTS
from tests.modeling.test_parts import SPECS
from tests.support.cli import Run, check_refused, leftovers
from tests.support.twins import TWINS

onnx = pytest.importorskip("onnx", reason="an extra")
for name in ("onnxscript", "onnxruntime"):
    pytest.importorskip(name, reason="an extra")

ALL = {**SPECS, "without heads": PrunedSpec(kept=())}
ALONE = """
import sys
class Forbidden:
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers", "hf_heads"):
            raise ImportError(name)
sys.meta_path.insert(0, Forbidden)
import numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
(found,) = session.run(None, dict(numpy.load(sys.argv[2])))
numpy.save(sys.argv[3], found)
assert "torch" not in sys.modules
"""


def exported(host: str, method: str, folder: Path) -> tuple[Path, export.OnnxReport]:
    model = hf_heads.convert(TWINS[host].model(), ALL[method], calibration="none")[0]
    model.save_pretrained(folder / "converted")
    return folder / "out", export.export_onnx(resolve_source(str(folder / "converted")), folder / "out")


@pytest.mark.full
@pytest.mark.parametrize("method", ALL)
@pytest.mark.parametrize("host", ["bert", "vit"])
def test_other_sizes_give_what_torch_gives(host: str, method: str, tmp_path: Path):
    folder, report = exported(host, method, tmp_path)
    assert report.output == "logits" and report.max_difference < 1e-4
    graph = onnx.load(folder / "onnx" / "model.onnx").graph
    widths = [size for tensor in graph.initializer for size in tensor.dims]
    assert widths and 0 not in widths
    shapes = [one.type.tensor_type.shape.dim for one in graph.value_info]
    assert not any(size.HasField("dim_value") and size.dim_value == 0 for shape in shapes for size in shape)
    dynamic = [size.dim_param for size in graph.input[0].type.tensor_type.shape.dim if size.dim_param]
    assert dynamic == (["batch"] if host == "vit" else ["batch", "length"])
    entries = json.loads((folder / "config.json").read_text())
    assert entries["model_type"] == host and "heads" not in entries and "auto_map" not in entries


DECODERS = {
    "gpt2, low-rank": ("gpt2", LowRankSpec(rank=8)),
    "gpt2, collab": ("gpt2", CollabSpec(rank=8)),
    "gpt2, mgk": ("gpt2", MgkSpec()),
    "gpt2, without heads": ("gpt2", PrunedSpec(kept=())),
    "llama, mhe": ("llama", MheSpec(groups=1)),
    "bloom, mhe": ("bloom", MheSpec(groups=2)),
    "opt, pruned": ("opt", PrunedSpec(kept=(0, 2))),
}


@pytest.mark.parametrize(
    "name", [next(iter(DECODERS)), *(pytest.param(one, marks=pytest.mark.full) for one in [*DECODERS][1:])]
)
def test_a_language_model_writes_from_its_cache_in_the_file(name: str, tmp_path: Path):
    """As its card says; the tokens are those of `generate`."""
    host, spec = DECODERS[name]
    model = hf_heads.convert(HOSTS[host].model(), spec, calibration="none")[0].eval()
    model.save_pretrained(tmp_path / "converted")
    report = export.export_onnx(resolve_source(str(tmp_path / "converted")), tmp_path / "out")
    assert report.max_difference < 1e-4 and report.cached_layers == len(find_blocks(model))
    (code,) = re.findall(r"^```python\n(.*?)^```", (tmp_path / "out" / "README.md").read_text(), re.M | re.S)
    ids = HOSTS[host].inputs()["input_ids"][:2, :5]
    said = {"ids": ids.numpy()}
    exec(code.replace("onnx/model", f"{tmp_path}/out/onnx/model"), said)
    settings = {"max_new_tokens": 20, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    wanted = model.generate(ids, attention_mask=torch.ones_like(ids), **settings)
    assert wanted.shape[1] == 25 and said["ids"].tolist() == wanted.tolist()
    held = sum(one.shape[1] * one.shape[3] for one in said["cache"].values())
    assert held == sum(block_size(block)[1] or 1 for block in find_blocks(model))


WRITERS = {
    "marian, collab": ("marian", CollabSpec(rank=8)),
    "marian, mgk": ("marian", MgkSpec()),
    "marian, without heads": ("marian", PrunedSpec(kept=())),
    "whisper, low-rank": ("whisper", LowRankSpec(rank=8)),
    "whisper, pruned": ("whisper", PrunedSpec(kept=(0, 2))),
    "t5, mhe": ("t5", MheSpec(groups=2)),
    "m2m_100, mhe": ("m2m_100", MheSpec(variant="add")),
}
WRITING = """
import sys
class Forbidden:
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers", "hf_heads"):
            raise ImportError(name)
sys.meta_path.insert(0, Forbidden)
import numpy
inputs = dict(numpy.load(sys.argv[1]))
exec(open(sys.argv[2]).read())
numpy.save(sys.argv[3], ids)
"""


@pytest.mark.full  # three files take the exporter half a minute
@pytest.mark.parametrize("name", WRITERS)
def test_an_encoder_decoder_writes_as_its_card_says_where_torch_is_not(name: str, tmp_path: Path):
    """The tokens are those of `generate`, for other lengths than it was exported with, with padding."""
    host, spec = WRITERS[name]
    twin = {**HOSTS, **TWINS}[host]
    model = hf_heads.convert(twin.model(), spec, calibration="none")[0].eval()
    model.save_pretrained(tmp_path / "converted")
    report = export.export_onnx(resolve_source(str(tmp_path / "converted")), tmp_path / "out")
    assert report.max_difference < 1e-4 and report.cached_layers == 2
    assert leftovers(tmp_path / "out" / "onnx") == sorted(report.files) and len(report.files) == 3
    inputs = {name: one for name, one in twin.inputs().items() if name in report.inputs}
    (code,) = re.findall(r"^```python\n(.*?)^```", (tmp_path / "out" / "README.md").read_text(), re.M | re.S)
    (tmp_path / "code.py").write_text(code.replace("onnx/{", f"{tmp_path}/out/onnx/{{"))
    np.savez(tmp_path / "in.npz", **{key: value.numpy() for key, value in inputs.items()})
    words = [tmp_path / "in.npz", tmp_path / "code.py", tmp_path / "ids.npy"]
    subprocess.run([sys.executable, "-I", "-c", WRITING, *map(str, words)], check=True)
    settings = {"max_length": None, "max_new_tokens": 20, "do_sample": False, "num_beams": 1, "eos_token_id": None}
    wanted = GenerationMixin.generate(model, **inputs, **settings)  # Whisper's own cuts what it heard
    assert wanted.shape[1] == 21 and np.load(words[2]).tolist() == wanted.tolist()


@pytest.mark.parametrize("name", ["marian, collab", "whisper, low-rank", "t5, mhe"])
def test_the_graphs_of_an_encoder_decoder_write_what_it_writes(name: str):
    """Each with the names of its inputs and outputs, as a program would call the files."""
    host, spec = WRITERS[name]
    twin = {**HOSTS, **TWINS}[host]
    model = hf_heads.convert(twin.model(), spec, calibration="none")[0].eval()
    taken = ("input_features",) if host == "whisper" else ("input_ids", "attention_mask")
    inputs = {key: one for key, one in twin.inputs().items() if key in taken}
    reader, first, later = writer_graphs(model, taken).values()
    settings = {"max_length": None, "max_new_tokens": 12, "do_sample": False, "num_beams": 1, "eos_token_id": None}
    wanted = GenerationMixin.generate(model, **inputs, **settings)  # Whisper's own cuts what it heard
    ids = torch.full((3, 1), model.config.decoder_start_token_id)
    given = {"encoder_attention_mask": inputs.get("attention_mask")}
    with torch.no_grad():
        (given["encoder_hidden_states"],) = reader.module(*(inputs[key] for key in reader.inputs))
        for _ in range(12):
            graph = first if ids.shape[1] == 1 else later
            given["input_ids"] = ids[:, -1:]
            found = dict(zip(graph.outputs, graph.module(*(given[key] for key in graph.inputs)), strict=True))
            given |= {key.replace("present", "past_key_values"): one for key, one in found.items() if "." in key}
            ids = torch.cat([ids, found["logits"][:, -1].argmax(-1)[:, None]], 1)
    assert wanted.shape[1] == 13 and ids.tolist() == wanted.tolist()


def test_the_command_and_a_program_without_torch(run: Run, bert_folder: Path, tmp_path: Path):
    options = ("--to", "low-rank", "--rank", 8, "--calibrate", "none", "--output", tmp_path / "converted")
    assert run("convert", bert_folder, *options).code == 0
    found = run("export", tmp_path / "converted", "--onnx", "--int8", "--output", tmp_path / "out", "--json")
    assert found.code == 0, found.err
    lower = found.json["int8"]
    assert 0.95 < lower["cosine"] < 1 and lower["bytes"] < found.json["bytes"]
    assert lower["bytes"] == (tmp_path / "out" / "onnx" / "model_int8.onnx").stat().st_size
    assert f"is {lower['cosine']:.4f} on random inputs" in (tmp_path / "out" / "README.md").read_text()
    assert found.json["inputs"][0] == "input_ids" and found.json["max_difference"] < 1e-4
    assert {"README.md", "config.json", "onnx", "tokenizer.json"} <= set(leftovers(tmp_path / "out"))
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "converted")
    inputs = {key: value for key, value in TWINS["bert"].inputs().items() if key in found.json["inputs"]}
    inputs |= {key: torch.zeros_like(inputs["input_ids"]) for key in found.json["inputs"] if key not in inputs}
    np.savez(tmp_path / "in.npz", **{key: value.numpy() for key, value in inputs.items()})
    words = [tmp_path / "out" / "onnx" / "model.onnx", tmp_path / "in.npz", tmp_path / "found.npy"]
    subprocess.run([sys.executable, "-I", "-c", ALONE, *map(str, words)], check=True)
    with torch.no_grad():
        wanted = model.eval()(**inputs).logits
    difference = (torch.from_numpy(np.load(words[2])) - wanted)[inputs["attention_mask"].bool()]
    assert difference.abs().max() < 1e-4


def test_what_it_cannot_take_is_refused(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for host, said in (("bert-decoder", "attention"), ("wav2vec2", "reads audio"), ("marian", "")):
        model = hf_heads.convert({**HOSTS, **TWINS}[host].model(), SPECS["collab"], calibration="none")[0]
        model.save_pretrained(tmp_path / host)
        if said:
            check_refused(run("export", tmp_path / host, "--onnx", "--output", tmp_path / "x"), said, "--portable")
    check_refused(run("export", tmp_path / "marian", "--portable", "--int8"), "--int8 is for --onnx", code=2)
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else find(name))
    refused = run("export", tmp_path / "marian", "--onnx", "--output", tmp_path / "x")
    check_refused(refused, "onnxruntime", "pip install onnxruntime")
    assert not (tmp_path / "x").exists()
