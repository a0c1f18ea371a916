"""Calibration: data from anywhere, streamed statistics against naive ones, the refit and its guard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import PreTrainedModel

import hf_heads
from hf_heads import CollabSpec, HeadsError
from hf_heads.attention.hosts.blocks import find_blocks
from hf_heads.attention.hosts.reading import read_host
from hf_heads.core.statistics import Moments
from hf_heads.io.checkpoints.sources import Source
from hf_heads.io.data.calibration import CalibrationChoice, calibration_data, load_data
from hf_heads.jobs.conversion.report import Report
from hf_heads.jobs.conversion.statistics import collect_statistics
from hf_heads.jobs.evaluation.drift import measure_drift
from hf_heads.jobs.scoring.probe import memory_mask
from hf_heads.modeling.blocks import share_weights
from hf_heads.modeling.classes import adopt
from tests.support.text_twins import TEXT_TWINS
from tests.support.tokenizers import save_image_processor, save_marian_tokenizer, save_tokenizer
from tests.support.twins import TWINS, WIDTH


def test_moments_are_those_of_all_rows():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(50, 6, generator=generator) + 3
    moments = Moments(6)
    for part in rows.split(7):
        moments.update(part)
    assert torch.allclose(moments.mean, rows.double().mean(0))
    assert torch.allclose(moments.covariance, torch.cov(rows.double().T, correction=0))
    root, inverse = moments.square_root()
    assert torch.allclose(root @ inverse, torch.eye(6, dtype=torch.float64), atol=1e-8)
    ridge = 1e-3 * moments.covariance.diagonal().mean() * torch.eye(6)
    assert torch.allclose(root @ root, moments.covariance + ridge)


@pytest.mark.parametrize("name", ["bert", "bert-decoder", "marian", "vit"])
def test_statistics_see_tokens_and_not_padding(name: str):
    """Against activations that are kept, which the package never does."""
    twin = TWINS[name]
    model, inputs = twin.model(), twin.inputs()
    for block in find_blocks(model):
        seen: dict[str, torch.Tensor] = {}

        def hook(
            _: object, args: tuple, kwargs: dict, seen: dict = seen, memory: str | None = block.site.memory
        ) -> None:
            seen["query"] = kwargs.get("hidden_states", args[0] if args else None)
            seen["key"] = kwargs.get(memory) if memory else seen["query"]

        handle = block.module.register_forward_pre_hook(hook, with_kwargs=True)
        with torch.no_grad():
            model(**inputs)
        handle.remove()
        statistics = collect_statistics(model, block, read_host(block.module, block.site, block.output), [inputs])
        for side, moments in (("query", statistics.query), ("key", statistics.key)):
            mask = inputs.get(block.site.query_mask if side == "query" else memory_mask(block, inputs))
            rows = seen[side][mask.bool()] if mask is not None else seen[side].flatten(0, 1)
            assert moments.weight == len(rows)
            assert torch.allclose(moments.mean, rows.double().mean(0), atol=1e-6)
        assert (statistics.query is statistics.key) == (block.kind != "cross")


def test_head_energy_is_its_formula_written_out():
    twin = TWINS["marian"]
    model, inputs = twin.model(), twin.inputs()
    for block in find_blocks(model):
        dense = read_host(block.module, block.site, block.output)
        statistics = collect_statistics(model, block, dense, [inputs])
        outputs: list[torch.Tensor] = []
        memory: list[torch.Tensor] = []

        def hook(_: object, args: tuple, kwargs: dict, output: tuple) -> None:
            outputs.append(output[1])  # noqa: B023
            states = kwargs.get("hidden_states", args[0] if args else None)
            memory.append(kwargs.get("key_value_states", states))  # noqa: B023

        handle = block.module.register_forward_hook(hook, with_kwargs=True)
        with torch.no_grad():
            model(**inputs)
        handle.remove()
        moved = dense.values(memory[0]) @ dense.output  # (batch, heads, source, width)
        queries = inputs[block.site.query_mask].bool()
        wanted = torch.zeros(dense.shape.heads)
        for example, target in queries.nonzero():
            for head in range(dense.shape.heads):
                weights, vectors = outputs[0][example, head, target], moved[example, head]
                mean = weights @ vectors
                wanted[head] += weights @ (vectors - mean).square().sum(-1)
        wanted /= queries.sum()
        assert torch.allclose(statistics.head_energy.float(), wanted, rtol=1e-4)


def many(count: int) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, 98, (count, 8, 10), generator=generator)
    return [{"input_ids": part, "attention_mask": torch.ones_like(part)} for part in ids]


def convert(model: PreTrainedModel, rank: int = 4, **more: Any) -> tuple[PreTrainedModel, Report]:
    """To collab, whose scores are not refined: that is another matter."""
    return hf_heads.convert(model, CollabSpec(rank=rank), objective="scores", **more)


def test_the_refit_helps_on_data_that_it_has_not_seen():
    model = TWINS["bert"].model()
    data = many(40)
    drifts = {}
    for refit in (True, False):
        converted, report = convert(model, calibration=data[:30], refit=refit)
        drifts[refit] = measure_drift(converted, model, data[30:]).kl
        assert any(block.refit_gain for block in report.blocks) == refit
    assert drifts[True] < drifts[False]


def test_the_refit_is_guarded_against_too_little_data():
    model = TWINS["bert"].model()
    unseen = many(40)[30:]
    few = [{name: value[:4] for name, value in many(1)[0].items()}]
    drifts = [
        measure_drift(convert(model, calibration=few, refit=refit)[0], model, unseen).kl for refit in (True, False)
    ]
    assert drifts[0] < 1.1 * drifts[1]


def test_calibration_beats_the_weights_alone():
    model = TWINS["bert"].model()
    data = many(40)
    kl = [
        measure_drift(convert(model, rank=8, calibration=batches)[0], model, data[30:]).kl
        for batches in (data[:30], None)
    ]
    assert kl[0] < kl[1]


def test_shared_weights_are_shared_and_structures_are_not():
    model = TWINS["bert"].model()
    twin = share_weights(model)
    assert {p.data_ptr() for p in twin.parameters()} == {p.data_ptr() for p in model.parameters()}
    adopt(twin)
    assert type(model).__name__ == "BertForMaskedLM" and type(twin).__name__ == "HeadsBertForMaskedLM"


def test_data_that_never_reaches_a_block_is_refused():
    inputs = {name: value for name, value in TWINS["bert-decoder"].inputs().items() if "encoder" not in name}
    with pytest.raises(HeadsError, match="never reaches"):
        hf_heads.convert(TWINS["bert-decoder"].model(), CollabSpec(rank=4), calibration=[inputs])
    with pytest.raises(HeadsError, match="empty"):
        hf_heads.convert(TWINS["bert"].model(), CollabSpec(rank=4), calibration=[])


@pytest.mark.parametrize("name", ["bert", "vit", "marian"])
def test_data_made_from_nothing(name: str, tmp_path: Path):
    model = TWINS[name].model()
    model.save_pretrained(tmp_path)
    if name == "bert":
        save_tokenizer(tmp_path)
    choices = [CalibrationChoice(samples=20, seed=seed) for seed in (0, 0, 1)]
    one, same, other = (calibration_data(Source("x", tmp_path), model, choice) for choice in choices)
    first = [next(iter(data.batches[0].values())) for data in (one, same, other)]
    assert torch.equal(first[0], first[1])
    assert first[0].shape != first[2].shape or not torch.equal(first[0], first[2])
    count = sum(len(next(iter(batch.values()))) for batch in one.batches)
    assert count + sum(len(next(iter(batch.values()))) for batch in one.held_out) == 20 + 64
    with torch.no_grad():
        model(**one.batches[0])
    if name == "bert":
        ids, mask = one.batches[0]["input_ids"], one.batches[0]["attention_mask"]
        assert (ids[:, 0] == 2).all() and not torch.isin(
            ids[:, 1][mask[:, 2].bool()], torch.tensor([0, 1, 2, 3, 4])
        ).any()


def test_a_folder_of_images_and_a_parquet_of_images(tmp_path: Path):
    model = TWINS["vit"].model()
    model.save_pretrained(tmp_path / "model")
    save_image_processor(tmp_path / "model")
    (tmp_path / "images").mkdir()
    for index in range(12):
        Image.new("RGB", (20, 24), (index * 20, 40, 90)).save(tmp_path / "images" / f"{index}.png")
    import datasets

    table = datasets.Dataset.from_dict({"picture": [str(path) for path in sorted((tmp_path / "images").iterdir())]})
    table.cast_column("picture", datasets.Image()).to_parquet(tmp_path / "images.parquet")
    for source in ("images", "images.parquet"):
        data = load_data(CalibrationChoice(str(tmp_path / source), samples=9), model, tmp_path / "model")
        assert data.batches[0]["pixel_values"].shape[1:] == (3, 16, 16)
        assert sum(len(batch["pixel_values"]) for batch in [*data.batches, *data.held_out]) == 12
        hf_heads.convert(model, CollabSpec(rank=WIDTH), calibration=data.batches)


def test_pairs_for_translation(tmp_path: Path):
    model = TWINS["marian"].model()
    save_marian_tokenizer(tmp_path)
    file = tmp_path / "pairs.jsonl"
    file.write_text('{"id": 1, "en": "one two three", "de": "eins zwei"}\n' * 12)
    data = load_data(CalibrationChoice(str(file), samples=9), model, tmp_path)
    batch = data.batches[0]
    assert set(batch) == {"input_ids", "attention_mask", "decoder_input_ids", "decoder_attention_mask"}
    assert (batch["decoder_input_ids"][:, 0] == model.config.decoder_start_token_id).all()
    assert (batch["decoder_attention_mask"][:, 0] == 1).all()
    with pytest.raises(HeadsError, match="source and target"):
        load_data(CalibrationChoice(str(file), ("en",), samples=9), model, tmp_path)


def test_attention_is_measured_with_the_positions_that_turn_queries_and_keys():
    """The energy of heads on a rotary host, against the attention maps that the host itself returns."""
    twin = TEXT_TWINS["llama"]
    model, inputs = twin.model(), twin.inputs()
    block = find_blocks(model)[0]
    dense = read_host(block.module, block.site, block.output)
    with torch.no_grad():
        found = model(**inputs, output_attentions=True, output_hidden_states=True)
        states, weights = model.model.layers[0].input_layernorm(found.hidden_states[0]), found.attentions[0]
        alike = collect_statistics(model, block, dense, [inputs]).attention_gram
    mask = inputs.get("attention_mask", torch.ones(states.shape[:2])).bool()
    rows = weights.transpose(1, 2)[mask]  # (tokens, heads, source)
    wanted = (rows @ rows.mT).mean(0).double()
    assert (alike - wanted).abs().max() < 1e-5
