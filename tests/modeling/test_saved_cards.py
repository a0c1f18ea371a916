"""Cards survive: what is saved again says what was converted, how it is loaded, and of when its numbers are."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification, Trainer, TrainingArguments
from transformers.utils import hub

import hf_heads
from hf_heads import CollabSpec, LowRankSpec
from hf_heads.modeling.kept_card import SAVED_AGAIN
from tests.support.cli import Run
from tests.support.twins import TWINS

GENERIC = "This is the model card of a model that has been pushed on the Hub. This model card has been automatically "


@pytest.fixture
def converted(run: Run, bert_folder: Path, tmp_path: Path) -> Path:
    """What the command makes, of an original with a licence."""
    (bert_folder / "README.md").write_text("---\nlicense: mit\nbase_model: tiny/bert\n---\n# tiny\n")
    options = ("--to", "low-rank", "--rank", 8, "--calibrate", "none", "--output", tmp_path / "converted")
    assert run("convert", bert_folder, *options).code == 0
    return tmp_path / "converted"


def card_of(folder: Path) -> str:
    return (folder / "README.md").read_text()


def section(card: str, title: str) -> str:
    return card.partition(f"## {title}")[2].partition("\n## ")[0].partition("\n")[2]


def test_a_saved_models_card_keeps_the_facts_and_says_of_when_its_numbers_are(converted: Path, tmp_path: Path):
    before = card_of(converted)
    AutoModelForMaskedLM.from_pretrained(converted).save_pretrained(tmp_path / "again")
    card = card_of(tmp_path / "again")
    data = ModelCard(card).data
    assert (data.license, data.base_model, data.pipeline_tag) == ("mit", "tiny/bert", "fill-mask")
    assert data.eval_results is None and ModelCard(before).data.eval_results
    assert SAVED_AGAIN in card and SAVED_AGAIN not in before
    assert "## Lost (measured before it was saved again)" in card
    for title in ("Gained", "Lost", "Blocks", "Use"):
        assert section(card, title) == section(before, title) != "", title
    AutoModelForMaskedLM.from_pretrained(tmp_path / "again").save_pretrained(tmp_path / "again")
    assert card_of(tmp_path / "again") == card


def test_another_head_of_another_task_is_loaded_by_another_class(converted: Path, tmp_path: Path):
    model = AutoModelForSequenceClassification.from_pretrained(converted)
    model.save_pretrained(tmp_path / "again")
    card = card_of(tmp_path / "again")
    assert 'AutoModelForSequenceClassification.from_pretrained("PATH_OR_ID", trust_remote_code=True)' in card
    assert "MaskedLM" not in card and ModelCard(card).data.pipeline_tag is None


def test_what_was_converted_in_memory_says_of_what_and_how(converted: Path, tmp_path: Path):
    model = TWINS["bert"].model()
    model.config._name_or_path = model.name_or_path = "tiny/bert"
    hf_heads.convert(model, CollabSpec(rank=9), calibration="none")[0].save_pretrained(tmp_path / "made")
    card = card_of(tmp_path / "made")
    data = ModelCard(card).data
    assert (data.base_model, data.tags) == ("tiny/bert", ["hf-heads", "collab"])
    assert "| `encoder.layer.1.attention.self` | collab rank 9" in card and SAVED_AGAIN not in card
    assert "trust_remote_code=True" in section(card, "Use") and "import hf_heads" in section(card, "Use")
    # Converted further, a card that was loaded is of something else; what it was made from is still known.
    twice = hf_heads.convert(AutoModel.from_pretrained(converted), CollabSpec(rank=9), calibration="none")[0]
    twice.save_pretrained(tmp_path / "twice")
    card = card_of(tmp_path / "twice")
    assert ModelCard(card).data.base_model == "tiny/bert" and "low-rank" not in card and "## Lost" not in card


def test_cards_of_somebody_else_stay(converted: Path, tmp_path: Path):
    model = AutoModel.from_pretrained(converted)
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "README.md").write_text("# Mine\n")
    model.save_pretrained(tmp_path / "theirs")
    assert card_of(tmp_path / "theirs") == "# Mine\n"
    # One of ours that somebody has added to keeps that; one about another conversion goes.
    (converted / "README.md").write_text(card_of(converted) + "\n## Mine\n\nwords\n")
    model.save_pretrained(converted)
    assert card_of(converted).endswith("\n## Mine\n\nwords\n") and SAVED_AGAIN in card_of(converted)
    hf_heads.convert(model, LowRankSpec(rank=4), calibration="none")[0].save_pretrained(converted)
    assert "rank 4" in card_of(converted) and "## Mine" not in card_of(converted)


def test_a_trainer_saves_the_card_and_its_own_is_followed_by_it(converted: Path, tmp_path: Path):
    model = AutoModelForSequenceClassification.from_pretrained(converted)
    data = [{"input_ids": torch.tensor([1, 2, 3]), "labels": torch.tensor(0)}] * 2
    arguments = TrainingArguments(str(tmp_path / "run"), max_steps=1, save_steps=1, report_to=[], use_cpu=True)
    trainer = Trainer(model, arguments, train_dataset=data)
    trainer.train()
    trainer.save_model()
    for folder in (tmp_path / "run", tmp_path / "run" / "checkpoint-1"):
        assert SAVED_AGAIN in card_of(folder) and "| `encoder.layer.0.attention.self` |" in card_of(folder)
    trainer.create_model_card()
    written = card_of(tmp_path / "run")
    assert "Training procedure" in written and "re-parametrized" not in written
    trainer.save_model()
    card = card_of(tmp_path / "run")
    data = ModelCard(card).data
    assert ModelCard(written).text.strip() in card and SAVED_AGAIN in card
    assert section(card, "Blocks") == section(card_of(tmp_path / "run" / "checkpoint-1"), "Blocks") != ""
    assert (data.license, data.base_model, data.library_name) == ("mit", "tiny/bert", "transformers")
    assert {"generated_from_trainer", "hf-heads", "low-rank"} <= set(data.tags)
    trainer.save_model()  # the index of results goes, as ever; and it is loaded, and saved from there
    assert ModelCard(card_of(tmp_path / "run")).text == ModelCard(card).text
    AutoModelForSequenceClassification.from_pretrained(tmp_path / "run").save_pretrained(tmp_path / "later")
    assert "Training procedure" in card_of(tmp_path / "later") and "## Blocks" in card_of(tmp_path / "later")


def test_a_card_whose_metadata_cannot_be_read_stays(converted: Path, tmp_path: Path):
    theirs = "---\ntags: [generated_from_trainer\n---\n# Mine\n"
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "README.md").write_text(theirs)
    AutoModel.from_pretrained(converted).save_pretrained(tmp_path / "theirs")
    assert card_of(tmp_path / "theirs") == theirs


def test_sentence_transformers_saves_the_card(run: Run, bert_folder: Path, tmp_path: Path):
    library = pytest.importorskip("sentence_transformers", reason="saves by itself")
    library.SentenceTransformer(str(bert_folder), device="cpu").save(str(tmp_path / "original"))
    options = ("--to", "low-rank", "--rank", 8, "--calibrate", "none", "--output", tmp_path / "converted")
    assert run("convert", tmp_path / "original", *options).code == 0
    library.SentenceTransformer(str(tmp_path / "converted"), device="cpu").save(str(tmp_path / "saved"))
    card = card_of(tmp_path / "saved")  # the library copies it word for word
    assert "hf-heads" in ModelCard(card).data.tags and "| `encoder.layer.0.attention.self` |" in card
    assert "SentenceTransformer(" in section(card, "Use") and "All numbers were measured when it was made." in card


@pytest.mark.parametrize("theirs", [None, "# Mine\n"])
def test_what_is_pushed_has_the_card(
    converted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, theirs: str | None
):
    pushed: dict[str, Any] = {}

    def create_commit(*, operations: list[Any], **_: Any) -> None:
        pushed.update({one.path_in_repo: Path(one.path_or_fileobj).read_text() for one in operations if _is_text(one)})

    api = SimpleNamespace(create_repo=lambda name, **_: SimpleNamespace(repo_id=name), create_commit=create_commit)
    card = ModelCard(theirs or f"---\nlibrary_name: transformers\n---\n{GENERIC}generated.\n")
    monkeypatch.setattr(hub, "hf_api", lambda: api)
    monkeypatch.setattr(hub, "create_and_tag_model_card", lambda *_, **__: card)
    AutoModel.from_pretrained(converted).push_to_hub("user/again")
    if theirs is None:
        assert 'from_pretrained("user/again", trust_remote_code=True)' in pushed["README.md"]
        assert SAVED_AGAIN in pushed["README.md"] and ModelCard(pushed["README.md"]).data.base_model == "tiny/bert"
    else:
        assert "# Mine" in pushed["README.md"] and "re-parametrized" not in pushed["README.md"]


def _is_text(operation: Any) -> bool:
    return operation.path_in_repo.endswith((".md", ".json", ".py"))
