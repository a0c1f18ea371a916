"""The studies that train, on a few rows and steps: that they run, what they write, that a second call goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import run
import tables_of_papers
import torch
from studies.shared.attentions import E_STEPS, GAUSSIAN, LINEAR, SOFTMAX
from studies.shared.sequences import IGNORED
from transformers import BertModel

from tests.support.files import save_checkpoint, write_rows
from tests.support.tokenizers import NUMBERS
from tests.support.twins import bert_config


def results(name: str, folder: Path, *words: str) -> dict:
    common = ["--data", str(folder), "--work", str(folder / "work"), "--results", str(folder), "--threads", "1"]
    run.main([name, *words, *common])
    found = json.loads((folder / f"{name}.json").read_text())
    if table := getattr(tables_of_papers, name, None):
        assert table(found)[1].startswith("|---")
    return found


def test_nmt_scratch_shrinks_queries_and_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from studies.shared import translation

    monkeypatch.setattr(translation, "LONGEST", 4)
    words = list(NUMBERS)
    rows = [{"en": f"{words[place % 4]} {words[place % 3]}", "de": NUMBERS[words[place % 4]]} for place in range(40)]
    for part in ("train", "dev"):
        write_rows(tmp_path / f"{part}.jsonl", rows)
    sizes = {"width": 16, "heads": 4, "layers": 1, "inner": 16, "vocabulary": 300, "longest": 12, "measured": 1}
    sizes |= {"steps": 2, "batch": 8, "warmup": 1}
    given = [word for name, value in sizes.items() for word in (f"--{name}", str(value))]
    given += ["--train", str(tmp_path / "train.jsonl"), "--dev", str(tmp_path / "dev.jsonl"), "--widths", "8"]
    given += ["--kinds", "collab", "concatenated"]
    found = results("nmt_scratch", tmp_path, "--small", *given)
    rows = found["rows"]
    named = [(row["kind"], row["width"]) for row in rows]
    assert named == [("separate heads", 16), ("collab", 8), ("concatenated", 8)]
    most, *less = (row["parameters"] for row in rows)
    assert all(one < most for one in less)
    assert all(len(row["loss"]["values"]) == 2 and row["loss"]["low"] < row["loss"]["high"] for row in rows)
    assert "bleu_change" in rows[1] and found["seeds"] == [0, 1]
    (compared,) = found["shared_less_separate"]
    wanted = rows[1]["loss"]["mean"] - rows[2]["loss"]["mean"]
    assert compared["width"] == 8 and compared["loss"]["mean"] == pytest.approx(wanted)


def test_shared_heads_are_as_wide_as_asked_or_not_there():
    from studies.nmt_scratch import PAPER, spec_of

    assert [spec_of("mhe", wide, PAPER).groups_qk for wide in (256, 64)] == [4, 1]
    assert spec_of("mhe", 32, PAPER) is None and spec_of("concatenated", 32, PAPER).rank == 32


def test_glue_converts_a_tuned_model_and_tunes_it_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from studies import glue

    torch.manual_seed(0)
    save_checkpoint(BertModel(bert_config()), tmp_path / "bert")
    (tmp_path / "stsb").mkdir()
    rows = [{"sentence1": "word1", "sentence2": f"word{place % 9}", "score": place / 10} for place in range(40)]
    for part in ("train", "dev"):
        write_rows(tmp_path / "stsb" / f"{part}.jsonl", rows)
    words = [
        "--small",
        "--models",
        str(tmp_path / "bert"),
        "--ranks",
        "8",
        "--seeds",
        "1",
        "--tasks",
        "stsb",
        "--rows",
        "20",
    ]
    found = results("glue", tmp_path, *words)
    labels = ["original", "original, tuned again", "R = 8, by weights", "R = 8, by data"]
    assert [row["label"] for row in found["rows"]] == labels
    assert set(found["rows"][2]["metrics"]) == {"pearson", "spearman", "shot"}
    shots = {row["label"]: row["metrics"]["shot"]["mean"] for row in found["rows"][2:]}
    assert len(set(shots.values())) == 2 and (tmp_path / "figures" / "glue_stsb.png").is_file()
    monkeypatch.setattr(glue, "tune", lambda *_: pytest.fail("what is there already is used again"))
    assert results("glue", tmp_path, *words)["rows"] == found["rows"]


def test_metrics_of_glue_are_those_of_the_task():
    from studies.shared.tasks import METRICS

    guesses, labels = torch.tensor([1.0, 1, 0, 0, 1]), torch.tensor([1.0, 0, 0, 1, 1])
    assert METRICS["accuracy"](guesses, labels) == pytest.approx(60)
    assert METRICS["f1"](guesses, labels) == pytest.approx(100 * 2 * 2 / 6)
    # (true yes x true no - false yes x false no) / root of the product of the margins
    assert METRICS["matthews"](guesses, labels) == pytest.approx(100 * (2 * 1 - 1 * 1) / (3 * 2 * 3 * 2) ** 0.5)
    assert METRICS["f1"](torch.zeros(3), torch.zeros(3)) == METRICS["matthews"](torch.zeros(3), labels[:3]) == 0


@pytest.mark.parametrize(
    "variants",
    [
        ("softmax h", "mgk h/2", "mlk h/2"),
        pytest.param(tuple({**SOFTMAX, **GAUSSIAN, **E_STEPS, **LINEAR}), marks=pytest.mark.full),
    ],
)
def test_lra_trains_its_variants_on_short_sequences(tmp_path: Path, variants: tuple[str, ...]):
    words = ["--steps", "2", "--sequences", "40", "--tests", "10", "--minimum", "4", "--maximum", "8", "--seeds", "1"]
    words += ["--tasks", "listops"]
    found = results("lra", tmp_path, "--small", *words, "--variants", *variants)
    assert tuple(row["variant"] for row in found["rows"]) == variants
    sizes = {row["variant"]: row["attention"] for row in found["rows"]}
    assert sizes["mgk h/2"] == sizes["mlk h/2"] < sizes["softmax h"] == sizes.get("linear h", sizes["softmax h"])
    assert len({row["loss"]["mean"] for row in found["rows"]}) == len(sizes)  # no variant computes another's


def test_lra_reads_pairs_of_texts_by_their_bytes(tmp_path: Path):
    (tmp_path / "aan").mkdir()
    rows = [{"text1": "ab" * (place + 1), "text2": "ä", "label": place % 2} for place in range(8)]
    for part in ("train", "dev"):
        write_rows(tmp_path / "aan" / f"{part}.jsonl", rows)
    words = ["--tasks", "retrieval", "--variants", "softmax h", "--steps", "1", "--seeds", "1", "--minimum", "4"]
    found = results("lra", tmp_path, "--small", *words, "--maximum", "8", "--tests", "5")
    assert 0 <= found["rows"][0]["accuracy"]["mean"] <= 100
    assert run.main(["lra", "--data", str(tmp_path), "--work", str(tmp_path), "--tasks", "text"]) == 2


def test_lm_splits_by_articles_and_measures_every_word_once(tmp_path: Path):
    from studies.shared.words import Text, articles

    (tmp_path / "text").mkdir()
    lines = [line for place in range(10) for line in (f" = Title {place} = ", " = = part = = ", " one two " * 9)]
    (tmp_path / "text" / "wikitext2-valid.txt").write_text("\n".join(["", *lines]) + "\n")
    assert [part[-3] for part in articles(lines)] == [f" = Title {place} = " for place in range(10)]
    words = ["--steps", "2", "--width", "8", "--heads", "2", "--inner", "8", "--layers", "1", "--length", "8"]
    words += ["--variants", "softmax h", "smgk h/2", "mhe-mul", "--cutoffs", "2", "--stride", "4"]
    found = results("lm", tmp_path, "--small", *words)
    sizes = {row["variant"]: row["attention"] for row in found["rows"]}
    assert max(sizes["smgk h/2"], sizes["mhe-mul"]) < sizes["softmax h"] and found["test articles"] == 30
    assert all(row["perplexity"]["test articles"]["mean"] > 1 for row in found["rows"])
    for length, stride in ((8, 1), (8, 5), (40, 3)):
        text = Text(torch.arange(33, dtype=torch.int32), length)
        seen = torch.cat([ids[:, 1:][fresh] for ids, fresh in text.windows(stride, 2)])
        assert seen.tolist() == list(range(1, 33))


def test_squad_names_the_file_that_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = ["squad", *(word for name in ("data", "work", "results") for word in (f"--{name}", str(tmp_path)))]
    assert run.main([*words, "--models", "none"]) == 2
    assert f"no questions in '{tmp_path}/squad/train-v1.1.json': SQuAD 1.1's" in capsys.readouterr().err
    assert run.main(words) == 2 and "--models, or add --small" in capsys.readouterr().err


def test_lm_names_the_part_that_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert run.main(["lm", "--data", str(tmp_path), "--work", str(tmp_path), "--results", str(tmp_path)]) == 2
    assert "wiki.train.tokens" in capsys.readouterr().err


def test_imagenet_scratch_reads_images_by_class(tmp_path: Path):
    from PIL import Image

    for part in ("train", "dev"):
        for name, shade in (("dark", 20), ("light", 200)):
            (tmp_path / part / name).mkdir(parents=True)
            for place in range(3):
                Image.new("RGB", (20, 16), (shade, shade, 40 * place)).save(tmp_path / part / name / f"{place}.png")
    words = ["--train", str(tmp_path / "train"), "--dev", str(tmp_path / "dev"), "--widths", "4", "--steps", "2"]
    words += ["--width", "8", "--heads", "2", "--layers", "1", "--size", "16", "--batch", "4", "--seeds", "1"]
    found = results("imagenet_scratch", tmp_path, "--small", *words)
    named = [(row["kind"], row["width"]) for row in found["rows"]]
    assert named == [("separate heads", 8), ("collab", 4), ("concatenated", 4)]
    assert found["train"] == found["dev"] == 6 and all(0 <= row["accuracy"]["mean"] <= 100 for row in found["rows"])


def test_crops_and_flips_are_those_of_the_seed_and_measured_images_are_whole():
    import numpy
    from PIL import Image
    from studies.imagenet_scratch import Images

    shades = numpy.arange(64, dtype=numpy.uint8).reshape(8, 8, 1).repeat(3, 2)
    images = Images([{"image": Image.fromarray(shades), "label": 1}], 8)
    assert torch.allclose(images.pixels(0), torch.from_numpy(shades).permute(2, 0, 1) / 127.5 - 1, atol=1e-6)
    one, again, other = (next(images.batches(1, seed))["pixel_values"] for seed in (0, 0, 3))
    assert torch.equal(one, again) and not torch.equal(one, other)


def test_mlm_pretrain_keeps_models_that_squad_reads(tmp_path: Path):
    words = [f"word{place}" for place in range(30)]
    text = tmp_path / "text.txt"
    text.write_text("\n".join(" ".join(words[place % 20 : place % 20 + 9]) for place in range(60)))
    sizes = ["--width", "8", "--heads", "2", "--layers", "1", "--length", "8", "--steps", "2", "--vocabulary", "200"]
    sizes += ["--variants", "mha", "mhe-mul", "--text", str(text), "--seeds", "1"]
    found = results("mlm_pretrain", tmp_path, "--small", *sizes)
    rows = {row["variant"]: row for row in found["rows"]}
    assert rows["mhe-mul"]["attention"] < rows["mha"]["attention"]
    assert rows["mha"]["retained"] == 100 and all(row["perplexity"]["mean"] > 1 for row in rows.values())
    context = "word1 word2 word3 word4"
    asked = {"question": "word9", "answers": [{"text": "word3", "answer_start": context.index("word3")}]}
    (tmp_path / "squad").mkdir()
    for part in ("train", "dev"):
        file = tmp_path / "squad" / f"{part}-v1.1.json"
        file.write_text(json.dumps({"data": [{"paragraphs": [{"context": context, "qas": [asked] * 4}]}]}))
    models = [str(tmp_path / "work" / name) for name in rows["mhe-mul"]["models"]]
    given = ["--models", *models, "--data", str(tmp_path), "--seeds", "1"]
    run.main(["squad", *given, "--work", str(tmp_path / "work"), "--results", str(tmp_path), "--threads", "1"])
    found = json.loads((tmp_path / "squad.json").read_text())["rows"][0]
    assert 0 <= found["exact"]["mean"] <= found["f1"]["mean"] <= 100


def test_hidden_tokens_are_a_share_of_the_ordinary_ones():
    from studies.mlm_pretrain import SHARE, Masked

    ids = torch.randint(5, 90, (400, 20), generator=torch.Generator().manual_seed(0))
    ids[:, 0] = 2
    batch = Masked(ids, hidden=4, ordinary=5, tokens=99).batch(torch.arange(400), torch.Generator().manual_seed(1))
    chosen = batch["labels"] != IGNORED
    assert not chosen[:, 0].any() and float(chosen[:, 1:].double().mean()) == pytest.approx(SHARE, abs=0.01)
    assert torch.equal(batch["labels"][chosen], ids[chosen])
    assert torch.equal(batch["input_ids"][~chosen], ids[~chosen])
    hidden = batch["input_ids"][chosen] == 4
    assert float(hidden.double().mean()) == pytest.approx(0.8, abs=0.04)
    stays = (batch["input_ids"] == ids)[chosen]
    assert float(stays.double().mean()) == pytest.approx(0.1, abs=0.04)


def test_answers_are_found_in_windows_and_scored_as_squads(tmp_path: Path):
    from studies import squad
    from transformers import AutoTokenizer

    from tests.support.tokenizers import save_tokenizer

    assert squad.exact_and_f1("The Cat!", ("cat", "dog")) == (100, 100)
    assert squad.exact_and_f1("big cat", ("cat",)) == (0, pytest.approx(200 / 3))
    save_tokenizer(tmp_path)
    context = " ".join(f"word{place}" for place in range(12))
    one = squad.Question("word50", context, ("word7 word8",), context.index("word7"))
    windows = squad.encoded([one], AutoTokenizer.from_pretrained(tmp_path), 9)
    assert len(windows.owners) > 1
    for (first, last), spans in zip(windows.part.labels.tolist(), windows.offsets, strict=True):
        if first:
            assert context[spans[first][0] : spans[last][1]] == "word7 word8"
    assert any(first for first, _ in windows.part.labels.tolist())

    class Sure(torch.nn.Module):
        """Knows where word7 and word8 are."""

        def forward(self, input_ids: torch.Tensor, **_: torch.Tensor) -> object:
            starts, ends = (5.0 * (input_ids == 5 + number) for number in (7, 8))
            return type("Output", (), {"start_logits": starts, "end_logits": ends})

    assert squad.answers(Sure(), windows, [one], "cpu") == ["word7 word8"]
