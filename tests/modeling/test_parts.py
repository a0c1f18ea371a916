"""Parts of a model that are saved alone: an encoder, a decoder, an inner model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModel, PreTrainedModel

import hf_heads
from hf_heads import HeadsError, models
from hf_heads.attention.hosts.blocks import find_blocks
from hf_heads.attention.module import HeadsAttention
from tests.support.twins import TWINS

SPECS = {
    "collab": hf_heads.CollabSpec(rank=10),
    "low-rank": hf_heads.LowRankSpec(rank=4),
    "mgk": hf_heads.MgkSpec(),
    "mhe": hf_heads.MheSpec(),
    "pruned": hf_heads.PrunedSpec(kept=(0, 2)),
}


def converted(host: str, method: str) -> PreTrainedModel:
    return hf_heads.convert(TWINS[host].model(), SPECS[method], calibration="none")[0]


def inputs_of(part: str) -> dict[str, Any]:
    texts = TWINS["marian"].inputs()
    encoder = {name: texts[name] for name in ("input_ids", "attention_mask")}
    memory = {"encoder_hidden_states": torch.ones(3, 9, 32), "encoder_attention_mask": texts["attention_mask"]}
    decoder = {name: texts[f"decoder_{name}"] for name in ("input_ids", "attention_mask")} | memory
    return {"model.encoder": encoder, "model.decoder": decoder}.get(part, texts)


@pytest.mark.parametrize("method", SPECS)
@pytest.mark.parametrize("part", ["model", "model.encoder", "model.decoder"])
def test_a_part_round_trips_alone(tmp_path: Path, part: str, method: str):
    wanted = converted("marian", method).get_submodule(part)
    wanted.save_pretrained(tmp_path)
    (name,) = AutoConfig.from_pretrained(tmp_path).architectures
    found = getattr(models, name).from_pretrained(tmp_path, attn_implementation="eager")
    assert wanted.state_dict().keys() == found.state_dict().keys()
    assert all(torch.equal(tensor, found.state_dict()[key]) for key, tensor in wanted.state_dict().items())
    with torch.no_grad():
        assert torch.equal(*(one.eval()(**inputs_of(part))[0] for one in (wanted, found)))


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_an_auto_class_that_makes_the_whole_model_refuses_a_part_and_names_its_class(tmp_path: Path, part: str):
    converted("marian", "collab").get_submodule(f"model.{part}").save_pretrained(tmp_path)
    with pytest.raises(HeadsError, match=rf"hf_heads\.models\.HeadsMarian{part.title()}"):
        AutoModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("part", ["Encoder", "Decoder"])
def test_a_part_is_built_from_a_config_with_its_own_blocks(part: str):
    made = getattr(models, f"HeadsMarian{part}")(converted("marian", "collab").config)
    blocks = find_blocks(made)
    assert blocks and all(isinstance(block.module, HeadsAttention) for block in blocks)
    assert all(block.name.startswith(part.lower()) for block in blocks)


def test_a_native_part_is_converted_like_a_model():
    encoder = TWINS["marian"].model().get_encoder()
    wanted, (found, _) = encoder, hf_heads.convert(encoder, hf_heads.CollabSpec(rank=32), calibration="none")
    assert type(found).__name__ == "HeadsMarianEncoder" and len(found.config.block_specs()) == 2
    inputs = inputs_of("model.encoder")
    with torch.no_grad():
        assert (wanted(**inputs)[0] - found(**inputs)[0]).abs().max() < 1e-5
