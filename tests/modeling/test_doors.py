"""What stands at the doors: kernels that converted attention does not have, and maps of uneven numbers of heads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModel

import hf_heads
from hf_heads import HeadsError, MgkSpec, PrunedSpec
from tests.support.twins import TWINS

PRUNED = {"*layer.0*": PrunedSpec(kept=(1, 3)), "*": PrunedSpec(kept=())}


@pytest.mark.parametrize("wanted", ["flash_attention_2", "flash_attention_3", "flex_attention", "paged|eager"])
def test_kernels_that_converted_attention_does_not_have_are_refused(tmp_path: Path, wanted: str):
    model = hf_heads.convert(TWINS["bert"].model(), PRUNED, calibration="none")[0]
    model.save_pretrained(tmp_path)
    said = rf"attn_implementation '{wanted.replace('|', '.')}' .* give 'sdpa' .* or 'eager'"
    with pytest.raises(HeadsError, match=said):
        AutoModel.from_pretrained(tmp_path, attn_implementation=wanted)
    with pytest.raises(HeadsError, match=said):
        model.set_attn_implementation(wanted)
    assert AutoModel.from_pretrained(tmp_path).config._attn_implementation == "sdpa"


def test_maps_are_padded_at_the_places_of_their_heads():
    model = hf_heads.convert(TWINS["bert"].model(), PRUNED, calibration="none")[0]
    inputs = TWINS["bert"].inputs()
    with torch.no_grad():
        outputs = model(**inputs, output_attentions=True)
    assert [maps.shape[1] for maps in outputs.attentions] == [2, 0]
    padded = hf_heads.pad_attentions(model, outputs)
    assert type(padded) is type(outputs) and padded.logits is outputs.logits
    first, second = padded.attentions
    assert first.shape == second.shape == (3, 4, 9, 9)
    assert torch.equal(first[:, [1, 3]], outputs.attentions[0]) and not first[:, [0, 2]].any() and not second.any()


def test_maps_of_encoders_decoders_and_merged_heads_are_padded():
    spec = {"encoder.*": MgkSpec(merge=2), "*": PrunedSpec(kept=(3,))}
    model = hf_heads.convert(TWINS["marian"].model(), spec, calibration="none")[0]
    with torch.no_grad():
        outputs = model(**TWINS["marian"].inputs(), output_attentions=True)
    padded = hf_heads.pad_attentions(model, outputs)
    for name in ("encoder_attentions", "decoder_attentions", "cross_attentions"):
        assert {maps.shape[1] for maps in padded[name]} == {4}
    assert torch.equal(padded.encoder_attentions[0][:, :2], outputs.encoder_attentions[0])
    assert torch.equal(padded.cross_attentions[0][:, 3:], outputs.cross_attentions[0])


def test_outputs_without_maps_are_refused():
    model = hf_heads.convert(TWINS["bert"].model(), PRUNED, calibration="none")[0]
    with torch.no_grad(), pytest.raises(HeadsError, match="attn_implementation='eager'"):
        hf_heads.pad_attentions(model, model(**TWINS["bert"].inputs()))
