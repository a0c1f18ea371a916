"""`hf-heads export --native`: the host's own architecture, with the same outputs; or a reason, or a measured loss."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, BertForMaskedLM

import hf_heads
from hf_heads import CollabSpec, HeadsError, HeadsSpec, LowRankSpec, MgkSpec, MheSpec, PrunedSpec
from hf_heads.attention.hosts.blocks import find_blocks
from hf_heads.attention.hosts.reading import read_host
from hf_heads.core.dense import DenseAttention
from hf_heads.jobs.export.building import Wider, native_of
from hf_heads.modeling.blocks import read_block
from tests.support.cli import Run, check_refused
from tests.support.matrix import each
from tests.support.text_twins import TEXT_TWINS
from tests.support.twins import TWINS, logits

EXACT: dict[str, HeadsSpec] = {
    "low-rank": LowRankSpec(rank=8),
    "pruned": PrunedSpec(kept=(1, 3)),
    "without heads": PrunedSpec(kept=()),
    "mhe": MheSpec(groups=2),
    "mhe-add": MheSpec(variant="add"),
    "collab": CollabSpec(rank=7),
    "tucker": CollabSpec(rank=6, form="tucker"),
}
CALIBRATED = ("--calibration-samples", 16)


def outputs(dense: DenseAttention, queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """What a block of these weights gives, all in float64, which softmax is not in a model."""
    context = dense.scores(queries, keys).softmax(-1) @ dense.values(keys)
    return torch.einsum("bhte,hed->btd", context, dense.output) + dense.output_bias


@each(host=["bert", "bert-decoder", "vit", "marian"], spec=EXACT)
def test_what_standard_attention_can_say_is_exact(host: str, spec: HeadsSpec):
    model = hf_heads.convert(TWINS[host].model(), spec, calibration="none")[0].double().eval()
    native = native_of(model, torch.float64)
    assert not type(native).__name__.startswith("Heads") and not native.config.model_type.startswith("heads")
    generator = torch.Generator().manual_seed(0)
    pairs = list(zip(find_blocks(native), find_blocks(model), strict=True))
    for found, wanted in pairs:
        here, there = read_host(found.module, found.site, found.output), read_block(wanted)
        inputs = [torch.randn(2, 5, width, generator=generator).double() for width in (here.query.shape[1],) * 2]
        difference = outputs(here, *inputs) - outputs(there, *inputs)
        assert difference.abs().max() < 1e-12, found.name
    assert pairs
    native.set_attn_implementation("eager")
    inputs_of = {name: one.double() if one.is_floating_point() else one for name, one in TWINS[host].inputs().items()}
    assert (logits(native, inputs_of) - logits(model, inputs_of)).abs().max() < 2e-6  # softmax is in float32


def test_a_vit_comes_out_smaller_or_as_wide_as_it_has_to_be():
    def made(spec: HeadsSpec) -> torch.nn.Module:
        return native_of(hf_heads.convert(TWINS["vit"].model(), spec, calibration="none")[0])

    pruned, wide = made(PrunedSpec(kept=(0, 2))), made(CollabSpec(rank=10))
    assert (pruned.config.num_attention_heads, pruned.config.head_dim) == (2, 8)
    assert sum(one.numel() for one in pruned.parameters()) < sum(
        one.numel() for one in TWINS["vit"].model().parameters()
    )
    assert (wide.config.num_attention_heads, wide.config.head_dim) == (4, 11)


@pytest.mark.parametrize("name", ["llama", "qwen2", "phi3", "gpt_bigcode", "modernbert"])
def test_fewer_key_and_value_heads_are_a_smaller_native_model(name: str, tmp_path: Path):
    """Where a config says how many there are; elsewhere each head has its copy. Heads go where all lose as many."""
    twin, found = TEXT_TWINS[name], {}
    specs = {"pruned": PrunedSpec(kept=(0, 1)), "apart": PrunedSpec(kept=(1, 2))}
    if name != "gpt_bigcode":
        specs |= {"shared": MheSpec(groups=1), "values": MheSpec(groups_qk=2, groups_v=1)}
    for key, spec in specs.items():
        model = hf_heads.convert(twin.model(), spec, calibration=[twin.inputs()])[0]
        native_of(model).save_pretrained(tmp_path / key)
        native = type(twin.make()).from_pretrained(tmp_path / key)
        wanted = logits(model, twin.inputs())
        assert (logits(native, twin.inputs()) - wanted).abs().max() < 1e-5 * wanted.abs().max()
        found[key] = native.config
    if name in ("llama", "qwen2", "phi3"):
        heads = {key: (one.num_attention_heads, one.num_key_value_heads) for key, one in found.items()}
        assert heads == {"pruned": (2, 1), "apart": (2, 2), "shared": (4, 1), "values": (4, 2)}


def test_what_it_cannot_say_is_refused_by_block_and_rank():
    with pytest.raises(Wider, match=r"encoder\.layer\.0\.attention\.self has scores of rank 11, and heads of width 8"):
        native_of(hf_heads.convert(TWINS["bert"].model(), CollabSpec(rank=10), calibration="none")[0])
    with pytest.raises(HeadsError, match=r"encoder\.layer\.0.*mixture of Gaussian keys"):
        native_of(hf_heads.convert(TWINS["bert"].model(), MgkSpec(), calibration="none")[0])


def test_the_command(run: Run, bert_folder: Path, tmp_path: Path):
    for name, method in (("exact", "low-rank"), ("wide", "collab")):
        options = ("--to", method, "--rank", 12, "--calibrate", "none", "--output", tmp_path / name)
        assert run("convert", bert_folder, *options).code == 0
    found = run("export", tmp_path / "exact", "--native", "--output", tmp_path / "native", "--json")
    assert found.json["exact"] and found.json["drift"]["max_difference"] < 1e-4
    assert json.loads((tmp_path / "native" / "config.json").read_text())["model_type"] == "bert"
    assert not list((tmp_path / "native").glob("*.py")) and not (tmp_path / "native" / "heads_report.json").exists()
    ours, plain = AutoModel.from_pretrained(tmp_path / "exact"), BertForMaskedLM.from_pretrained(tmp_path / "native")
    inputs = TWINS["bert"].inputs()
    with torch.no_grad():
        assert (ours(**inputs)[0] - plain.bert(**inputs)[0])[inputs["attention_mask"].bool()].abs().max() < 1e-4
    check_refused(run("export", tmp_path / "wide", "--native", "--output", tmp_path / "n"), "rank 13", "--nearest")
    options = ("--native", "--nearest", "--output", tmp_path / "n", *CALIBRATED)
    found = run("export", tmp_path / "wide", *options)
    assert found.code == 0 and "LOSSY" in found.out
    card = (tmp_path / "n" / "README.md").read_text()
    assert "**This is lossy.**" in card and "| `encoder.layer.1.attention.self` |" in card and "trust" not in card
    assert 'AutoModelForMaskedLM.from_pretrained("PATH_OR_ID")' in card
    check_refused(run("export", bert_folder, "--native", "--output", tmp_path / "x"), "is not converted")
    check_refused(run("export", tmp_path / "wide", "--native"), "--output is missing", code=2)
    check_refused(run("export", tmp_path / "wide", "--portable", "--nearest"), "--nearest is for --native", code=2)
