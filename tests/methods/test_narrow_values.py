"""Values of less width: no loss where heads read no more of them, the best ones elsewhere, or refused."""

from __future__ import annotations

import pytest
import torch
from transformers import PreTrainedModel

import hf_heads
from hf_heads import HeadsError, LowRankSpec, PrunedSpec
from hf_heads.attention.hosts.blocks import find_blocks
from hf_heads.attention.hosts.reading import read_host
from hf_heads.core.statistics import BlockStatistics, Moments
from hf_heads.jobs.export.building import native_of
from hf_heads.methods.low_rank import from_dense
from hf_heads.modeling.blocks import read_block
from tests.support.sound_twins import SOUND_TWINS
from tests.support.text_twins import TEXT_TWINS
from tests.support.twins import HEADS, TWINS, WIDTH, logits

DIM = WIDTH // HEADS


def read_a_half(model: PreTrainedModel) -> None:
    """Let all heads read the same half of the directions of their values."""
    half = torch.randn(DIM, DIM // 2, generator=torch.Generator().manual_seed(4))
    for block in find_blocks(model):
        weight = block.output.weight.data
        heads = weight.view(len(weight), -1, DIM)
        heads.copy_(heads[..., : DIM // 2] @ half.T)


@pytest.mark.parametrize("name", ["bert", "llama", "qwen2", "modernbert", "whisper"])
def test_values_are_narrowed_without_loss_to_what_heads_read(name: str):
    """Whichever biases a host has, and where several heads read one value: joint directions of them all."""
    twin = {**TEXT_TWINS, **TWINS, **SOUND_TWINS}[name]
    model = twin.model()
    read_a_half(model)
    held = read_host(*_first(model)).shape.memory_heads
    wanted = logits(model, twin.inputs())
    for calibration in ("none", [twin.inputs()]):
        spec = LowRankSpec(value_rank=held * DIM // 2)
        converted, report = hf_heads.convert(model, spec, calibration=calibration)
        assert max(block.error for block in report.blocks) < 1e-6
        assert (logits(converted, twin.inputs()) - wanted).abs().max() < 2e-5 * max(1.0, float(wanted.abs().max()))
    for block in report.blocks:
        assert block.cache_before - block.cache == held * DIM // 2 and block.parameters < block.parameters_before
    if name == "llama":
        native = native_of(converted)
        assert (logits(native, twin.inputs()) - wanted).abs().max() < 2e-5 * float(wanted.abs().max())


def _first(model: PreTrainedModel) -> tuple:
    block = find_blocks(model)[0]
    return block.module, block.site, block.output


def test_narrow_values_are_the_best_for_what_the_output_reads_from_the_data():
    """No other directions of a head's value-output map lose less of what it makes of tokens, on average."""
    dense = read_host(*_first(TWINS["bert"].model()))
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randn(400, WIDTH, generator=generator).double() * torch.linspace(0.1, 2, WIDTH) + 0.5
    moments = Moments(WIDTH)
    moments.update(tokens)
    spec = LowRankSpec(value_rank=HEADS * 3).resolve(dense.shape)
    found = from_dense(dense, BlockStatistics(moments, moments), spec).weights
    value, output = found["value.weight"].view(HEADS, 3, WIDTH), found["output.weight"].T.view(HEADS, 3, WIDTH)
    double = dense.double()
    centred = tokens - tokens.mean(0)
    for head in range(HEADS):
        wanted = centred @ double.value[head] @ double.output[head]
        best = torch.linalg.svdvals(wanted)[3:].square().sum()
        assert (wanted - centred @ value[head].T @ output[head]).square().sum() < 1.01 * best  # for its ridge


def test_a_rank_of_either_side():
    twin = TWINS["bert"]
    model, report = hf_heads.convert(twin.model(), LowRankSpec(rank=8, value_rank=20), calibration=[twin.inputs()])
    again, _ = hf_heads.convert(model, LowRankSpec(rank=8, value_rank=400), calibration="none")
    assert (logits(again, twin.inputs()) - logits(model, twin.inputs())).abs().max() < 1e-4
    for block, row in zip(find_blocks(model), report.blocks, strict=True):
        parameters = [*block.module.parameters(), *block.output.parameters()]
        assert row.parameters == sum(one.numel() for one in {id(one): one for one in parameters}.values())
        assert row.cache == 28 and read_block(block).value.shape == (HEADS, WIDTH, 5)


@pytest.mark.parametrize(
    ("name", "spec", "text"),
    [
        ("llama", LowRankSpec(rank=16), r"since positions turn them.*value_rank alone, from 2 to 16 \(lossless\)"),
        ("gpt_bigcode", LowRankSpec(energy=0.5), r"value_rank alone, from 1 to 8"),
        ("bert", LowRankSpec(), r"low-rank needs a rank"),
        ("bert", LowRankSpec(value_rank=6), r"not a multiple of 4, the number of value heads.*try 4 or 8"),
        ("bert", LowRankSpec(value_rank=36), r"value rank 36 exceeds the 32"),
        ("bert", LowRankSpec(value_rank=8, allocate=True), r"allocate spreads a rank"),
    ],
)
def test_what_does_not_fit_is_refused(name: str, spec: LowRankSpec, text: str):
    with pytest.raises(HeadsError, match=text):
        hf_heads.convert({**TEXT_TWINS, **TWINS}[name].model(), spec, calibration="none")


def test_what_values_alone_cannot_follow_is_refused():
    """Groups of unequal size, and queries and keys that are not those of a host."""
    for twin, before in ((TEXT_TWINS["llama"], PrunedSpec(kept=(0, 1, 2))), (TWINS["bert"], LowRankSpec(rank=8))):
        model = hf_heads.convert(twin.model(), before, calibration="none")[0]
        with pytest.raises(HeadsError, match=rf"is {before.method} already: convert the original instead"):
            hf_heads.convert(model, LowRankSpec(value_rank=8), calibration="none")
    model = hf_heads.convert(TWINS["bert"].model(), PrunedSpec(kept=(0, 2)), calibration="none")[0]
    narrow, _ = hf_heads.convert(model, LowRankSpec(value_rank=16), calibration="none")
    inputs = TWINS["bert"].inputs()
    assert (logits(narrow, inputs) - logits(model, inputs)).abs().max() < 1e-4
