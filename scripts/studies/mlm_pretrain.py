"""Masked language models from scratch: multi-head attention, heads that share one projection, and their controls.

The pre-training of arXiv 2310.07911 with BERT's own sizes and steps, without its task of next sentences. --text are
files of plain text; a tenth of their pieces is measured on. The models are kept below --work for `squad` and `glue`.
Perplexity of a masked token, and how much of multi-head attention's is retained, over seeds.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tokenizers import BertWordPieceTokenizer
from torch import Tensor
from transformers import (
    AutoModelForMaskedLM,
    AutoTokenizer,
    BertConfig,
    BertTokenizerFast,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)

import hf_heads
from hf_heads.core.errors import HeadsError
from studies.mhe_scratch import retained
from studies.shared.attentions import SHARED, SOFTMAX
from studies.shared.drawing import draw_by_attention
from studies.shared.inputs import TEXT
from studies.shared.running import add_folders, figure, save, shown
from studies.shared.sequences import IGNORED
from studies.shared.training import Plan, add_runs, add_training, fit, over_seeds, remembered, seeds_of
from studies.shared.words import lines_of

VARIANTS = {"mha": SOFTMAX["softmax h"], **SHARED}
SHARE = 0.15  # of the tokens is to be guessed
PAPER: dict[str, Any] = {
    "width": 768,
    "heads": 12,
    "layers": 12,
    "length": 128,
    "vocabulary": 30_522,
    "steps": 1_000_000,
    "batch": 256,
    "rate": 1e-4,
    "warmup": 10_000,
}
SMALL: dict[str, Any] = {
    "width": 64,
    "heads": 8,
    "layers": 2,
    "length": 64,
    "vocabulary": 2000,
    "steps": 300,
    "batch": 16,
    "rate": 2e-3,
    "warmup": 30,
}


@dataclass(frozen=True)
class Masked:
    """Pieces of text, (pieces, length), some of whose tokens are hidden.

    Attributes:
        ids: each begins with [CLS] and ends with [SEP].
        hidden: the token that stands for a hidden one.
        ordinary: the first token that is no special one.
        tokens: how many there are.
    """

    ids: Tensor
    hidden: int
    ordinary: int
    tokens: int

    def batch(self, rows: Tensor, draw: torch.Generator) -> dict[str, Tensor]:
        """Of the tokens that are to be guessed 80 % are hidden, 10 % are others, 10 % stay."""
        ids = self.ids[rows].long()
        chosen = (torch.rand(ids.shape, generator=draw) < SHARE) & (ids >= self.ordinary)
        how = torch.rand(ids.shape, generator=draw)
        others = torch.randint(self.ordinary, self.tokens, ids.shape, generator=draw)
        inputs = ids.masked_fill(chosen & (how < 0.8), self.hidden)
        inputs = torch.where(chosen & (how >= 0.9), others, inputs)
        return {"input_ids": inputs, "labels": ids.masked_fill(~chosen, IGNORED)}

    def batches(self, size: int, seed: int) -> Iterator[dict[str, Tensor]]:
        """Batches without end, other tokens hidden in every epoch."""
        draw = torch.Generator().manual_seed(seed)
        while True:
            for rows in torch.randperm(len(self.ids), generator=draw).split(size):
                yield self.batch(rows, draw)

    @torch.no_grad()
    def perplexity(self, model: PreTrainedModel) -> float:
        """Of the tokens to guess, the same for every model."""
        model.eval()
        draw, total, count = torch.Generator().manual_seed(0), 0.0, 0
        for rows in torch.arange(len(self.ids)).split(32):
            batch = self.batch(rows, draw)
            guessed = int((batch["labels"] != IGNORED).sum())
            if guessed:
                total += guessed * float(model(**{name: one.to(model.device) for name, one in batch.items()}).loss)
                count += guessed
        return math.exp(total / count)


def tokenizer_of(options: argparse.Namespace, vocabulary: int) -> PreTrainedTokenizerBase:
    """The tokenizer that is named, or word pieces learned on the text."""
    if options.tokenizer:
        return AutoTokenizer.from_pretrained(options.tokenizer)
    pieces = BertWordPieceTokenizer(lowercase=True)
    pieces.train(list(map(str, options.text)), vocab_size=vocabulary, show_progress=False)
    return BertTokenizerFast(tokenizer_object=pieces._tokenizer)


def read(options: argparse.Namespace, sizes: dict[str, Any]) -> tuple[Masked, Masked, PreTrainedTokenizerBase]:
    """Pieces to train and to measure on, and their tokenizer."""
    tokenizer, inner = tokenizer_of(options, sizes["vocabulary"]), sizes["length"] - 2
    rest: list[int] = []
    pieces: list[Tensor] = []
    for path in options.text:
        for line in lines_of(Path(path)):
            rest += tokenizer(line, add_special_tokens=False)["input_ids"]
            while len(rest) >= inner:
                row = [tokenizer.cls_token_id, *rest[:inner], tokenizer.sep_token_id]
                pieces.append(torch.tensor(row, dtype=torch.int32))
                rest = rest[inner:]
    if len(pieces) < 10:
        raise HeadsError(f"--text holds {len(pieces)} pieces of {sizes['length']} tokens: ten are the least")
    ids, ordinary = torch.stack(pieces), 1 + max(tokenizer.all_special_ids)
    masked = partial(Masked, hidden=tokenizer.mask_token_id, ordinary=ordinary, tokens=len(tokenizer))
    cut = len(ids) * 9 // 10
    return masked(ids[:cut]), masked(ids[cut:]), tokenizer


def one_run(
    parts: tuple[Masked, Masked, PreTrainedTokenizerBase],
    variant: str,
    sizes: dict[str, Any],
    seed: int,
    options: argparse.Namespace,
    folder: Path,
) -> dict[str, Any]:
    """A model trained, measured and kept."""
    set_seed(seed)
    train, dev, tokenizer = parts
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=sizes["width"],
        num_attention_heads=sizes["heads"],
        num_hidden_layers=sizes["layers"],
        intermediate_size=4 * sizes["width"],
        max_position_embeddings=max(512, sizes["length"]),
        pad_token_id=tokenizer.pad_token_id,
    )
    spec = VARIANTS[variant](sizes["heads"], sizes["length"])
    model = AutoModelForMaskedLM.from_config(hf_heads.heads_config(config, spec) if spec else config)
    plan = Plan(sizes["steps"], sizes["batch"], sizes["rate"], sizes["warmup"])
    fit(model, train.batches(plan.batch, seed), plan, options, folder)
    kept = folder.parent / "model"
    model.save_pretrained(kept)
    tokenizer.save_pretrained(kept)
    attention = sum(one.numel() for name, one in model.named_parameters() if ".attention." in name)
    return {"perplexity": dev.perplexity(model), "attention": attention, "model": str(kept)}


def add_options(parser: argparse.ArgumentParser) -> None:
    add_folders(parser, "data", "work")
    about = "plain text (default, with --small alone: WikiText-2's validation text below --data)"
    parser.add_argument("--text", nargs="+", metavar="FILE", help=about)
    parser.add_argument("--tokenizer", metavar="DIR", help="default: word pieces learned on the text")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    for name, value in PAPER.items():
        kind, about = float if name == "rate" else int, f"default {value}, with --small {SMALL[name]}"
        parser.add_argument(f"--{name}", type=kind, metavar="N", help=about)
    add_training(parser)
    add_runs(parser, 2, "a small model")


def run(options: argparse.Namespace) -> None:
    base = SMALL if options.small else PAPER
    sizes = {name: value if (value := getattr(options, name)) is not None else base[name] for name in base}
    if options.text is None:
        if not options.small:
            raise HeadsError("no text to learn: name files with --text")
        options.text = [options.data / TEXT]
    parts, rows = read(options, sizes), []
    seeds = seeds_of(options)
    kept = {**sizes, "precision": options.precision, "text": options.text, "tokenizer": options.tokenizer}
    for variant in options.variants:
        one = partial(one_run, parts, variant, sizes)
        runs = [remembered(options, f"mlm-{variant}-{seed}", kept, partial(one, seed, options)) for seed in seeds]
        row = {"variant": variant, "attention": runs[0]["attention"]}
        row["models"] = [str(Path(run["model"]).relative_to(options.work)) for run in runs]
        row["perplexity"] = over_seeds([run["perplexity"] for run in runs])
        whole = rows[0]["perplexity"]["mean"] if rows else row["perplexity"]["mean"]
        rows.append({**row, "retained": retained(row["perplexity"]["mean"], whole)})
        shown({**rows[-1], "mean": row["perplexity"]["mean"]})
    save("mlm_pretrain", {**sizes, "pieces": len(parts[0].ids), "seeds": list(seeds), "rows": rows}, options)
    name, title = "perplexity of a hidden token", "Masked language models from scratch"
    draw_by_attention(figure(options, "mlm_pretrain.png"), rows, lambda row: row["perplexity"], name, title)
