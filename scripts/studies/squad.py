"""Questions on SQuAD: models fine-tuned to find answers, exact matches and F1 of words, over seeds.

As arXiv 2310.07911 measures its pre-trained models (`mlm_pretrain` keeps some), with BERT's settings. --data holds
SQuAD's own files, squad/train-v1.1.json and squad/dev-v1.1.json. --small takes the first 256 questions of each, and a
MiniLM as it is and converted. Draws a figure.
"""

from __future__ import annotations

import argparse
import json
import re
import string
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForQuestionAnswering, AutoTokenizer, set_seed

import hf_heads
from hf_heads import CalibrationChoice, CollabSpec, MheSpec
from hf_heads.core.errors import HeadsError
from hf_heads.io.checkpoints.sources import Source, resolve_source
from hf_heads.jobs.conversion.checkpoint import convert_checkpoint
from hf_heads.jobs.conversion.request import ConversionRequest
from studies.shared.drawing import draw_by_attention
from studies.shared.inputs import MINILM
from studies.shared.running import add_folders, figure, save, shown
from studies.shared.sequences import Padded, Part
from studies.shared.training import Plan, add_runs, add_training, fit, over_seeds, remembered, seeds_of

OVERLAP, ANSWER = 128, 30  # tokens that two inputs share at most, and of an answer
QUESTIONS = 256  # with --small
PAPER: dict[str, Any] = {"epochs": 2, "batch": 32, "rate": 3e-5, "length": 384}
SMALL: dict[str, Any] = {"epochs": 3, "batch": 16, "rate": 2e-4, "length": 192}
CONVERTED = {"collab-96": CollabSpec(rank=96), "mhe-3": MheSpec(groups=3)}  # of a MiniLM, with --small


@dataclass(frozen=True)
class Question:
    """A question, where its answer is looked for, and answers that count; the first begins at a character."""

    text: str
    context: str
    answers: tuple[str, ...]
    begin: int


def read(file: Path, most: int | None) -> list[Question]:
    """The questions of a file of SQuAD 1.1."""
    if not file.is_file():
        raise HeadsError(f"no questions in '{file}': SQuAD 1.1's train-v1.1.json and dev-v1.1.json belong there")
    found = []
    for article in json.loads(file.read_text(encoding="utf-8"))["data"]:
        for paragraph in article["paragraphs"]:
            for one in paragraph["qas"]:
                answers = tuple(answer["text"] for answer in one["answers"])
                begin = one["answers"][0]["answer_start"]
                found.append(Question(one["question"], paragraph["context"], answers, begin))
    return found[:most]


@dataclass(frozen=True)
class Windows:
    """Questions as a model reads them, a long context in several windows.

    Attributes:
        part: inputs, and first and last token of the answer, (windows, 2); both 0 where it is not in the window.
        owners: the question of each window.
        offsets: of each window the characters of its tokens, None where they are not the context's.
    """

    part: Part
    owners: list[int]
    offsets: list[list[tuple[int, int] | None]]


def encoded(questions: list[Question], tokenizer: Any, length: int) -> Windows:
    """Windows of all questions, of so many tokens at most."""
    found = tokenizer(
        [one.text for one in questions],
        [one.context for one in questions],
        truncation="only_second",
        max_length=length,
        stride=min(OVERLAP, length // 3),
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    owners, offsets, places = found["overflow_to_sample_mapping"], [], []
    for index, owner in enumerate(owners):
        sides = found.sequence_ids(index)
        spans = [
            tuple(span) if side == 1 else None for side, span in zip(sides, found["offset_mapping"][index], strict=True)
        ]
        one = questions[owner]
        end = one.begin + len(one.answers[0])
        inside = [place for place, span in enumerate(spans) if span and span[0] < end and span[1] > one.begin]
        there = [span for span in spans if span]
        whole = bool(inside) and there[0][0] <= one.begin and there[-1][1] >= end
        places.append([inside[0], inside[-1]] if whole else [0, 0])
        offsets.append(spans)
    types = found.get("token_type_ids")
    others = {"token_type_ids": Padded.of(types)} if types else {}
    return Windows(Part(Padded.of(found["input_ids"]), torch.tensor(places), others), list(owners), offsets)


def loss(model: nn.Module, batch: Any) -> Tensor:
    """Of first and last token."""
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    return model(**inputs, start_positions=batch["labels"][:, 0], end_positions=batch["labels"][:, 1]).loss


@torch.no_grad()
def answers(model: nn.Module, windows: Windows, questions: list[Question], device: str) -> list[str]:
    """The likeliest piece of each question's context."""
    model.eval()
    best: list[tuple[float, str]] = [(-float("inf"), "")] * len(questions)
    for rows, batch in windows.part.in_order(16):
        output = model(**{name: value.to(device) for name, value in batch.items() if name != "labels"})
        for row, first, last in zip(rows.tolist(), output.start_logits.cpu(), output.end_logits.cpu(), strict=True):
            spans, owner = windows.offsets[row], windows.owners[row]
            inside = torch.tensor([span is not None for span in spans])
            length = len(spans)
            both = first[:length, None].masked_fill(~inside[:, None], -1e9) + last[None, :length].masked_fill(
                ~inside, -1e9
            )
            both = both + torch.triu(torch.ones_like(both)).tril(ANSWER - 1).log()
            place = int(both.argmax())
            begin, end = spans[place // length], spans[place % length]
            if begin and end and (score := float(both.flatten()[place])) > best[owner][0]:
                best[owner] = score, questions[owner].context[begin[0] : end[1]]
    return [text for _, text in best]


def words_of(text: str) -> list[str]:
    """Words without case, punctuation and articles."""
    plain = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", plain).split()


def exact_and_f1(guess: str, answers: tuple[str, ...]) -> tuple[float, float]:
    """Against the answer that it is most like, 100 or less."""
    guessed, best = words_of(guess), (0.0, 0.0)
    for answer in answers:
        wanted = words_of(answer)
        common = sum((Counter(guessed) & Counter(wanted)).values())
        overlap = 200 * common / (len(guessed) + len(wanted)) if guessed or wanted else 100.0
        best = max(best[0], 100.0 * (guessed == wanted)), max(best[1], overlap)
    return best


def one_run(
    source: Source,
    parts: list[list[Question]],
    plan: dict[str, Any],
    seed: int,
    options: argparse.Namespace,
    folder: Path,
) -> dict[str, float]:
    """A model fine-tuned and measured."""
    set_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(source.folder)
    model = AutoModelForQuestionAnswering.from_pretrained(source.folder, dtype="float32")
    train, dev = (encoded(questions, tokenizer, plan["length"]) for questions in parts)
    steps = max(1, round(plan["epochs"] * len(train.part) / plan["batch"]))
    settled = Plan(steps, plan["batch"], plan["rate"], steps // 10)
    groups = hf_heads.parameter_groups(model, settled.learning_rate)
    fit(model, train.part.batches(settled.batch, seed), settled, options, folder, loss, groups)
    found = answers(model, dev, parts[1], options.device)
    scores = [exact_and_f1(guess, one.answers) for guess, one in zip(found, parts[1], strict=True)]
    exact, overlap = (sum(column) / len(scores) for column in zip(*scores, strict=True))
    return {"exact": exact, "f1": overlap}


def add_options(parser: argparse.ArgumentParser) -> None:
    add_folders(parser, "data", "work")
    parser.add_argument("--models", nargs="+", metavar="DIR", help="original or converted; needed without --small")
    for name, value in PAPER.items():
        about = f"default {value}, with --small {SMALL[name]}"
        parser.add_argument(f"--{name}", type=type(SMALL[name]), help=about)
    add_training(parser)
    add_runs(parser, 3, f"the first {QUESTIONS} questions")


def _converted(name: str, options: argparse.Namespace) -> str:
    """The folder of a MiniLM converted without data."""
    folder = options.work / name
    if not folder.is_dir():
        made = CalibrationChoice(seed=options.seed)
        convert_checkpoint(ConversionRequest(MINILM, CONVERTED[name], calibration=made), folder)
    return str(folder)


def _attention(source: Source) -> int:
    """How many parameters the attention of a model has."""
    model = AutoModelForQuestionAnswering.from_pretrained(source.folder)
    return sum(one.numel() for name, one in model.named_parameters() if ".attention." in name)


def run(options: argparse.Namespace) -> None:
    if not (options.models or options.small):
        raise HeadsError("no models to fine-tune: name some with --models, or add --small")
    most = QUESTIONS if options.small else None
    files = [options.data / "squad" / f"{part}-v1.1.json" for part in ("train", "dev")]
    parts = [read(file, most) for file in files]
    base = SMALL if options.small else PAPER
    plan = {name: value if (value := getattr(options, name)) is not None else base[name] for name in PAPER}
    seeds, rows = seeds_of(options), []
    for given in options.models or [MINILM, *(_converted(name, options) for name in CONVERTED)]:
        source = resolve_source(given)
        kept = {**plan, "model": given, "data": (*map(str, files), most), "precision": options.precision}
        name = re.sub(r"\W+", "-", given)[-40:]
        runs = [
            remembered(options, f"squad{name}-{seed}", kept, partial(one_run, source, parts, plan, seed, options))
            for seed in seeds
        ]
        row = {"variant": Path(given).name.removeprefix("package:"), "attention": _attention(source)}
        row |= {metric: over_seeds([one[metric] for one in runs]) for metric in ("exact", "f1")}
        shown({"model": given, **{metric: row[metric]["mean"] for metric in ("exact", "f1")}})
        rows.append(row)
    save("squad", {**plan, "questions": [len(part) for part in parts], "seeds": list(seeds), "rows": rows}, options)
    draw_by_attention(figure(options, "squad.png"), rows, lambda row: row["f1"], "F1 of words", "Answers on SQuAD")
