"""All roads of loading: the same outputs as the model that was saved, or an error."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, PreTrainedModel

from hf_heads import models
from hf_heads.attention.hosts.table import architectures
from tests.modeling.test_parts import SPECS, converted, inputs_of
from tests.support.twins import TWINS

PLACES = {"bert": ("", "bert"), "vit": ("", "vit"), "marian": ("", "model", "model.encoder", "model.decoder")}


def native_class(folder: Path) -> Any:
    config = AutoConfig.from_pretrained(folder)
    return getattr(architectures()[config.model_type.removeprefix("heads_")].modeling, named(folder)[5:])


def named(folder: Path) -> str:
    return AutoConfig.from_pretrained(folder).architectures[0]


def of_state(make: Any, folder: Path) -> PreTrainedModel:
    state = load_file(folder / "model.safetensors")
    return make.from_pretrained(None, config=AutoConfig.from_pretrained(folder), state_dict=state)


ROADS: dict[str, Callable[[Path], Any]] = {
    "the class that config.json names": lambda folder: getattr(models, named(folder)).from_pretrained(folder),
    "the same with a config": lambda folder: getattr(models, named(folder)).from_pretrained(
        folder, config=AutoConfig.from_pretrained(folder)
    ),
    "the same with a state dict": lambda folder: of_state(getattr(models, named(folder)), folder),
    "AutoModel": AutoModel.from_pretrained,
    "native": lambda folder: native_class(folder).from_pretrained(folder),
    "native with a config": lambda folder: native_class(folder).from_pretrained(
        folder, config=AutoConfig.from_pretrained(folder)
    ),
    "native with a state dict": lambda folder: of_state(native_class(folder), folder),
    "a user's subclass": lambda folder: type("Mine", (native_class(folder),), {}).from_pretrained(
        folder, config=AutoConfig.from_pretrained(folder)
    ),
}


def outcome(road: Callable[[Path], Any], folder: Path, wanted: PreTrainedModel, inputs: dict[str, Any]) -> str:
    try:
        found = road(folder)
    except (ValueError, RuntimeError, OSError):
        return "error"
    if type(found) is not type(wanted):  # AutoModel makes the base model, which lies inside
        wanted = wanted.base_model
    found.set_attn_implementation("eager")
    with torch.no_grad():
        return "same" if torch.equal(found.eval()(**inputs)[0], wanted.eval()(**inputs)[0]) else "different"


@pytest.mark.full
@pytest.mark.parametrize("host", PLACES)
def test_every_road_leads_to_the_same_outputs_or_an_error(tmp_path: Path, host: str):
    counts: Counter[str] = Counter()
    for method in SPECS:
        whole = converted(host, method).eval()
        for number, place in enumerate(PLACES[host]):
            wanted, folder = whole.get_submodule(place), tmp_path / method / str(number)
            wanted.save_pretrained(folder)
            inputs = inputs_of(place) if host == "marian" else TWINS[host].inputs()
            for name, road in ROADS.items():
                found = outcome(road, folder, wanted, inputs)
                assert found in ("same", "error"), (method, place, name)
                assert found == "same" or "native" in name or "subclass" in name or "AutoModel" in name, (place, name)
                counts[found] += 1
    print(host, dict(counts))
    assert sum(counts.values()) == len(SPECS) * len(PLACES[host]) * len(ROADS) and counts["same"] >= 30
