"""Small classifiers from scratch: all heads, half of them, half of them with mixtures of Gaussian keys.

ListOps (see the study listops) and SST-2, the same data, steps and settings for every kind of attention. Two guesses
bound ListOps from below: the commonest value, and the commonest value of the outermost operator.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import AutoModelForSequenceClassification, BertConfig, PreTrainedModel, set_seed

import hf_heads
from studies import listops
from studies.shared.inputs import files, read_jsonl
from studies.shared.running import Timer, add_folders, save, shown
from studies.shared.sequences import Padded, Part
from studies.shared.training import Plan, fit

# What stands in the place of multi-head attention, for a number of heads of the original.
VARIANTS: dict[str, Callable[[int], hf_heads.HeadsSpec | None]] = {
    "softmax h": lambda heads: None,
    "softmax h/2": lambda heads: hf_heads.PrunedSpec(kept=tuple(range(heads // 2))),
    "mgk h/2": lambda heads: hf_heads.MgkSpec(heads=heads // 2, components=2, mixture="mgk"),
    "smgk h/2": lambda heads: hf_heads.MgkSpec(heads=heads // 2, components=2, mixture="smgk"),
}
TEST = 5000  # sequences of ListOps to measure on


@dataclass(frozen=True)
class Settings:
    """How a task is trained."""

    steps: int
    batch: int
    learning_rate: float
    dropout: float

    @property
    def plan(self) -> Plan:
        """The rate climbs over the first tenth of the steps."""
        return Plan(self.steps, self.batch, self.learning_rate, self.steps // 10)


# Chosen with all heads alone, on ListOps of seed 0 and on the last 1000 of SST-2's training sentences.
SETTINGS = {
    "listops": Settings(steps=3000, batch=64, learning_rate=2e-3, dropout=0.0),
    "sst2": Settings(steps=500, batch=32, learning_rate=1e-3, dropout=0.3),
}


@dataclass(frozen=True)
class Task:
    """A classification to learn, and percent right without learning."""

    train: Part
    test: Part
    vocabulary: int
    classes: int
    guesses: dict[str, float]


def read_listops(options: argparse.Namespace) -> Task:
    rows = listops.split(options.sequences, TEST, options.minimum, options.maximum, seed=1)
    parts = [listops.part(one) for one in rows]
    return Task(*parts, len(listops.VOCABULARY), listops.CLASSES, listops.guesses(rows[1]))


def read_sst2(options: argparse.Namespace) -> Task:
    rows = [read_jsonl(path) for path in files("sst2", options)]
    bpe = ByteLevelBPETokenizer(lowercase=True)
    bpe.train_from_iterator(
        [row["sentence"] for row in rows[0]],
        vocab_size=options.vocabulary,
        special_tokens=["<pad>", "<cls>"],
        show_progress=False,
    )
    parts = []
    for part in rows:
        ids = Padded.of([[bpe.token_to_id("<cls>"), *bpe.encode(row["sentence"]).ids] for row in part])
        parts.append(Part(ids, torch.tensor([row["label"] for row in part])))
    majority = 100 * float(parts[1].labels.bincount().max()) / len(rows[1])
    return Task(*parts, bpe.get_vocab_size(), 2, {"majority": majority})


TASKS: dict[str, Callable[[argparse.Namespace], Task]] = {"listops": read_listops, "sst2": read_sst2}


def make(
    task: Task, spec: hf_heads.HeadsSpec | None, settings: Settings, options: argparse.Namespace
) -> PreTrainedModel:
    """A BERT with random weights."""
    config = BertConfig(
        vocab_size=task.vocabulary,
        hidden_size=options.width,
        num_hidden_layers=options.layers,
        num_attention_heads=options.heads,
        intermediate_size=4 * options.width,
        max_position_embeddings=max(int(part.inputs.lengths.max()) for part in (task.train, task.test)),
        hidden_dropout_prob=settings.dropout,
        attention_probs_dropout_prob=settings.dropout,
        num_labels=task.classes,
    )
    if spec is not None:
        config = hf_heads.heads_config(config, spec)
    return AutoModelForSequenceClassification.from_config(config)


@torch.no_grad()
def accuracy(model: PreTrainedModel, part: Part) -> float:
    """Percent of the rows whose label is predicted."""
    model.eval()
    right = 0
    for _, batch in part.in_order(64):
        inputs = {name: value.to(model.device) for name, value in batch.items()}
        right += int((model(**inputs).logits.argmax(-1).cpu() == batch["labels"]).sum())
    return 100 * right / len(part)


def measure(task: Task, variant: str, settings: Settings, seed: int, options: argparse.Namespace) -> dict:
    """One run from scratch."""
    set_seed(seed)
    model = make(task, VARIANTS[variant](options.heads), settings, options).to(options.device)
    with Timer() as timer:
        loss = fit(model, task.train.batches(settings.batch, seed), settings.plan, options)
    return {
        "seed": seed,
        "accuracy": accuracy(model, task.test),
        "loss": loss,
        "parameters": model.num_parameters(),
        "attention": sum(weight.numel() for name, weight in model.named_parameters() if ".attention." in name),
        "seconds": timer.seconds,
    }


def add_options(parser: argparse.ArgumentParser) -> None:
    add_folders(parser, "data")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--seeds", type=int, default=3, help="how many runs of each, from --seed on (default 3)")
    parser.add_argument("--heads", type=int, default=4, help="h (default 4)")
    parser.add_argument("--width", type=int, default=64, help="hidden size (default 64)")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--steps", type=int, help="instead of each task's own number")
    parser.add_argument("--sequences", type=int, default=100_000, help="ListOps to train on (default 100000)")
    listops.add_lengths(parser, 8, 32)
    parser.add_argument("--vocabulary", type=int, default=4000, help="tokens to learn for SST-2 (default 4000)")


def run(options: argparse.Namespace) -> None:
    results: dict[str, dict] = {}
    for name in options.tasks:
        task, settings = TASKS[name](options), SETTINGS[name]
        if options.steps is not None:
            settings = replace(settings, steps=options.steps)
        rows = []
        print(name, asdict(settings), task.guesses)
        for variant in options.variants:
            seeds = range(options.seed, options.seed + options.seeds)
            runs = [measure(task, variant, settings, seed, options) for seed in seeds]
            found = [one["accuracy"] for one in runs]
            row = {
                "variant": variant,
                "accuracy": statistics.mean(found),
                "spread": statistics.stdev(found) if len(found) > 1 else None,
                "parameters": runs[0]["parameters"],
                "attention": runs[0]["attention"],
                "seconds": statistics.mean(one["seconds"] for one in runs),
                "runs": runs,
            }
            rows.append(shown(row))
        results[name] = {"settings": asdict(settings), "guesses": task.guesses, "rows": rows}
    names = ("heads", "width", "layers", "sequences", "minimum", "maximum", "vocabulary", "seeds")
    save("mgk_scratch", {**{name: getattr(options, name) for name in names}, **results}, options)
