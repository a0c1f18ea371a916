"""What others rely on and no release of format 1 may take away: names, flags, files, and what stands in them.

The lists are written out, as they were in the first release; what is added to them is not looked at.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

import pytest

import hf_heads
from hf_heads import CollabSpec, HeadsSpec, LowRankSpec, MgkSpec, MheSpec, PrunedSpec
from hf_heads.cli.program import build_parser
from hf_heads.methods import registry
from tests.support.cli import Run
from tests.support.twins import TWINS

NAMES = """
    HeadsError __version__ methods CollabSpec DistillSettings DistillTrainer HeadsSpec LowRankSpec MgkSpec MheSpec
    PrunedSpec ablate compare_checkpoints convert head_mask heads_config load_recipe load_scores prune_heads rank_heads
"""

# Every name that AutoModelForX, pickles and `auto_map` of config.json may ask for, by host.
CLASSES = {
    "bert": """
        HeadsBertConfig HeadsBertModel HeadsBertForMaskedLM HeadsBertForMultipleChoice
        HeadsBertForNextSentencePrediction HeadsBertForPreTraining HeadsBertForQuestionAnswering
        HeadsBertForSequenceClassification HeadsBertForTokenClassification HeadsBertLMHeadModel
        CollabBertSelfAttention LowRankBertSelfAttention MheBertSelfAttention MgkBertSelfAttention
        PrunedBertSelfAttention CollabBertCrossAttention
    """,
    "vit": """
        HeadsViTConfig HeadsViTModel HeadsViTForImageClassification HeadsViTForMaskedImageModeling
        CollabViTAttention LowRankViTAttention MheViTAttention MgkViTAttention PrunedViTAttention
    """,
    "marian": """
        HeadsMarianConfig HeadsMarianModel HeadsMarianMTModel HeadsMarianForCausalLM HeadsMarianEncoder
        HeadsMarianDecoder CollabMarianAttention LowRankMarianAttention MheMarianAttention MgkMarianAttention
        PrunedMarianAttention
    """,
}

FLAGS = {
    "convert": """
        --json --to --rank --energy --allocate --form --components --mixture --assignment --priors --kernel --merge
        --queries --values --shift --norm --variant --groups --groups-qk --groups-v --keep --score --steps --normalize
        --scores --repair --calibrate --columns --label --calibration-samples --blocks --recipe --no-refit --revision
        --output --overwrite --device --dtype --seed --push-to-hub --private
    """,
    "distill": """
        --json --teacher --data --columns --label --samples --output --overwrite --resume --train --losses --minutes
        --epochs --steps --learning-rate --batch-size --accumulate --evaluations --patience --temperature --precision
        --gradient-checkpointing --report-to --device --seed --push-to-hub --private
    """,
    "importance": """
        --json --score --steps --normalize --calibrate --columns --label --calibration-samples --blocks --output --plot
        --overwrite --revision --device --seed
    """,
    "ablate": """
        --json --metric --calibrate --columns --label --calibration-samples --blocks --output --plot --overwrite
        --revision --device --seed
    """,
    "compare": """
        --json --data --columns --label --metric --beams --samples --drift-samples --resamples --lengths --batches
        --seconds --no-latency --no-control --format --output --overwrite --write-cards --revision --device --seed
    """,
    "export": "--json --portable",
    "inspect": "--json",
    "verify": "--json --against --recipe --data --columns --label --calibration-samples --min-cosine --tolerance",
    "report": "--json --importance --output --title --overwrite",
    "list": "--json",
}

REPORT = """
    attention_parameters attention_parameters_before blocks cache_per_token cache_per_token_before calibration
    calibration_choice drift model_parameters model_parameters_before recipe revision seconds source
"""
REPORT_BLOCK = "cache cache_before error heads kind method name parameters parameters_before refit_gain"

MGK = """
    component_query.weight component_query.bias component_key.weight component_key.bias component_value.weight
    component_value.bias norm_coefficient log_precision
"""
MHE = """
    shared_query.weight shared_query.bias shared_key.weight shared_key.bias shared_value.weight shared_value.bias
    query_embedding key_embedding value_embedding
"""
COLLAB = "shared_query.weight shared_key.weight content_bias.weight mixing value.weight value.bias"
# The tensors of a converted attention block of BERT, and the settings in the section `heads` of its config.
TENSORS: dict[str, tuple[HeadsSpec, str, str]] = {
    "collab": (CollabSpec(rank=6), COLLAB, "method heads rank form"),
    "collab-tucker": (CollabSpec(rank=6, form="tucker"), COLLAB, "method heads rank form"),
    "low-rank": (
        LowRankSpec(rank=8),
        "narrow_query.weight narrow_query.bias narrow_key.weight value.weight value.bias",
        "method heads rank",
    ),
    "mhe": (MheSpec(groups=2), MHE, "method heads variant groups_qk groups_v"),
    "mhe-add": (MheSpec(variant="add"), MHE, "method heads variant groups_qk groups_v"),
    "mgk": (
        MgkSpec(),
        f"{MGK} prior_logits",
        "method heads components mixture assignment priors kernel merge queries values",
    ),
    "smgk": (
        MgkSpec(mixture="smgk", priors="em"),
        f"{MGK} shifts running_prior",
        "method heads components mixture assignment priors kernel merge queries values",
    ),
    "pruned": (
        PrunedSpec(kept=(0, 2)),
        "query.weight query.bias key.weight key.bias value.weight value.bias",
        "method heads kept",
    ),
}


def test_the_names_of_the_package_are_there():
    assert set(NAMES.split()) <= set(hf_heads.__all__)
    assert all(getattr(hf_heads, name) is not None for name in NAMES.split())


@pytest.mark.parametrize("name", ["methods", "models", "compat"])
def test_modules_that_pickles_and_users_name_can_be_imported(name: str):
    assert importlib.import_module(f"hf_heads.{name}") is getattr(hf_heads, name)


def test_the_command_line_is_a_module_as_well():
    found = subprocess.run([sys.executable, "-m", "hf_heads.cli", "--version"], capture_output=True, text=True)
    assert (found.returncode, found.stdout) == (0, f"hf-heads {hf_heads.__version__}\n")


def test_other_packages_register_methods_under_the_same_group(monkeypatch: pytest.MonkeyPatch):
    asked: list[str] = []
    for place in (registry, importlib.metadata):
        monkeypatch.setattr(place, "entry_points", lambda group: asked.append(group) or (), raising=False)
    clear_caches(registry)
    registry.all_methods()
    clear_caches(registry)
    assert "hf_heads.methods" in asked


def clear_caches(module: object) -> None:
    """Forget what the functions of a module remember, for what was patched."""
    for value in vars(module).values():
        if hasattr(value, "cache_clear"):
            value.cache_clear()


@pytest.mark.parametrize("host", CLASSES)
def test_derived_classes_and_model_types_keep_their_names(host: str):
    for name in CLASSES[host].split():
        made = getattr(hf_heads.models, name)
        assert (made.__module__, made.__name__) == ("hf_heads.models", name)
    config = hf_heads.heads_config(TWINS[host].model().config, MheSpec())
    assert config.model_type == f"heads_{host}"


@pytest.mark.parametrize("method", TENSORS)
def test_checkpoints_keep_the_names_of_tensors_and_the_section_heads(method: str):
    spec, tensors, settings = TENSORS[method]
    model, _ = hf_heads.convert(TWINS["bert"].model(), spec, calibration="none")
    block = "encoder.layer.0.attention.self"
    prefix = f"bert.{block}."
    assert {name.removeprefix(prefix) for name in model.state_dict() if name.startswith(prefix)} == {*tensors.split()}
    section = json.loads(model.config.to_json_string())["heads"]
    assert section.keys() == {"format", "blocks"} and section["format"] == 1
    assert section["blocks"].keys() == {block, block.replace("0", "1")}
    found = section["blocks"][block]
    assert found["method"] == spec.method and set(settings.split()) <= found.keys()


def test_the_report_beside_a_checkpoint_keeps_its_keys(run: Run, bert_folder: Path, tmp_path: Path):
    options = ("--to", "low-rank", "--rank", 8, "--calibration-samples", 16, "--output", tmp_path / "out")
    assert run("convert", bert_folder, *options).code == 0
    assert {"config.json", "model.safetensors", "README.md", "modeling_heads_bert.py"} <= {
        path.name for path in (tmp_path / "out").iterdir()
    }
    report = json.loads((tmp_path / "out" / "heads_report.json").read_text())
    assert set(REPORT.split()) <= report.keys()
    assert all(set(REPORT_BLOCK.split()) <= block.keys() for block in report["blocks"])
    assert set(report["drift"]) == {"random"}
    assert {"cosine", "max_difference", "kl", "agreement"} <= report["drift"]["random"].keys()
    assert {"source", "columns", "label", "samples", "seed"} <= report["calibration_choice"].keys()


@pytest.mark.parametrize("command", FLAGS)
def test_commands_take_the_flags_that_they_took(command: str):
    commands = next(one for one in build_parser()._actions if isinstance(one, argparse._SubParsersAction)).choices
    known = {flag for action in commands[command]._actions for flag in action.option_strings}
    assert set(FLAGS[command].split()) <= known
