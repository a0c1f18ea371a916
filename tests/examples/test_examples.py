"""The examples: each trains a tiny converted model on data made here, saves it, and resumes to the same bits."""

from __future__ import annotations

import importlib.util
import json
import random
import shlex
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import (
    AutoImageProcessor,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertForSequenceClassification,
    BertTokenizer,
    PreTrainedModel,
    Trainer,
)

import hf_heads
from hf_heads import CollabSpec
from hf_heads.cli.program import build_parser
from hf_heads.core.gauge import INERTIA
from tests.support.matrix import only
from tests.support.tokenizers import save_image_processor, save_marian_tokenizer
from tests.support.twins import TWINS, bert_config, logits, randomize

EXAMPLES = Path(__file__).parents[2] / "examples"

# What the examples read: models with tokenizers or processors, and data that can be learned in a few steps.


def bert_model() -> PreTrainedModel:
    """A classifier already: then a source and a checkpoint of it lie alike in memory, which the last bits depend on."""
    model = BertForSequenceClassification(bert_config())
    randomize(model)
    return model


def save_bert_tokenizer(folder: Path) -> None:
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces = [*special, *letters, *(f"##{letter}" for letter in letters), "good", "bad", "##est"]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    BertTokenizer(vocab=vocabulary, model_max_length=40).save_pretrained(folder)


def save_sentences(path: Path, count: int, seed: int) -> None:
    """Sentences of random words; the label is whether `good` or `bad` is among them."""
    choose = random.Random(seed)
    rows = []
    for _ in range(count):
        words = ["".join(choose.choices("abcde", k=2)) for _ in range(choose.randint(1, 4))]
        label = choose.randint(0, 1)
        words.insert(choose.randint(0, len(words)), ("bad", "good")[label])
        rows.append({"sentence": " ".join(words), "label": label})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


NUMBERS = {"one": "eins", "two": "zwei", "three": "drei", "four": "vier"}


def save_pairs(path: Path, count: int, seed: int) -> None:
    """Numbers in English; the German, whatever they are, counts to four: all that a few steps can teach a decoder."""
    choose = random.Random(seed)
    rows = []
    for _ in range(count):
        words = choose.choices(list(NUMBERS), k=choose.randint(3, 6))
        rows.append({"en": " ".join(words), "de": " ".join(NUMBERS.values())})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def images(count: int, seed: int) -> tuple[list[Image.Image], list[int]]:
    """Noise in five colours; the colour is the label."""
    generator = np.random.default_rng(seed)
    colours = np.array([[200, 0, 0], [0, 200, 0], [0, 0, 200], [200, 200, 200], [0, 0, 0]])
    labels = [index % 5 for index in range(count)]
    pixels = [(colours[label] + generator.integers(0, 50, (20, 20, 3))).astype(np.uint8) for label in labels]
    return [Image.fromarray(one) for one in pixels], labels


def save_images(path: Path, count: int, seed: int) -> None:
    pictures, labels = images(count, seed)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    datasets.Dataset.from_dict({"image": pictures, "label": labels}, features=features).to_parquet(path)


@dataclass(frozen=True)
class Case:
    """An example, and what it needs."""

    name: str
    auto: Any
    model: Callable[[], PreTrainedModel]
    twin: str
    save_processor: Callable[[Path], None]
    load_processor: Any
    ending: str
    save_data: Callable[[Path, int, int], None]
    learned: Callable[[dict[str, float]], bool]


CASES = {
    case.name: case
    for case in (
        Case(
            "finetune_sst2",
            AutoModelForSequenceClassification,
            bert_model,
            "bert",
            save_bert_tokenizer,
            AutoTokenizer,
            ".jsonl",
            save_sentences,
            lambda scores: scores["eval_accuracy"] > 0.9,
        ),
        Case(
            "translate_marian",
            AutoModelForSeq2SeqLM,
            TWINS["marian"].model,
            "marian",
            save_marian_tokenizer,
            AutoTokenizer,
            ".jsonl",
            save_pairs,
            lambda scores: scores["bleu_before"] < 1 < 90 < scores["eval_bleu"],
        ),
        Case(
            "classify_images_vit",
            AutoModelForImageClassification,
            TWINS["vit"].model,
            "vit",
            save_image_processor,
            AutoImageProcessor,
            ".parquet",
            save_images,
            lambda scores: scores["accuracy_before"] < 0.5 < 0.9 < scores["eval_accuracy"],
        ),
    )
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


@pytest.fixture
def example(case: Case) -> ModuleType:
    return load_example(case.name)


def load_example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def own_cache_and_one_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def data(case: Case, tmp_path: Path) -> list[str]:
    """The options that name the data."""
    train, dev = (tmp_path / f"{name}{case.ending}" for name in ("train", "dev"))
    case.save_data(train, 64, 0)
    case.save_data(dev, 10, 1)
    return ["--train", str(train), "--dev", str(dev)]


def save_model(case: Case, folder: Path, converted: bool = True) -> Path:
    model = case.model().eval()
    if converted:
        model, _ = hf_heads.convert(model, CollabSpec(rank=16), calibration="none")
    model.save_pretrained(folder)
    case.save_processor(folder)
    return folder


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[PreTrainedModel]:
    """The models that were trained, as they are in memory."""
    models: list[PreTrainedModel] = []
    train = Trainer.train

    def keep(trainer: Trainer, *arguments: Any, **options: Any) -> Any:
        models.append(trainer.model)
        return train(trainer, *arguments, **options)

    monkeypatch.setattr(Trainer, "train", keep)
    return models


@only("finetune_sst2-False", *(f"{name}-True" for name in CASES), case=CASES, converted=[True, False])
def test_an_example_learns_and_its_folder_loads_to_the_same_logits(
    case: Case,
    converted: bool,
    example: ModuleType,
    data: list[str],
    trained: list[PreTrainedModel],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    source, output = save_model(case, tmp_path / "source", converted), tmp_path / "output"
    settings = ["--max-steps", "100", "--batch-size", "16", "--learning-rate", "0.005"]
    scores = example.main(["--model", str(source), "--output", str(output), *data, *settings])
    assert case.learned(scores), scores
    printed = capsys.readouterr().out.splitlines()
    assert sum(line.endswith(f"saved to {output}") for line in printed) == 1

    loaded = case.auto.from_pretrained(output)
    assert type(loaded) is type(trained[0])
    assert loaded.config.model_type == ("heads_" if converted else "") + case.twin
    state = trained[0].cpu().state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.state_dict().items())
    inputs = TWINS[case.twin].inputs()
    wanted, found = (logits(model.eval(), inputs) for model in (trained[0], loaded))
    # The same bits in other places of memory may take another path through a matrix product.
    assert (found - wanted).abs().max() < 1e-5
    assert type(case.load_processor.from_pretrained(output)) is type(case.load_processor.from_pretrained(source))


def test_resuming_gives_the_bits_of_training_straight(case: Case, example: ModuleType, data: list[str], tmp_path: Path):
    source, straight, resumed = (tmp_path / name for name in ("source", "straight", "resumed"))
    save_model(case, source)
    settings = ["--model", str(source), *data, "--max-steps", "4", "--save-steps", "2", "--batch-size", "8"]
    wanted = example.main([*settings, "--output", str(straight)])
    shutil.copytree(straight / "checkpoint-2", resumed / "checkpoint-2")  # as if it had been stopped there
    found = example.main([*settings, "--output", str(resumed), "--resume"])

    at_two, end, end_resumed = (
        load_file(folder / "model.safetensors") for folder in (straight / "checkpoint-2", straight, resumed)
    )
    assert all(torch.equal(tensor, end_resumed[name]) for name, tensor in end.items())
    assert not any(
        torch.equal(end[name], at_two[name]) for name in end if name.endswith(("mixing", "shared_key.weight"))
    )
    assert found["eval_loss"] == wanted["eval_loss"]


def test_an_example_neither_mixes_runs_nor_resumes_nothing(
    case: Case, example: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    options = ["--model", "source", "--output", str(tmp_path), "--train", "train", "--dev", "dev"]
    with pytest.raises(SystemExit):
        example.main([*options, "--resume"])
    assert "there is no checkpoint" in capsys.readouterr().err
    (tmp_path / "checkpoint-2").mkdir()
    with pytest.raises(SystemExit):
        example.main(options)
    assert "--resume, or choose another --output" in capsys.readouterr().err


def test_images_may_lie_in_folders_and_give_the_classes_their_names(tmp_path: Path):
    names = ["blue", "green", "red"]
    for part, count in (("train", 30), ("dev", 10)):
        for index, (image, label) in enumerate(zip(*images(count, len(part)), strict=True)):
            folder = tmp_path / part / ["red", "green", "blue"][label % 3]
            folder.mkdir(parents=True, exist_ok=True)
            image.save(folder / f"{index}.png")
    source, output = save_model(CASES["classify_images_vit"], tmp_path / "source"), tmp_path / "output"
    options = ["--model", source, "--output", output, "--train", tmp_path / "train", "--dev", tmp_path / "dev"]
    scores = load_example("classify_images_vit").main(
        [*map(str, options), "--max-steps", "1", "--samples", "8", "--rank", "12"]
    )
    assert {"accuracy_before", "accuracy_trained", "eval_accuracy"} <= set(scores)
    loaded = AutoModelForImageClassification.from_pretrained(output)
    assert loaded.config.id2label == dict(enumerate(names))
    assert loaded.classifier.out_features == 3
    assert {spec.rank for spec in loaded.config.block_specs().values()} == {12}


def test_the_lines_in_the_docstring_are_commands_that_exist(example: ModuleType):
    lines = [line.strip() for line in (example.__doc__ or "").splitlines() if line.startswith("    ")]
    converts = [shlex.split(line)[1:] for line in lines if line.startswith("hf-heads ")]
    runs = [shlex.split(line)[2:] for line in lines if line.startswith(f"python examples/{example.__name__}.py ")]
    assert converts and runs
    for arguments in converts:
        parsed = build_parser().parse_args(arguments)
        assert all(example.parse(run).model == parsed.output for run in runs)


def test_prune_classifier_learns_with_half_of_its_heads(tmp_path: Path, trained: list[PreTrainedModel]):
    case, source, output = CASES["finetune_sst2"], tmp_path / "source", tmp_path / "output"
    save_model(case, source, converted=False)
    train, dev = tmp_path / "train.jsonl", tmp_path / "dev.jsonl"
    save_sentences(train, 64, 0)
    save_sentences(dev, 20, 1)
    settings = ["--keep", "0.5", "--max-steps", "100", "--batch-size", "16", "--learning-rate", "0.005"]
    scores = load_example("prune_classifier").main(
        ["--model", str(source), "--train", str(train), "--dev", str(dev), "--output", str(output), *settings]
    )
    assert scores["pruned and fine-tuned"] > 0.9 > scores["pruned"]
    loaded = AutoModelForSequenceClassification.from_pretrained(output)
    assert sum(spec.heads for spec in loaded.config.block_specs().values()) == 4
    inputs = dict(AutoTokenizer.from_pretrained(output)(["good ab", "bad cd"], return_tensors="pt"))
    assert (logits(loaded, inputs) - logits(trained[0].eval(), inputs)).abs().max() < 1e-6


@only("mha", "mul", heads=["mha", "single", "add", "mul"])
def test_pretrain_mhe_learns_from_scratch(heads: str, tmp_path: Path):
    text, output = tmp_path / "text.txt", tmp_path / "output"
    text.write_text("one two three four five six seven eight nine ten\n" * 400)
    sizes = ["--vocabulary", "300", "--width", "16", "--number", "4", "--layers", "1", "--length", "16"]
    settings = ["--max-steps", "60", "--learning-rate", "0.02", "--heads", heads, "--text", str(text)]
    scores = load_example("pretrain_mhe").main([*sizes, *settings, "--output", str(output)])
    assert scores["perplexity"] < 3
    loaded = AutoModelForCausalLM.from_pretrained(output)
    assert loaded.num_parameters() == scores["parameters"]
    assert (loaded.config.model_type == "bert") == (heads == "mha")


@only("mgk", kind=["mgk", "smgk"])
def test_gaussian_keys_learns_and_tells_how_far_its_keys_are_apart(kind: str, tmp_path: Path):
    source, output = tmp_path / "source", tmp_path / "output"
    save_model(CASES["finetune_sst2"], source, converted=False)
    train, dev = tmp_path / "train.jsonl", tmp_path / "dev.jsonl"
    save_sentences(train, 64, 0)
    save_sentences(dev, 20, 1)
    settings = ["--mixture", kind, "--max-steps", "100", "--batch-size", "16", "--learning-rate", "0.005"]
    files = ["--train", str(train), "--dev", str(dev), "--output", str(output)]
    scores = load_example("gaussian_keys").main(["--model", str(source), *files, *settings])
    assert scores["eval_accuracy"] > 0.9
    assert scores["beta"] != 0
    assert scores["apart_after"] > (2 * scores["apart_before"] if kind == "mgk" else 0.3)
    loaded = AutoModelForSequenceClassification.from_pretrained(output)
    assert {spec.method for spec in loaded.config.block_specs().values()} == {"mgk"}


@only("collab", method=["collab", "low-rank", "mhe", "pruned"])
def test_fine_tune_then_convert_learns_made_up_pairs(method: str, tmp_path: Path):
    output = tmp_path / "output"
    scores = load_example("fine_tune_then_convert").main(["--to", method, "--groups", "2", "--output", str(output)])
    assert scores["before"] > 0.9
    assert scores["after"] >= scores["before"] - 0.1
    assert scores["parameters"] < 1
    loaded = AutoModelForSequenceClassification.from_pretrained(output)
    assert {spec.method for spec in loaded.config.block_specs().values()} == {method}
    inputs = dict(AutoTokenizer.from_pretrained(output)("old red", "new blue", return_tensors="pt"))
    assert set(inputs["token_type_ids"].unique().tolist()) == {0, 1}
    assert logits(loaded, inputs).shape == (1, 2)


@only(".tsv", ".jsonl", ending=[".tsv", ".csv", ".jsonl"])
def test_fine_tune_then_convert_reads_files_like_those_of_glue(ending: str, tmp_path: Path):
    source, output = tmp_path / "source", tmp_path / "output"
    save_model(CASES["finetune_sst2"], source, converted=False)
    rows = [{"index": n, "s1": "good ab" if n % 2 else "bad ab", "s2": "cd", "label": n % 2 / 2} for n in range(16)]
    for name in ("train", "dev"):
        path, split = tmp_path / f"{name}{ending}", {".tsv": "\t", ".csv": ","}.get(ending)
        lines = [json.dumps(row) for row in rows]
        if split:
            lines = [split.join(rows[0]), *(split.join(str(one) for one in row.values()) for row in rows)]
        path.write_text("\n".join(lines) + "\n")
    files = ["--train", str(tmp_path / f"train{ending}"), "--dev", str(tmp_path / f"dev{ending}")]
    example = load_example("fine_tune_then_convert")
    given = ["--model", str(source), *files, "--epochs", "1", "--batch-size", "8", "--regression"]
    scores = example.main([*given, "--output", str(output)])
    assert -1 <= scores["after"] <= 1
    loaded = AutoModelForSequenceClassification.from_pretrained(output)
    assert loaded.config.num_labels == 1
    with pytest.raises(SystemExit):
        example.main([*given, "--output", str(output)])  # it exists


@only("slow", "frozen", factors=["slow", "frozen", "free"])
def test_factors_that_heads_share_learn_as_they_are_told(factors: str, tmp_path: Path):
    source, output, train = tmp_path / "source", tmp_path / "output", tmp_path / "train.jsonl"
    save_model(CASES["finetune_sst2"], source)
    save_sentences(train, 16, 0)
    settings = ["--max-steps", "3", "--batch-size", "8", "--learning-rate", "0.01", "--factors", factors]
    files = ["--train", str(train), "--dev", str(train), "--output", str(output)]
    load_example("finetune_sst2").main(["--model", str(source), *files, *settings])
    before, after = load_file(source / "model.safetensors"), load_file(output / "model.safetensors")
    moved = max(float((after[name] - before[name]).abs().max()) for name in before if "shared_key" in name)
    least, most = {"slow": (1e-4, 3.1e-3), "frozen": (0.0, 0.0), "free": (3.1e-3, 3.1e-2)}[factors]
    assert least <= moved / INERTIA <= most
