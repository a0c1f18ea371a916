"""Translation from scratch with ever narrower queries and keys: one shared space, separate heads, shared heads.

Table 1 of arXiv 2006.16362. D_k is the width of all queries, and of all keys: `collab` shares it between heads,
`concatenated` gives each head its part (low-rank), `mhe` shares whole heads. A pre-norm transformer of 16 x 64 heads by
default, with the settings of the authors' code, on rows of two columns; BLEU and the loss of a token of --dev.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from transformers import AutoModelForSeq2SeqLM, PegasusConfig, PreTrainedModel, PreTrainedTokenizerFast, set_seed

import hf_heads
from hf_heads.core.errors import HeadsError
from studies.shared.drawing import draw_by_width
from studies.shared.inputs import files, read_jsonl
from studies.shared.running import add_folders, figure, save, shown
from studies.shared.sequences import IGNORED, Padded, Part
from studies.shared.training import Plan, add_runs, add_training, fit, over_seeds, remembered, seeds_of
from studies.shared.translation import bleu_of

PAD, END = 0, 1
SMOOTHING = 0.1
KINDS = ("collab", "concatenated", "mhe")
PAPER: dict[str, Any] = {
    "width": 1024,
    "heads": 16,
    "layers": 6,
    "inner": 4096,
    "vocabulary": 32_000,
    "longest": 80,
    "widths": [256, 128, 64, 32],
    "steps": 9300,  # about 9 epochs of WMT 17
    "batch": 256,
    "forwards": 17,  # of about 30 tokens a sentence 2^17 in all
    "rate": 1.976e-3,
    "warmup": 1000,
    "beams": 4,
    "measured": None,
}
SMALL: dict[str, Any] = {
    "width": 128,
    "heads": 8,
    "layers": 1,
    "inner": 256,
    "vocabulary": 2000,
    "longest": 16,
    "widths": [16, 8],
    "steps": 700,
    "batch": 32,
    "forwards": 1,
    "rate": 3e-3,
    "warmup": 100,
    "beams": 1,
    "measured": 300,
}


def add_options(parser: argparse.ArgumentParser) -> None:
    add_folders(parser, "data", "work")
    parser.add_argument("--train", metavar="FILE", help=".jsonl of pairs (default: Multi30k below --data)")
    parser.add_argument("--dev", metavar="FILE", help="the same, to measure on")
    parser.add_argument("--columns", nargs=2, default=["en", "de"], help="source and target (default en de)")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    for name, value in PAPER.items():
        kind, many = (float, None) if name == "rate" else (int, "+" if name == "widths" else None)
        about = f"default {value}, with --small {SMALL[name]}"
        parser.add_argument(f"--{name}", type=kind, nargs=many, metavar="N", help=about)
    add_training(parser)
    add_runs(parser, 2, "a small model on short sentences")


def settle(options: argparse.Namespace) -> dict[str, Any]:
    """The sizes: what is given, else the paper's or the small ones."""
    base = SMALL if options.small else PAPER
    return {name: value if (value := getattr(options, name)) is not None else base[name] for name in base}


def spec_of(kind: str, wide: int, sizes: dict[str, Any]) -> hf_heads.HeadsSpec | None:
    """What has queries of this width; None where shared heads are wider already."""
    if kind == "collab":
        return hf_heads.CollabSpec(rank=wide)
    if kind == "concatenated":
        return hf_heads.LowRankSpec(rank=wide)
    groups = wide * sizes["heads"] // sizes["width"]
    return hf_heads.MheSpec(groups_qk=groups, groups_v=sizes["heads"]) if groups else None


class Pairs:
    """Pairs of sentences, their tokenizer learned on those to train on, and what of them is short enough.

    Attributes:
        tokenizer: of both languages.
        train, dev: encoded.
        rows: of dev, to translate.
    """

    def __init__(self, sizes: dict[str, Any], options: argparse.Namespace) -> None:
        paths = options.train, options.dev
        if None in paths:
            paths = tuple(given or path for given, path in zip(paths, files("marian", options), strict=True))
        self.columns = tuple(options.columns)
        train, dev = (read_jsonl(str(path)) for path in paths)
        self.tokenizer = learned([row[name] for row in train for name in self.columns], sizes["vocabulary"])
        self.train, _ = self._encoded(train, sizes["longest"])
        self.dev, self.rows = self._encoded(dev, sizes["longest"])
        self.rows = self.rows[: sizes["measured"]]

    def _encoded(self, rows: list[dict[str, Any]], longest: int) -> tuple[Part, list[dict[str, Any]]]:
        sides = [self.tokenizer([row[name] for row in rows])["input_ids"] for name in self.columns]
        kept = [index for index, pair in enumerate(zip(*sides, strict=True)) if max(map(len, pair)) <= longest]
        if not kept:
            raise HeadsError(f"no pair has at most {longest} tokens on both sides: raise --longest")
        first, second = (Padded.of([side[index] for index in kept]) for side in sides)
        return Part(first, second), [rows[index] for index in kept]


def learned(texts: list[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer that ends every text with END."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel()
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=["<pad>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(texts, trainer)
    bpe.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", END)])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token="<pad>",
        eos_token="</s>",
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )


def make(spec: hf_heads.HeadsSpec | None, vocabulary: int, sizes: dict[str, Any]) -> PreTrainedModel:
    """A transformer with random weights."""
    both = {
        f"{side}_{name}": value
        for side in ("encoder", "decoder")
        for name, value in (
            ("layers", sizes["layers"]),
            ("attention_heads", sizes["heads"]),
            ("ffn_dim", sizes["inner"]),
        )
    }
    config = PegasusConfig(
        **both,
        vocab_size=vocabulary,
        d_model=sizes["width"],
        max_position_embeddings=sizes["longest"] + 64,
        activation_function="relu",
        activation_dropout=0.1,
        attention_dropout=0.1,
        scale_embedding=True,
        pad_token_id=PAD,
        eos_token_id=END,
        decoder_start_token_id=PAD,
        forced_eos_token_id=None,
    )
    return AutoModelForSeq2SeqLM.from_config(hf_heads.heads_config(config, spec) if spec else config)


def token_loss(model: nn.Module, batch: Any, smoothing: float = SMOOTHING, reduction: str = "mean") -> Tensor:
    """Cross-entropy of the target's tokens, with part of the weight on all others."""
    labels = batch["labels"]
    before = torch.cat([torch.full_like(labels[:, :1], PAD), labels[:, :-1]], 1)
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    logits = model(**inputs, decoder_input_ids=before.masked_fill(before == IGNORED, PAD), use_cache=False).logits
    return nn.functional.cross_entropy(
        logits.float().flatten(0, 1),
        labels.flatten(),
        ignore_index=IGNORED,
        label_smoothing=smoothing,
        reduction=reduction,
    )


@torch.no_grad()
def measured_loss(model: PreTrainedModel, batches: Iterator[Any]) -> float:
    """Mean cross-entropy of a token of the target, in nats."""
    model.eval()
    total, count = 0.0, 0
    for _, batch in batches:
        inputs = {name: value.to(model.device) for name, value in batch.items()}
        total += float(token_loss(model, inputs, 0.0, "sum"))
        count += int((batch["labels"] != IGNORED).sum())
    return total / count


def one_run(
    pairs: Pairs,
    spec: hf_heads.HeadsSpec | None,
    sizes: dict[str, Any],
    seed: int,
    options: argparse.Namespace,
    folder: Path,
) -> dict[str, float]:
    """A model trained and measured."""
    set_seed(seed)
    model = make(spec, len(pairs.tokenizer), sizes)
    plan = Plan(
        sizes["steps"],
        sizes["batch"],
        sizes["rate"],
        sizes["warmup"],
        schedule="root",
        betas=(0.9, 0.98),
        epsilon=1e-9,
        decay=0.0,
        forwards=sizes["forwards"],
    )
    trained = fit(model, pairs.train.batches(plan.batch, seed), plan, options, folder, token_loss)
    found = measured_loss(model, pairs.dev.in_order(64))
    penalty = {"length_penalty": 0.6} if sizes["beams"] > 1 else {}
    return {
        "bleu": bleu_of(model, pairs.tokenizer, pairs.rows, pairs.columns, sizes["beams"], **penalty),
        "loss": found,
        "perplexity": math.exp(found),
        "trained": trained,
        "parameters": model.num_parameters(),
    }


def compared(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """By width, what heads that share queries and keys have more than as narrow ones of their own, seed by seed."""
    shared, separate = ({row["width"]: row for row in rows if row["kind"] == kind} for kind in KINDS[:2])
    found = []
    for wide in shared.keys() & separate.keys():
        pairs = {
            name: zip(shared[wide][name]["values"], separate[wide][name]["values"], strict=True)
            for name in ("bleu", "loss")
        }
        more = {name: over_seeds([one - other for one, other in pair]) for name, pair in pairs.items()}
        found.append({"width": wide, **more})
    return sorted(found, key=lambda one: -one["width"])


def run(options: argparse.Namespace) -> None:
    sizes = settle(options)
    pairs, seeds = Pairs(sizes, options), seeds_of(options)
    runs: dict[tuple[str, int], hf_heads.HeadsSpec | None] = {("separate heads", sizes["width"]): None}
    for wide in sizes["widths"]:
        for kind in options.kinds:
            if (spec := spec_of(kind, wide, sizes)) is not None:
                runs[kind, wide] = spec
    rows: list[dict[str, Any]] = []
    for (kind, wide), spec in runs.items():
        about = {name: value for name, value in sizes.items() if name != "widths"}
        kept = {**about, "precision": options.precision, "data": (options.data, options.train, options.dev)}
        found = [
            remembered(
                options,
                f"nmt-{kind.split()[0]}-{wide}-{seed}",
                kept,
                partial(one_run, pairs, spec, sizes, seed, options),
            )
            for seed in seeds
        ]
        row = {"kind": kind, "width": wide, "parameters": found[0]["parameters"]}
        for name in ("bleu", "loss"):
            row[name] = over_seeds([one[name] for one in found])
            if rows:
                row[f"{name}_change"] = over_seeds(
                    [one[name] - other for one, other in zip(found, rows[0][name]["values"], strict=True)]
                )
        shown({**row, **{name: row[name]["mean"] for name in ("bleu", "loss")}})
        rows.append(row)
    counts = {"train": len(pairs.train), "dev": len(pairs.dev), "translated": len(pairs.rows)}
    kept = {**sizes, **counts, "seeds": list(seeds), "rows": rows, "shared_less_separate": compared(rows)}
    save("nmt_scratch", kept, options)
    title = "Translation from scratch by the width of queries and keys"
    draw_by_width(figure(options, "nmt_scratch.png"), rows, "bleu", "BLEU", title)
