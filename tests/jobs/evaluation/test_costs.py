"""What models cost, against counts by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import hf_heads
from hf_heads import HeadsError, PrunedSpec
from hf_heads.attention.hosts.blocks import find_blocks
from hf_heads.jobs.evaluation.costs import (
    check_lengths,
    count_multiply_adds,
    image_length,
    interleaved,
    measure_generation,
    measure_latency,
    measure_memory,
    peak_memory,
)
from hf_heads.jobs.evaluation.uniform import check_native, saved, saved_multiply_adds, uniform_attention
from tests.support.twins import HEADS, LAYERS, TWINS, WIDTH

CPU = torch.device("cpu")


def test_multiply_adds_of_bert_by_hand():
    model = TWINS["bert"].model("sdpa")
    for length in (4, 12):
        block = 4 * length * WIDTH * WIDTH + 2 * length * length * WIDTH
        head = length * WIDTH * (WIDTH + 99)
        assert count_multiply_adds(model, length) == LAYERS * (block + 2 * length * WIDTH * 48) + head
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("name", ["bert", "marian", "vit"])
def test_pruned_heads_are_fewer_multiply_adds(name: str):
    model = TWINS[name].model()
    length = image_length(model) or 12
    half, _ = hf_heads.convert(model, PrunedSpec(kept=(0, 1)), calibration="none")
    head = WIDTH // HEADS
    saved = sum(4 * length * WIDTH * 2 * head + 2 * length**2 * 2 * head for _ in find_blocks(model))
    assert count_multiply_adds(model, length) - count_multiply_adds(half, length) == saved


@pytest.mark.parametrize("name", list(TWINS))
def test_uniform_attention_saves_queries_keys_and_scores(name: str):
    model = TWINS[name].model()
    control = uniform_attention(model)
    maps = []
    for block in find_blocks(control):
        block.module.register_forward_hook(lambda _, inputs, output: maps.append(output[1]))
    with torch.no_grad():
        control(**TWINS[name].inputs())
    for one in maps:  # all that is attended to is attended to alike
        assert ((one == 0) | ((one - one.amax(-1, keepdim=True)).abs() < 1e-6)).all()
    length = image_length(model) or 12
    blocks = [block for block in find_blocks(model) if not (name == "bert-decoder" and block.kind == "cross")]
    assert saved_multiply_adds(model, length) == len(blocks) * (2 * length * WIDTH**2 + length**2 * WIDTH)
    spared = [saved(block) for block in blocks]
    assert spared[0].parameters == 2 * (WIDTH + 1) * WIDTH and spared[0].cache == WIDTH
    native = find_blocks(model)[0].module
    assert torch.equal(getattr(native, find_blocks(model)[0].site.query).weight != 0, torch.ones(WIDTH, WIDTH) > 0)


def megabytes(count: int) -> torch.Tensor:
    return torch.empty(count, 2**20, dtype=torch.uint8)


def keep_two_of_three() -> torch.Tensor:
    first = megabytes(3)
    second = megabytes(2)
    del first
    third = megabytes(4)
    del second
    return third


@pytest.mark.parametrize(
    ("run", "wanted"),
    [(keep_two_of_three, 6), (lambda: megabytes(1), 1), (lambda: [megabytes(1) for _ in range(3)], 3)],
)
def test_peak_memory_sees_what_is_freed(run: Callable[[], object], wanted: int):
    held = megabytes(7)  # what was there before does not count
    assert peak_memory(run, CPU) == wanted * 2**20
    del held


def test_peak_memory_of_a_layer_is_its_outputs():
    layers = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Linear(256, 64))
    inputs = torch.randn(128, 64)
    with torch.inference_mode():
        assert peak_memory(lambda: layers(inputs), CPU) == 2 * 128 * 256 * 4


def test_every_twin_is_timed_and_weighed():
    for name in ("bert", "vit", "marian"):
        model = TWINS[name].model("sdpa")
        length = image_length(model) or 8
        first, second = measure_latency([model, model], 2, length, 0.0)
        assert first.ratio == 1 and second.ratio == pytest.approx(first.milliseconds / second.milliseconds)
        assert first.tokens_per_second == pytest.approx(2 * length / first.milliseconds * 1000)
        assert (first.images_per_second is not None) == (name == "vit")
        small, large = (measure_memory(model, batch, length).bytes for batch in (1, 4))
        assert 0 < small < large
    one, _ = measure_generation([model, model], 2, 0.0)
    assert one.tokens_per_second > 0 and one.ratio == 1


def test_speeds_say_how_much_they_vary():
    model = TWINS["bert"].model("sdpa")
    same, other = measure_latency([model, model], 2, 8, 0.0)
    assert (same.ratio_low, same.ratio_high) == (1, 1)
    assert other.ratio_low is not None and other.ratio_high is not None
    assert 0 < other.ratio_low <= other.ratio_high


def test_runs_take_turns():
    order: list[int] = []
    interleaved([lambda: order.append(0), lambda: order.append(1)], 0.0)
    assert order == [0, 1] * 4


def test_lengths_beyond_the_positions_are_refused():
    with pytest.raises(HeadsError, match="length 41 exceeds the 40 positions of twin"):
        check_lengths(TWINS["bert"].model(), (8, 41), "twin")
    half, _ = hf_heads.convert(TWINS["bert"].model(), PrunedSpec(kept=(0, 1)), calibration="none")
    with pytest.raises(HeadsError, match="--no-control"):
        check_native(half)
