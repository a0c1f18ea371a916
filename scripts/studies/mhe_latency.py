"""Speed of head embeddings: an attention block, and Marian decoding with four beams; in one process, interleaved.

The block is the first of all-MiniLM-L6-v2 with its output projection, float32, `sdpa`, no padding. Ratios are of
medians: original time / converted time. Decoding makes a fixed number of tokens for a batch of sentences. The
allocator's settings matter: run it by `run.py reproduce mhe_latency`, which sets them.
"""

from __future__ import annotations

import argparse
from functools import partial

from transformers import AutoTokenizer

import hf_heads
from hf_heads import MheSpec
from hf_heads.attention.hosts.blocks import find_blocks
from studies.shared.inputs import files, load, read_jsonl
from studies.shared.running import add_folders, save, shown
from studies.shared.timing import add_seconds, medians, time_blocks

SPECS = {
    "mul G = 1": MheSpec(),
    "add G = 1": MheSpec(variant="add"),
    "mul G = 3": MheSpec(groups=3),
    "mul G = 6": MheSpec(groups=6),
}
NEW_TOKENS = 40


def add_options(parser: argparse.ArgumentParser) -> None:
    add_folders(parser, "data", "models")
    add_seconds(parser, 6)


def run(options: argparse.Namespace) -> None:
    rows = time_blocks(SPECS, options)
    source, marian = load("marian", options)
    tokenizer = AutoTokenizer.from_pretrained(source.folder)
    models = {"original": marian}
    for groups in (1, find_blocks(marian)[0].module.num_heads // 2):
        models[f"mul G = {groups}"] = hf_heads.convert(marian, MheSpec(groups=groups), calibration="none")[0]
    fixed = {"num_beams": 4, "do_sample": False, "min_new_tokens": NEW_TOKENS, "max_new_tokens": NEW_TOKENS}
    decoding = []
    for batch in (1, 16, 64):
        texts = [row["en"] for row in read_jsonl(files("marian", options).dev)[:batch]]
        inputs = tokenizer(texts, padding=True, return_tensors="pt").to(options.device)
        runs = {name: partial(one.generate, **inputs, **fixed) for name, one in models.items()}
        times = medians(runs, 5 * options.seconds, options.device)
        for name, seconds in times.items():
            row = {"method": name, "batch": batch, "tokens_per_second": batch * NEW_TOKENS / seconds}
            decoding.append(shown({**row, "ratio": times["original"] / seconds}))
    save("mhe_latency", {"rows": rows, "decoding": decoding, "new_tokens": NEW_TOKENS}, options)
