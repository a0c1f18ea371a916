"""Long Range Arena from scratch: softmax and linear attention, all heads, half of them, half with two keys each.

Tables of arXiv 2110.08678: ListOps, generated here, Text (reviews as bytes) and Retrieval (pairs of papers as bytes),
in a pre-norm encoder with the sizes and steps of the authors' code. --data holds imdb/{train,dev}.jsonl with `sentence`
and `label`, and aan/{train,dev}.jsonl with `text1`, `text2` and `label`. Accuracy in percent, over seeds. With --small
ListOps are short, Text is SST-2, and Retrieval is left out. Draws a figure of each task.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, XLMRobertaXLConfig, set_seed

import hf_heads
from hf_heads.core.batches import mean_pool
from hf_heads.core.errors import HeadsError
from studies import listops
from studies.shared.attentions import E_STEPS, GAUSSIAN, LINEAR, SOFTMAX
from studies.shared.drawing import draw_by_attention
from studies.shared.inputs import read_jsonl
from studies.shared.running import add_folders, figure, save, shown
from studies.shared.sequences import Padded, Part
from studies.shared.training import Plan, add_runs, add_training, fit, over_seeds, remembered, seeds_of

BYTES = 258  # with 0 for padding and 1 unused
WIDTH, INNER, LAYERS, HEADS = 64, 128, 2, 2
SMALL_STEPS = {"listops": 800, "text": 200, "retrieval": 200}
VARIANTS = {**SOFTMAX, **GAUSSIAN, **E_STEPS, **LINEAR}


@dataclass(frozen=True)
class Arena:
    """A task: its rows, how many symbols and classes it has, and how it is trained."""

    train: Part
    test: Part
    symbols: int
    classes: int
    plan: Plan

    @property
    def longest(self) -> int:
        """The most symbols of an input."""
        inputs = [padded for part in (self.train, self.test) for padded in (part.inputs, *part.others.values())]
        return max(int(padded.lengths.max()) for padded in inputs)


def read_listops(options: argparse.Namespace) -> Arena:
    train, test = listops.split(options.sequences, options.tests, options.minimum, options.maximum, seed=1)
    plan = Plan(20_000, 32, 1e-4, 8000, epsilon=1e-6, decay=0.0)
    return Arena(listops.part(train), listops.part(test), len(listops.VOCABULARY), listops.CLASSES, plan)


def as_bytes(texts: list[str], longest: int) -> Padded:
    """Texts by the bytes of their characters, two of the numbers left free."""
    return Padded.of([[byte + 2 for byte in text.encode("utf-8")[:longest]] for text in texts])


def read_parts(options: argparse.Namespace, folder: str, columns: tuple[str, ...]) -> list[Part]:
    """Rows of texts as bytes; the second of two texts is `other_ids`."""
    parts = []
    for name in ("train", "dev"):
        path = options.data / folder / f"{name}.jsonl"
        if not path.is_file():
            raise HeadsError(f"no rows in '{path}': write them there, with columns {', '.join(columns)} and label")
        rows = read_jsonl(str(path))
        texts = [as_bytes([row[column] for row in rows], options.longest) for column in columns]
        labels = torch.tensor([row["label"] for row in rows])
        parts.append(Part(texts[0], labels, {"other_ids": texts[1]} if len(texts) > 1 else {}))
    return parts


def read_text(options: argparse.Namespace) -> Arena:
    parts = read_parts(options, "sst2" if options.small else "imdb", ("sentence",))
    return Arena(*parts, BYTES, 2, Plan(20_000, 32, 1e-4, 8000, epsilon=1e-6, decay=0.0))


def read_retrieval(options: argparse.Namespace) -> Arena:
    parts = read_parts(options, "aan", ("text1", "text2"))
    return Arena(*parts, BYTES, 2, Plan(30_000, 24, 1e-4, 8000, epsilon=1e-6, decay=0.0))


TASKS: dict[str, Callable[[argparse.Namespace], Arena]] = {
    "listops": read_listops,
    "text": read_text,
    "retrieval": read_retrieval,
}


class Classifier(nn.Module):
    """An encoder, the mean of its tokens, and two layers on it; of pairs on both means, their product and difference.

    Args:
        task: symbols, classes and the longest input.
        spec: the attention's settings, None for the host's own.
    """

    def __init__(self, task: Arena, spec: hf_heads.HeadsSpec | None) -> None:
        super().__init__()
        config = XLMRobertaXLConfig(
            vocab_size=task.symbols,
            hidden_size=WIDTH,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            intermediate_size=INNER,
            max_position_embeddings=task.longest + 1,
            type_vocab_size=1,
            pad_token_id=0,
        )
        config = config if spec is None else hf_heads.heads_config(config, spec)
        self.encoder = AutoModel.from_config(config, add_pooling_layer=False)
        pooled = WIDTH * (4 if task.train.others else 1)
        self.head = nn.Sequential(nn.Linear(pooled, INNER), nn.ReLU(), nn.Linear(INNER, task.classes))

    def _pooled(self, ids: Tensor, mask: Tensor) -> Tensor:
        return mean_pool(self.encoder(input_ids=ids, attention_mask=mask)[0].float(), mask)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, other_ids: Tensor | None = None, labels: Tensor | None = None
    ) -> Tensor:
        """Logits, (batch, classes)."""
        first = self._pooled(input_ids, attention_mask)
        if other_ids is None:
            return self.head(first)
        second = self._pooled(other_ids, (other_ids != 0).long())
        return self.head(torch.cat([first, second, first * second, first - second], 1))


def loss(model: nn.Module, batch: Any) -> Tensor:
    """Cross-entropy of the labels."""
    return nn.functional.cross_entropy(model(**batch), batch["labels"])


@torch.no_grad()
def accuracy(model: nn.Module, part: Part, device: str) -> float:
    """Percent right."""
    model.eval()
    right = 0
    for _, batch in part.in_order(64):
        logits = model(**{name: value.to(device) for name, value in batch.items()})
        right += int((logits.argmax(1).cpu() == batch["labels"]).sum())
    return 100 * right / len(part)


def one_run(
    task: Arena, plan: Plan, variant: str, seed: int, options: argparse.Namespace, folder: Path
) -> dict[str, float]:
    """A model trained and measured."""
    set_seed(seed)
    model = Classifier(task, VARIANTS[variant](HEADS, task.longest))
    trained = fit(model, task.train.batches(plan.batch, seed), plan, options, folder, loss)
    return {
        "accuracy": accuracy(model, task.test, options.device),
        "loss": trained,
        "attention": sum(one.numel() for name, one in model.named_parameters() if ".attention." in name),
    }


def add_options(parser: argparse.ArgumentParser) -> None:
    add_folders(parser, "data", "work")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, help="default all, with --small listops and text")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    about = "instead of the authors' number (with --small 800 of ListOps, 200 of others)"
    parser.add_argument("--steps", type=int, help=about)
    parser.add_argument("--longest", type=int, default=4096, help="bytes of a text (default 4096)")
    parser.add_argument("--sequences", type=int, help="ListOps to train on (default 96000, with --small 10000)")
    parser.add_argument("--tests", type=int, default=2000, help="ListOps to test on (default 2000)")
    parser.add_argument("--minimum", type=int, help="fewest tokens of a ListOps (default 500, with --small 8)")
    parser.add_argument("--maximum", type=int, help="most tokens (default 2000, with --small 32)")
    add_training(parser)
    add_runs(parser, 5, "short ListOps and sentences, fewer steps at a higher rate")


def settle(options: argparse.Namespace) -> None:
    """Fill in what is not given: the paper's, or small sizes."""
    paper = {"tasks": list(TASKS), "sequences": 96_000, "minimum": 500, "maximum": 2000, "steps": None}
    small = {"tasks": ["listops", "text"], "sequences": 10_000, "minimum": 8, "maximum": 32, "steps": None}
    for name, value in (small if options.small else paper).items():
        if getattr(options, name) is None:
            setattr(options, name, value)


def run(options: argparse.Namespace) -> None:
    settle(options)
    seeds, rows, steps_of = seeds_of(options), [], {}
    sizes = {name: getattr(options, name) for name in ("sequences", "tests", "minimum", "maximum", "longest")}
    for name in options.tasks:
        task = TASKS[name](options)
        plan = task.plan
        if steps := options.steps or (SMALL_STEPS[name] if options.small else None):
            rate = 1e-3 if options.small else plan.learning_rate
            plan = Plan(steps, plan.batch, rate, steps // 10, epsilon=1e-6, decay=0.0)
        steps_of[name] = plan.steps
        for variant in options.variants:
            kept = {**sizes, "plan": plan, "precision": options.precision, "data": str(options.data)}
            runs = [
                remembered(
                    options,
                    f"lra-{name}-{variant.replace('/', '')}-{seed}".replace(" ", ""),
                    kept,
                    partial(one_run, task, plan, variant, seed, options),
                )
                for seed in seeds
            ]
            found = over_seeds([one["accuracy"] for one in runs])
            row = {"task": name, "variant": variant, "attention": runs[0]["attention"]}
            shown({**row, "mean": found["mean"]})
            rows.append({**row, "accuracy": found, "loss": over_seeds([one["loss"] for one in runs])})
        mine = [row for row in rows if row["task"] == name]
        path, title = figure(options, f"lra_{name}.png"), f"{name} from scratch"
        draw_by_attention(path, mine, lambda row: row["accuracy"], "accuracy (%)", title)
    guesses = {"guesses": listops.guesses(listops.split(1, options.tests, options.minimum, options.maximum, 1)[1])}
    save("lra", {**sizes, **guesses, "steps": steps_of, "seeds": list(seeds), "rows": rows}, options)
