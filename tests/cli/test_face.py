"""What meets a newcomer: words that help where one was wrong, names that stay whole, a shell that completes."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from hf_heads.attention.hosts.table import refusal
from hf_heads.cli import console
from hf_heads.core.vocabulary import VERSION
from hf_heads.jobs.conversion.recipes import load_recipe, shipped_recipes
from tests.support.cli import Run, check_refused


def test_the_package_is_a_program():
    found = subprocess.run([sys.executable, "-m", "hf_heads", "--version"], capture_output=True, text=True)
    assert found.stdout == f"hf-heads {VERSION}\n"


@pytest.mark.parametrize(
    ("words", "meant", "code"),
    [
        (("conver",), "convert", 2),
        (("convert", "here", "--to", "colab"), "collab", 2),
        (("convert", "here", "--to", "collab", "--rnak", "3"), "--rank", 2),
        (("distill", "here", "--data", "random", "--output", "x", "--batchsize=3"), "--batch-size", 2),
        (("compare", "one", "two", "--metric", "spaerman"), "spearman", 2),
        (("convert", "--recipe", "all-MiniLM-collab-96"), "all-MiniLM-L6-v2-collab-96", 1),
    ],
)
def test_what_may_have_been_meant_is_said(run: Run, words: tuple[str, ...], meant: str, code: int):
    check_refused(run(*words), f"(did you mean '{meant}'?)", code=code)


def test_what_is_like_nothing_is_not_guessed(run: Run):
    found = run("convert", "here", "--to", "collab", "--xyzzy")
    assert found.code == 2 and "did you mean" not in found.err


def test_an_architecture_is_guessed():
    assert "no adapter for 'robertta' (did you mean 'roberta'?)" in str(refusal(SimpleNamespace(model_type="robertta")))


def test_options_of_convert_are_grouped_by_method_with_examples(run: Run):
    text = run("convert", "--help").out
    groups = [line.partition(" (")[0] for line in text.splitlines() if line.startswith("settings of")]
    assert groups[0] == "settings of several methods, named in brackets:"
    assert {f"settings of {name}" for name in ("collab", "mgk", "mhe", "pruned")} <= set(groups[1:])
    examples = text.partition("examples:\n")[2]
    assert examples.count("hf-heads convert") >= 4 and "--recipe all-MiniLM-L6-v2-collab-96" in examples


def drawn(width: int, **options: object) -> str:
    screen = io.StringIO()
    table = console.make_table("block", "kind", "settings", ">parameters", ">before", ">cache/token", ">before")
    for layer in range(2):
        name = f"encoder.layer.1{layer}.attention.self"
        table.add_row(name, "self", "collab rank 96 cp, 12 heads", "1,590,592", "2,360,064", "1,104", "1,536")
    console._Console(file=screen, width=width, highlight=False, **options).print(table)  # type: ignore[arg-type]
    return screen.getvalue()


def test_names_and_numbers_are_whole_at_eighty_columns():
    wide, narrow = drawn(160), drawn(80)
    assert "encoder.layer.10.attention.self   self" in wide
    assert max(map(len, narrow.splitlines())) <= 80
    for word in ("encoder.layer.10.attention.self", "encoder.layer.11.attention.self", "1,590,592", "2,360,064"):
        assert word in narrow, narrow
    assert narrow.count("collab rank 96 cp, 12 heads") == 2


def test_no_colour_where_none_is_wanted(monkeypatch: pytest.MonkeyPatch):
    def coloured() -> str:
        screen = io.StringIO()
        console._Console(file=screen, force_terminal=True).print("well", style="green")
        return screen.getvalue()

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[32m" in coloured()
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[32m" not in coloured()


@pytest.mark.parametrize("terminal", [True, False])
def test_a_terminal_is_told_of_long_imports(monkeypatch: pytest.MonkeyPatch, terminal: bool):
    screen = io.StringIO()
    monkeypatch.setattr(screen, "isatty", lambda: terminal)
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.delitem(sys.modules, "torch")
    console.quiet()
    assert screen.getvalue() == "hf-heads: loading torch and transformers\n" * terminal


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_bash_completes_commands_options_and_choices(run: Run, tmp_path: Path):
    script = tmp_path / "completion"
    script.write_text(run("completion", "bash").out)

    def completed(*words: str) -> set[str]:
        line = f"source {script}; COMP_WORDS=({' '.join(map(repr, words))}); COMP_CWORD={len(words) - 1}; _hf_heads; "
        found = subprocess.run(["bash", "-c", line + 'echo "${COMPREPLY[@]}"'], capture_output=True, text=True)
        assert not found.stderr
        return set(found.stdout.split())

    assert completed("hf-heads", "comp") == {"compare", "completion"}
    assert completed("hf-heads", "convert", "x", "--ra") == {"--rank"}
    assert completed("hf-heads", "convert", "x", "--form", "") == {"cp", "tucker"}
    assert completed("hf-heads", "completion", "") == {"bash", "zsh", "fish"}
    assert completed("hf-heads", "convert", "") == set()  # a file, which the shell completes


def test_other_shells_get_a_script_as_well(run: Run):
    assert "bashcompinit" in run("completion", "zsh").out
    fish = run("completion", "fish").out
    assert "-l rank -r" in fish and "-l form -x -a 'cp tucker'" in fish
    check_refused(run("completion", "bsh"), "(did you mean 'bash'?)", code=2)


def test_recipes_go_by_their_names(run: Run):
    shipped = shipped_recipes()
    assert {path.stem for path in Path("conversions").glob("*.toml")} == set(shipped)
    assert load_recipe("opus-mt-en-de-mhe-2") == load_recipe("conversions/opus-mt-en-de-mhe-2.toml")
    rows = run("recipes", "--json").json
    assert rows["opus-mt-en-de-mhe-2"]["settings"] == "mhe groups 2"
    assert all(name in run("recipes").out for name in rows)
