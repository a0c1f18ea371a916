"""Small classifiers from scratch: all heads, half of them, half of them with mixtures of Gaussian keys.

ListOps (see the study listops) and SST-2, the same data, steps and settings for every kind of attention. Two guesses
bound ListOps from below: the commonest value, and the commonest value of the outermost operator.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace

import torch
from tokenizers import ByteLevelBPETokenizer
from torch import Tensor
from transformers import AutoModelForSequenceClassification, BertConfig, PreTrainedModel, set_seed

import hf_heads
from studies import listops
from studies.shared.inputs import files, read_jsonl
from studies.shared.running import Timer, add_folders, save, shown

# What stands in the place of multi-head attention, for a number of heads of the original.
VARIANTS: dict[str, Callable[[int], hf_heads.HeadsSpec | None]] = {
    "softmax h": lambda heads: None,
    "softmax h/2": lambda heads: hf_heads.PrunedSpec(kept=tuple(range(heads // 2))),
    "mgk h/2": lambda heads: hf_heads.MgkSpec(heads=heads // 2, components=2, mixture="mgk"),
    "smgk h/2": lambda heads: hf_heads.MgkSpec(heads=heads // 2, components=2, mixture="smgk"),
}
GROUP = 50  # batches that are sorted by length together
TEST = 5000  # sequences of ListOps to measure on


@dataclass(frozen=True)
class Settings:
    """How a task is trained."""

    steps: int
    batch: int
    learning_rate: float
    dropout: float


# Chosen with all heads alone, on ListOps of seed 0 and on the last 1000 of SST-2's training sentences.
SETTINGS = {
    "listops": Settings(steps=3000, batch=64, learning_rate=2e-3, dropout=0.0),
    "sst2": Settings(steps=500, batch=32, learning_rate=1e-3, dropout=0.3),
}


@dataclass(frozen=True)
class Part:
    """Padded sequences of ids and their mask, both (rows, longest), and their labels."""

    ids: Tensor
    mask: Tensor
    labels: Tensor

    def batch(self, rows: Tensor) -> dict[str, Tensor]:
        """What the model takes, as long as the longest of the rows."""
        mask = self.mask[rows]
        length = int(mask.sum(1).max())
        return {
            "input_ids": self.ids[rows, :length],
            "attention_mask": mask[:, :length],
            "labels": self.labels[rows],
        }

    def by_length(self, rows: Tensor) -> Tensor:
        """The same rows, shortest first."""
        return rows[self.mask[rows].sum(1).argsort(stable=True)]

    def batches(self, size: int, seed: int) -> Iterator[dict[str, Tensor]]:
        """Batches of like length without end, others in every epoch."""
        draw = torch.Generator().manual_seed(seed)
        while True:
            groups = torch.randperm(len(self.labels), generator=draw).split(GROUP * size)
            found = [rows for group in groups for rows in self.by_length(group).split(size)]
            for index in torch.randperm(len(found), generator=draw).tolist():
                yield self.batch(found[index])

    def in_order(self, size: int) -> Iterator[dict[str, Tensor]]:
        """Every row once, shortest first."""
        yield from map(self.batch, self.by_length(torch.arange(len(self.labels))).split(size))


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
    parts = [
        Part(*listops.encode([tokens for tokens, _ in part]), torch.tensor([value for _, value in part]))
        for part in rows
    ]
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
        ids = [torch.tensor([bpe.token_to_id("<cls>"), *bpe.encode(row["sentence"]).ids]) for row in part]
        padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)
        parts.append(Part(padded, (padded != 0).long(), torch.tensor([row["label"] for row in part])))
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
        max_position_embeddings=max(part.ids.shape[1] for part in (task.train, task.test)),
        hidden_dropout_prob=settings.dropout,
        attention_probs_dropout_prob=settings.dropout,
        num_labels=task.classes,
    )
    if spec is not None:
        config = hf_heads.heads_config(config, spec)
    return AutoModelForSequenceClassification.from_config(config)


def on(model: PreTrainedModel, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The batch where the model is."""
    return {name: value.to(model.device) for name, value in batch.items()}


def train(model: PreTrainedModel, part: Part, settings: Settings, seed: int) -> float:
    """A fixed number of steps, warmed up over the first tenth; the mean loss of the last tenth."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate)
    tenth = max(1, settings.steps // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / tenth, (settings.steps - step) / max(1, settings.steps - tenth))
    )
    losses = []
    model.train()
    for _, batch in zip(range(settings.steps), part.batches(settings.batch, seed), strict=False):
        loss = model(**on(model, batch)).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
    return statistics.mean(losses[-tenth:])


@torch.no_grad()
def accuracy(model: PreTrainedModel, part: Part) -> float:
    """Percent of the rows whose label is predicted."""
    model.eval()
    right = 0
    for batch in part.in_order(64):
        right += int((model(**on(model, batch)).logits.argmax(-1).cpu() == batch["labels"]).sum())
    return 100 * right / len(part.labels)


def measure(task: Task, variant: str, settings: Settings, seed: int, options: argparse.Namespace) -> dict:
    """One run from scratch."""
    set_seed(seed)
    model = make(task, VARIANTS[variant](options.heads), settings, options).to(options.device)
    with Timer() as timer:
        loss = train(model, task.train, settings, seed)
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
