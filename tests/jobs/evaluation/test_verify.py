"""The command verify: what it must not let pass."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from hf_heads import HeadsError
from hf_heads.jobs.evaluation.verify import verify
from tests.support.cli import Run, check_refused

RECIPE = 'base = "x"\npaper = "y"\n[heads]\nmethod = "collab"\nrank = 8\n[expect]\n'


@pytest.fixture
def converted(run: Run, bert_folder: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "converted"
    found = run("convert", bert_folder, "--to", "collab", "--rank", 8, "--calibrate", "none", "--output", folder)
    assert found.code == 0, found.err
    return folder


def overflow(folder: Path) -> None:
    """Make the attention of a converted checkpoint overflow, in finite weights."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    for name, tensor in tensors.items():
        if "shared_query" in name or "shared_key" in name:
            tensor.fill_(1e38)
    save_file(tensors, file, metadata={"format": "pt"})


def test_a_model_whose_outputs_are_nan_fails(run: Run, converted: Path):
    overflow(converted)
    for options in ((), ("--min-cosine", 0.99), ("--tolerance", 100)):
        found = run("verify", converted, "--json", *options)
        assert found.code == 1
        assert any("NaN" in failure for failure in found.json["failures"])
        assert "NaN" not in found.out.replace("contain NaN or Inf", "")


def test_a_recipe_that_expects_a_cosine_fails_a_nan(run: Run, converted: Path, tmp_path: Path):
    overflow(converted)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE + "cosine = 0.1\n")
    found = run("verify", converted, "--recipe", recipe, "--json")
    assert any(failure.startswith("cosine is nan, expected at least 0.1") for failure in found.json["failures"])


@pytest.mark.parametrize("option", ["--min-cosine", "--tolerance"])
@pytest.mark.parametrize("value", ["nan", "inf", "-2", "x"])
def test_limits_that_every_model_would_pass_are_refused(run: Run, tmp_path: Path, option: str, value: str):
    check_refused(run("verify", tmp_path, f"{option}={value}"), option, f"'{value}' is not a number from", code=2)
    name = option[2:].replace("-", "_")
    if value != "x":
        with pytest.raises(HeadsError, match=f"{name} is .*, expected a number from"):
            verify(tmp_path, **{name: float(value)})


@pytest.mark.parametrize("line", ["cosine = nan", "cosine = 2", "agreement = -1", "model_parameters = 1.5"])
def test_recipes_with_figures_that_say_nothing_are_refused(run: Run, tmp_path: Path, line: str):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE + line + "\n")
    check_refused(run("verify", tmp_path, "--recipe", recipe), "recipe.toml", f"[expect]: {line.replace('=', 'is')}")
