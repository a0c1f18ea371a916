"""Recipes: every one is parsed, sized on its real architecture and dry-run on a tiny twin."""

from __future__ import annotations

import dataclasses
import fnmatch
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel, MarianConfig, MarianModel, ViTConfig, ViTModel

import hf_heads
from hf_heads import HeadsError, HeadsSpec
from hf_heads.attention.hosts.blocks import find_blocks
from hf_heads.attention.hosts.reading import host_shape, read_host
from hf_heads.attention.spec import BlockProfile
from hf_heads.core.statistics import BlockStatistics
from hf_heads.jobs.conversion.recipes import Recipe, load_recipe
from tests.support.matrix import only
from tests.support.twins import TWINS, WIDTH

RECIPES = sorted(Path("conversions").glob("*.toml"))
OPUS = dict(
    d_model=512,
    encoder_layers=6,
    decoder_layers=6,
    encoder_attention_heads=8,
    decoder_attention_heads=8,
    encoder_ffn_dim=2048,
    decoder_ffn_dim=2048,
    vocab_size=58101,
    decoder_vocab_size=58101,
    pad_token_id=58100,
)
# The public architectures, as their model cards tell them.
HOSTS = {
    "bert-base-uncased": ("bert", lambda: BertModel(BertConfig())),
    "google/vit-base-patch16-224": ("vit", lambda: ViTModel(ViTConfig())),
    "Helsinki-NLP/opus-mt-en-de": ("marian", lambda: MarianModel(MarianConfig(**OPUS))),
    "sentence-transformers/all-MiniLM-L6-v2": (
        "bert",
        lambda: BertModel(BertConfig(hidden_size=384, num_hidden_layers=6, intermediate_size=1536)),
    ),
}


@pytest.fixture(params=RECIPES, ids=lambda path: path.stem)
def recipe(request: pytest.FixtureRequest) -> Recipe:
    return load_recipe(request.param)


def test_there_are_recipes():
    assert len(RECIPES) >= 5


def test_expected_sizes_are_those_of_the_real_architecture(recipe: Recipe):
    with torch.device("meta"):
        model = HOSTS[recipe.base][1]()
    groups: dict[HeadsSpec, dict[str, BlockProfile]] = {}
    for block in find_blocks(model, recipe.blocks):
        shape = host_shape(block.module, block.site, block.output)
        spec = next(spec for pattern, spec in recipe.specs.items() if fnmatch.fnmatchcase(block.name, pattern))
        nothing = BlockStatistics.uninformed(shape)
        profile = BlockProfile(shape, read_host(block.module, block.site, block.output), nothing)
        groups.setdefault(spec, {})[block.name] = profile
    parameters = cache = 0
    for spec, profiles in groups.items():
        # Whichever heads go, sizes add up to the same: here one of every block in turn.
        heads = [(name, head) for head in range(12) for name in profiles if head < profiles[name].shape.heads]
        for name, planned in spec.plan(profiles, lambda *_, heads=heads, **__: heads).items():
            shape = planned.reshape(profiles[name].shape)
            parameters += planned.parameters(shape)
            cache += planned.cache_per_token(shape)
    assert recipe.expect["attention_parameters"] == parameters
    assert recipe.expect["cache_per_token"] == cache


# By default the first recipe of each method.
FIRST = {load_recipe(path).specs["*"].method: path.stem for path in reversed(RECIPES)}


@only(*FIRST.values(), name=[path.stem for path in RECIPES])
def test_a_dry_run_on_a_tiny_twin(name: str):
    recipe = load_recipe(f"conversions/{name}.toml")
    twin = TWINS[HOSTS[recipe.base][0]]
    share = {768: WIDTH / 768, 512: WIDTH / 512, 384: WIDTH / 384}[HOSTS[recipe.base][1]().config.hidden_size]
    specs = {}
    for pattern, spec in recipe.specs.items():
        smaller = {"rank": lambda rank: max(1, round(rank * share)), "groups": lambda _: 2}
        changes = {name: change(getattr(spec, name)) for name, change in smaller.items() if hasattr(spec, name)}
        specs[pattern] = dataclasses.replace(spec, **changes)
    _, report = hf_heads.convert(twin.model(), specs, calibration=[twin.inputs()], blocks=recipe.blocks)
    assert {block.name for block in report.blocks} == {block.name for block in find_blocks(twin.model(), recipe.blocks)}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("base='x'\npaper='p'\n[heads]\nmethod='pruned'\nkept=3", "kept is 3, expected a list of int"),
        ("base='x'\npaper='p'\n[heads]\nmethod='pruned'\nkept=['a']", "expected a list of int"),
        ("base='x'\npaper='p'\n[heads]\nmethod='pruned'\nkeep=0.5\nscore='x'", "score is 'x', expected one of"),
        ("base = 'x'", "paper is missing"),
        ("this is no toml", "is not valid TOML"),
        ("base='x'\npaper='p'\n[heads]\nrank=3", "names no method"),
        ("base='x'\npaper='p'\n[heads]\nmethod='zzz'", "unknown method 'zzz'"),
        ("base='x'\npaper='p'\n[heads]\nmethod='collab'\nrunk=3", "no setting 'runk'"),
        ("base='x'\npaper='p'\n[heads]\nmethod='collab'\nrank='3'", "rank is '3', expected int"),
        ("base='x'\npaper='p'\nzzz=1", "unknown entry 'zzz'"),
        ("base='x'\npaper='p'\n[heads]\nmethod='collab'\nrank=3\n[expect]\nzzz=1", "unknown entry 'zzz'"),
        ("base='x'\npaper='p'\n[heads]\nmethod='collab'\n[[heads.only]]\nmethod='collab'", "names no blocks"),
    ],
)
def test_recipes_that_have_no_meaning(tmp_path: Path, text: str, words: str):
    (tmp_path / "r.toml").write_text(text)
    with pytest.raises(HeadsError, match=words):
        load_recipe(tmp_path / "r.toml")


def test_a_recipe_may_name_the_heads_of_every_block(tmp_path: Path):
    path = tmp_path / "r.toml"
    path.write_text(
        "base='x'\npaper='p'\n[heads]\nmethod='pruned'\nkept=[0, 3]\n"
        "[[heads.only]]\nblocks='*.1.*'\nmethod='pruned'\nkept=[]\n"
    )
    recipe = load_recipe(path)
    _, report = hf_heads.convert(TWINS["bert"].model(), recipe.specs, calibration="none")
    assert [block.spec.kept for block in report.blocks] == [(0, 3), ()]


def test_calibration_on_several_sources_and_pairs(tmp_path: Path):
    head = "base='x'\npaper='p'\n[heads]\nmethod='collab'\nrank=3\n[calibration]\n"
    (tmp_path / "r.toml").write_text(head + "source=['a.txt', 'random']\npairs=true\nmax_length=64\npack=false\n")
    found = load_recipe(tmp_path / "r.toml").calibration
    assert (found.sources, found.pairs, found.max_length, found.pack) == (("a.txt", "random"), True, 64, False)
    for wrong in ("pairs='yes'", "max_length=0", "source=['a', 1]", "source=[]", "pack=1"):
        (tmp_path / "r.toml").write_text(head + wrong)
        with pytest.raises(HeadsError, match=wrong.partition("=")[0].replace("source", "data")):
            load_recipe(tmp_path / "r.toml")
