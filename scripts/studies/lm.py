"""Language models from scratch, by words: all heads, half of them with two keys each, heads that share one projection.

WikiText-103 as in arXiv 2110.08678 and 2310.07911: the official parts, their words, an adaptive softmax, perplexity of
a word with a sliding window; sizes and settings of the former's authors, whose softmax shares its weights with the
embeddings, which this one does not. --data holds wikitext-103/wiki.train.tokens, wiki.valid.tokens and
wiki.test.tokens. --small takes the validation text of WikiText-2 alone, and of its articles every tenth to test on: no
figure of any official part.
"""

from __future__ import annotations

import argparse
import math
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, GPT2Config, set_seed

import hf_heads
from hf_heads.core.errors import HeadsError
from studies.shared.attentions import GAUSSIAN, LINEAR, SHARED, SOFTMAX
from studies.shared.drawing import draw_by_attention
from studies.shared.inputs import TEXT
from studies.shared.running import add_folders, figure, save, shown
from studies.shared.training import Plan, add_runs, add_training, fit, over_seeds, remembered, seeds_of
from studies.shared.words import END, Text, ids_of, lines_of, split_articles, vocabulary_of

PARTS = tuple(Path("wikitext-103") / f"wiki.{part}.tokens" for part in ("train", "valid", "test"))
PAPER: dict[str, Any] = {
    "width": 128,
    "heads": 8,
    "layers": 16,
    "inner": 2048,
    "length": 256,
    "cutoffs": [20_000, 40_000, 200_000],
    "steps": 500_000,
    "batch": 96,
    "rate": 2.5e-4,
    "warmup": 2000,
    "stride": 1,
}
SMALL: dict[str, Any] = {
    "width": 64,
    "heads": 8,
    "layers": 2,
    "inner": 256,
    "length": 64,
    "cutoffs": [1000, 4000],
    "steps": 300,
    "batch": 16,
    "rate": 2e-3,
    "warmup": 30,
    "stride": 32,
}
LEAST = 3  # how often a word of the small text has to come; in WikiText-103 rarer ones are <unk> already


VARIANTS = {**SOFTMAX, **GAUSSIAN, "mlk h/2": LINEAR["mlk h/2"], **SHARED}


class LanguageModel(nn.Module):
    """A decoder and an adaptive softmax over words.

    Args:
        words: how many there are, the commonest first.
        spec: the attention's settings, None for the host's own.
        sizes: of the model.
    """

    def __init__(self, words: int, spec: hf_heads.HeadsSpec | None, sizes: dict[str, Any]) -> None:
        super().__init__()
        config = GPT2Config(
            vocab_size=words,
            n_embd=sizes["width"],
            n_head=sizes["heads"],
            n_layer=sizes["layers"],
            n_inner=sizes["inner"],
            n_positions=sizes["length"],
            activation_function="relu",
            attn_pdrop=0.0,
            use_cache=False,
        )
        self.decoder = AutoModel.from_config(hf_heads.heads_config(config, spec) if spec else config)
        cutoffs = [one for one in sizes["cutoffs"] if one < words]
        self.softmax = nn.AdaptiveLogSoftmaxWithLoss(sizes["width"], words, cutoffs, div_value=1.0)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Of (batch, length + 1) words the log-probability of all but the first, (batch, length)."""
        states = self.decoder(input_ids=input_ids[:, :-1])[0].float()
        return self.softmax(states.flatten(0, 1), input_ids[:, 1:].flatten()).output.view(states.shape[:2])


def loss(model: nn.Module, batch: Any) -> Tensor:
    """Mean negative log-probability of a word."""
    return -model(**batch).mean()


@torch.no_grad()
def perplexity(model: nn.Module, text: Text, stride: int, device: str) -> float:
    """Of a word, each seen once by a sliding window."""
    model.eval()
    total, count = 0.0, 0
    for ids, fresh in text.windows(stride, 32):
        found = model(ids.to(device)).cpu().double()
        total -= float(found[fresh].sum())
        count += int(fresh.sum())
    return math.exp(total / count)


class Texts:
    """The parts of a corpus by their words.

    Attributes:
        words: how many different ones there are.
        train: to train on.
        tests: by name, to measure on.
    """

    def __init__(self, sizes: dict[str, Any], options: argparse.Namespace) -> None:
        length = sizes["length"]
        if options.small:
            train, test = split_articles(options.data / TEXT)
            vocabulary = vocabulary_of(train, LEAST)
            self.tests = {"test articles": Text(ids_of(test, vocabulary), length)}
            self.train = Text(ids_of(train, vocabulary), length)
        else:
            paths = [options.data / path for path in PARTS]
            if missing := [path for path in paths if not path.is_file()]:
                raise HeadsError(f"no text in '{missing[0]}': the official parts of WikiText-103 belong there")
            vocabulary = vocabulary_of(lines_of(paths[0]))
            self.train = Text(ids_of(lines_of(paths[0]), vocabulary), length)
            parts = zip(("valid", "test"), paths[1:], strict=True)
            self.tests = {name: Text(ids_of(lines_of(path), vocabulary), length) for name, path in parts}
        self.words = len(vocabulary)
        assert END in vocabulary


def one_run(
    texts: Texts, variant: str, sizes: dict[str, Any], seed: int, options: argparse.Namespace, folder: Path
) -> dict[str, float]:
    """A model trained and measured."""
    set_seed(seed)
    model = LanguageModel(texts.words, VARIANTS[variant](sizes["heads"], sizes["length"]), sizes)
    plan = Plan(sizes["steps"], sizes["batch"], sizes["rate"], sizes["warmup"], schedule="cosine", decay=0.0, clip=0.25)
    fit(model, texts.train.batches(plan.batch, seed), plan, options, folder, loss)
    found = {name: perplexity(model, text, sizes["stride"], options.device) for name, text in texts.tests.items()}
    return {
        **found,
        "parameters": sum(one.numel() for one in model.parameters()),
        "attention": sum(one.numel() for name, one in model.named_parameters() if ".attn." in name),
    }


def add_options(parser: argparse.ArgumentParser) -> None:
    add_folders(parser, "data", "work")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    for name, value in PAPER.items():
        kind, many = (float, None) if name == "rate" else (int, "+" if name == "cutoffs" else None)
        about = f"default {value}, with --small {SMALL[name]}"
        parser.add_argument(f"--{name}", type=kind, nargs=many, metavar="N", help=about)
    add_training(parser)
    add_runs(parser, 2, "a small model on WikiText-2's validation text, split by articles")


def run(options: argparse.Namespace) -> None:
    base = SMALL if options.small else PAPER
    sizes = {name: value if (value := getattr(options, name)) is not None else base[name] for name in base}
    texts, seeds = Texts(sizes, options), seeds_of(options)
    rows: list[dict[str, Any]] = []
    for variant in options.variants:
        kept = {**sizes, "small": options.small, "precision": options.precision, "data": str(options.data)}
        runs = [
            remembered(
                options,
                f"lm-{variant}-{seed}".replace("/", "").replace(" ", ""),
                kept,
                partial(one_run, texts, variant, sizes, seed, options),
            )
            for seed in seeds
        ]
        row = {"variant": variant, **{name: runs[0][name] for name in ("parameters", "attention")}}
        row["perplexity"] = {name: over_seeds([one[name] for one in runs]) for name in texts.tests}
        if rows:
            whole = rows[0]["perplexity"]
            row["ratio"] = {
                name: over_seeds([one[name] / other for one, other in zip(runs, whole[name]["values"], strict=True)])
                for name in texts.tests
            }
        shown({**row, **{name: found["mean"] for name, found in row["perplexity"].items()}})
        rows.append(row)
    counts = {"words": texts.words, "train": len(texts.train.ids)}
    counts |= {name: len(text.ids) for name, text in texts.tests.items()}
    save("lm", {**sizes, **counts, "seeds": list(seeds), "rows": rows}, options)
    last = list(texts.tests)[-1]
    name, title = f"perplexity of a word, {last}", "Language models from scratch"
    draw_by_attention(figure(options, "lm.png"), rows, lambda row: row["perplexity"][last], name, title)
