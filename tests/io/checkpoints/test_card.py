"""The model card of a converted checkpoint, as the hub reads it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.repocard_data import model_index_to_eval_results

from hf_heads import CollabSpec, LowRankSpec
from hf_heads.attention.hosts.table import ADAPTERS
from hf_heads.core.vocabulary import METRICS, REPORT
from hf_heads.io.checkpoints.card import model_card
from hf_heads.io.checkpoints.card_metadata import task_of
from hf_heads.io.checkpoints.sources import Source
from hf_heads.io.data.calibration import CalibrationChoice
from hf_heads.jobs.conversion.checkpoint import convert_checkpoint
from hf_heads.jobs.conversion.request import ConversionRequest
from hf_heads.modeling.auto_classes import auto_classes
from tests.support.files import save_checkpoint
from tests.support.twins import TWINS

DISTILLATION: dict[str, Any] = {
    "teacher": "tiny/bert",
    "data": "tiny.jsonl, column text | title",
    "steps": 1200,
    "seconds": 61.4,
    "train": "attention",
    "losses": {"kl": 1.0, "hidden": 0.5},
    "optimizer": "muon",
    "learning_rate": 0.002,
    "batch_size": 32,
    "curve": [{"step": 0, "cosine": 0.91}, {"step": 1200, "seconds": 61.4, "drift": 0.01, "cosine": 0.998765}],
    "before": {"step": 0, "seconds": 0.0, "cosine": 0.91, "kl": 0.5, "drift": 0.2},
    "after": {"step": 1200, "seconds": 61.4, "cosine": 0.998765, "kl": 0.012346, "drift": 0.01},
}
SCORES: list[dict[str, Any]] = [
    {
        **{"task": "text-classification", "dataset": "stanfordnlp/sst2", "metric": "accuracy"},
        **{"value": 0.9125, "low": 0.89, "high": 0.93, "original": 0.92},
    }
]


def source_in(folder: Path) -> Source:
    return Source("tiny/bert", folder, "0" * 40, "tiny/bert")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint and what it is converted into: on data, so that it has drift on held-out examples."""
    place = tmp_path_factory.mktemp("made")
    original = save_checkpoint(TWINS["bert"].model(), place / "tiny-bert")
    data = place / "words.txt"
    data.write_text("".join(f"word{number} word{number + 1} word{number % 7}\n" for number in range(60)))
    write_source_card(original, "license: apache-2.0\nlanguage: en")
    spec = {"*layer.0*": CollabSpec(rank=10), "*": LowRankSpec(rank=8)}
    choice = CalibrationChoice(str(data), samples=40)
    request = ConversionRequest(source_in(original), spec, calibration=choice, text='base = "tiny/bert"')
    convert_checkpoint(request, place / "out")
    return place


@pytest.fixture
def bert_folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made / "tiny-bert", tmp_path / "tiny-bert"))


@pytest.fixture
def source(bert_folder: Path) -> Source:
    return source_in(bert_folder)


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made / "out", tmp_path / "out"))


@pytest.fixture
def record(folder: Path) -> dict[str, Any]:
    return json.loads((folder / REPORT).read_text())


def write_source_card(folder: Path, front: str) -> None:
    (folder / "README.md").write_text(f"---\n{front}\n---\n# tiny\n")


def loaded(card: str) -> ModelCard:
    """A card as the hub takes it: strict about the numbers, and complete when written again."""
    found = ModelCard(card)
    results = found.data.eval_results
    if results is not None:
        index = found.data.to_dict()["model-index"]
        name, again = model_index_to_eval_results(index)
        assert name == found.data.model_name
        key = [(result.unique_identifier, result.metric_type, result.metric_value) for result in results]
        assert sorted(key) == sorted((one.unique_identifier, one.metric_type, one.metric_value) for one in again)
    assert ModelCard(str(found)).data.to_dict() == found.data.to_dict()
    return found


def figures(data: ModelCardData) -> dict[tuple[str, str], float]:
    results: list[EvalResult] = data.eval_results or []
    return {(result.dataset_name, result.metric_type): result.metric_value for result in results}


def test_the_hub_reads_lineage_licence_and_task(folder: Path):
    data = loaded((folder / "README.md").read_text()).data
    assert data.library_name == "transformers"
    assert data.tags == ["hf-heads", "collab", "low-rank"]
    assert (data.base_model, data.license, data.language) == ("tiny/bert", "apache-2.0", "en")
    assert data.pipeline_tag == "fill-mask"
    assert "base_model_relation" not in data.to_dict()  # no training: none of the relations that the hub knows


def test_the_index_holds_the_reports_numbers_to_the_last_digit(folder: Path, record: dict[str, Any]):
    data = loaded((folder / "README.md").read_text()).data
    assert data.model_name == "bert-collab-low-rank"
    names = {
        "random": "random inputs, made by hf-heads",
        "held-out": "held-out examples of words.txt",
        "held-out of 16 tokens": "held-out examples of words.txt, 16 tokens",
    }
    wanted = {
        (names[inputs], METRICS[name][0]): value
        for inputs, row in record["drift"].items()
        for name, value in row.items()
    }
    assert len(wanted) == 12
    assert figures(data) == wanted
    assert {result.task_type for result in data.eval_results} == {"fill-mask"}


def test_the_text_holds_the_reports_numbers_and_the_recipe(folder: Path, record: dict[str, Any]):
    text = (folder / "README.md").read_text()
    for row in record["drift"].values():
        assert all(f"{value:.4f}" in text for value in row.values())
    for block in record["blocks"]:
        assert f"| `{block['name']}` |" in text and f"{block['parameters']:,}" in text
    for key in ("attention_parameters", "model_parameters", "cache_per_token"):
        assert f"{record[key]:,}" in text and f"{record[key + '_before']:,}" in text
    for words in ("`tiny/bert` at", "transformers 5.", 'base = "tiny/bert"', "import hf_heads", "No fine-tuning."):
        assert words in text
    assert "## Healed" not in text and "#healed" not in text and "## Scores" not in text


def test_a_healed_checkpoint_is_a_finetune_with_the_numbers_of_its_training(source: Source, record: dict[str, Any]):
    drift = {"random": {"cosine": 0.8}, "held-out": {"cosine": 0.9987654321, "kl": 0.0123456789}}
    healed = {**record, "drift": drift, "command": "hf-heads convert M --to mhe", "distillation": DISTILLATION}
    text = model_card(source, healed, None)
    data = loaded(text).data
    assert data.to_dict()["base_model_relation"] == "finetune"
    name = "held-out examples of tiny.jsonl, column text | title"
    assert figures(data) == {
        ("random inputs, made by hf-heads", "cosine_similarity"): 0.8,
        (name, "cosine_similarity"): 0.9987654321,
        (name, "kl_divergence"): 0.0123456789,
    }
    assert "No fine-tuning" not in text
    section = text.partition("## Healed")[2].partition("## Use")[0]
    for words in (
        *("1,200 steps in 61 s", "`tiny/bert`", "the attention alone", "osses kl 1, hidden 0.5", "optimizer muon"),
        *("learning rate 0.002", "batch size 32", "| 0.9100 | 0.9988 |", "| 0.5000 | 0.0123 |", "| 0.2000 | 0.0100 |"),
    ):
        assert words in section, words
    assert "61.4000" not in section and "1200.0" not in section
    made = text.partition("## Made by")[2]
    assert "hf-heads convert M --to mhe\n```" in made and "healing made of it is said [above](#healed)" in made


def test_scores_are_results_on_tasks(source: Source, record: dict[str, Any]):
    text = model_card(source, {**record, "scores": SCORES}, None)
    (result,) = (one for one in loaded(text).data.eval_results if one.metric_type == "accuracy")
    assert (result.task_type, result.dataset_type) == ("text-classification", "stanfordnlp/sst2")
    assert result.metric_value == 0.9125
    row = "| text-classification | stanfordnlp/sst2 | accuracy | 0.9125 | 0.8900 to 0.9300 | 0.9200 |"
    assert row in text.splitlines()


def test_figures_that_were_not_finite_leave_their_cells_empty(source: Source, record: dict[str, Any]):
    text = model_card(source, {**record, "drift": {"random": {"cosine": None, "kl": 0.5}}}, None)
    assert "| random inputs |  | 0.5000 |" in text and len(loaded(text).data.eval_results) == 1


@pytest.mark.parametrize("odd", ["no", "123", "a: b # c", '"quoted" & *', "- dash\n---", "früh | späť", "{}", "null"])
def test_odd_names_stay_what_they_are(source: Source, record: dict[str, Any], odd: str):
    choice = {**record["calibration_choice"], "source": odd.replace("/", "-")}
    healed = {**DISTILLATION, "data": odd}
    scores = [{**SCORES[0], "task": odd, "dataset": odd, "metric": odd}]
    for extra in ({"calibration_choice": choice}, {"distillation": healed}, {"scores": scores}):
        text = model_card(source, {**record, **extra}, None)
        data = loaded(text).data
        assert data.license == "apache-2.0" and data.eval_results
        named = [name for name, _ in figures(data)]
        assert odd in named or f"held-out examples of {odd}" in named, named
        assert text.count("\n## Use\n") == 1
        rows = text.partition("## Scores")[2].partition("## Use")[0].strip().splitlines()
        assert all(row.replace("\\|", "").count("|") == 7 for row in rows), rows


@pytest.mark.parametrize(
    ("front", "wanted"),
    [
        ("license: mit", {"license": "mit"}),
        ("license: 'no'", {"license": "no"}),
        ("license: [mit, apache-2.0]", {"license": ["mit", "apache-2.0"]}),
        ("license: other\nlicense_name: my-own\nlicense_link: LICENSE", {"license": "other", "license_name": "my-own"}),
        ("pipeline_tag: sentence-similarity", {"pipeline_tag": "sentence-similarity"}),
        ("base_model: somebody/else", {"base_model": "tiny/bert"}),
        ("license: : broken", {"license": None, "pipeline_tag": "fill-mask"}),
        ("- a list", {"license": None, "pipeline_tag": "fill-mask"}),
    ],
)
def test_what_the_sources_card_states_is_taken_over(
    source: Source, record: dict[str, Any], front: str, wanted: dict[str, Any]
):
    write_source_card(source.folder, front)
    data = loaded(model_card(source, record, None)).data
    assert {name: data.to_dict().get(name) for name in wanted} == wanted


@pytest.mark.parametrize(
    ("base", "front", "wanted"),
    [
        (None, "license: mit", None),
        (None, "base_model: somebody/else", "somebody/else"),
        (None, "base_model: [one/a, two/b]", ["one/a", "two/b"]),
        (None, "base_model: /home/me/model dir", None),
        ("not an id", "license: mit", None),
    ],
)
def test_the_base_model_is_an_id_on_the_hub_or_none(
    bert_folder: Path, record: dict[str, Any], base: str | None, front: str, wanted: object
):
    write_source_card(bert_folder, front)
    text = model_card(Source(str(bert_folder), bert_folder, None, base), record, None)
    assert loaded(text).data.to_dict().get("base_model") == wanted


def test_a_sentence_embedder_is_found_as_one(source: Source, record: dict[str, Any]):
    (source.folder / "modules.json").write_text("[]")
    assert "sentence-transformers" in loaded(model_card(source, record, None)).data.tags


@pytest.mark.parametrize("model_type", sorted(ADAPTERS))
def test_the_task_follows_from_the_class(model_type: str, tmp_path: Path):
    row = ADAPTERS[model_type]
    known = ("Classification", "MaskedLM", "CausalLM", "LMHeadModel", "CTC", "Answering", "MultipleChoice", "MTModel")
    for native in set(auto_classes(row).values()):
        tasks = set()
        for name, kind in ((native, model_type), (f"Heads{native}", f"heads_{model_type}")):
            (tmp_path / "config.json").write_text(json.dumps({"architectures": [name], "model_type": kind}))
            tasks.add(task_of(tmp_path))
        (task,) = tasks
        base = native.endswith("Model") and row.modality in ("text", "image")
        assert (task is not None) == (base or native.endswith(known)), (native, task)


def test_without_numbers_there_is_no_index(source: Source, record: dict[str, Any]):
    data = loaded(model_card(source, {**record, "drift": {"random": {"cosine": float("nan")}}}, None)).data
    assert data.eval_results is None and "model-index" not in data.to_dict()


def test_converting_a_converted_checkpoint_keeps_lineage_and_licence(
    run: Callable[..., Any], folder: Path, tmp_path: Path
):
    options = ("--to", "low-rank", "--rank", 4, "--calibrate", "none", "--output", tmp_path / "two")
    assert run("convert", folder, *options).code == 0
    data = loaded((tmp_path / "two" / "README.md").read_text()).data
    assert (data.base_model, data.license, data.pipeline_tag) == ("tiny/bert", "apache-2.0", "fill-mask")
    assert data.tags == ["hf-heads", "low-rank"]
