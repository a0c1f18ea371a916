"""Speed of head embeddings: an attention block, and Marian decoding with four beams; in one process, interleaved.

    MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=4294967296 MALLOC_TOP_PAD_=268435456 \\
        python scripts/mhe_latency.py --marian DIR --pairs val.jsonl

The block is the first of all-MiniLM-L6-v2 with its output projection, float32, `sdpa`, no padding. Ratios are of
medians: original time / converted time. Decoding makes a fixed number of tokens for a batch of sentences. Writes
scripts/results/mhe_latency.json.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from common import medians, minilm, parser, read_jsonl, save, start
from transformers import AutoTokenizer, PreTrainedModel

import hf_heads
from hf_heads import MheSpec
from hf_heads.checkpoints.loading import load_source
from hf_heads.checkpoints.sources import resolve_source
from hf_heads.hosts.blocks import Block, find_blocks

SHAPES = [(batch, length) for batch in (1, 8, 32) for length in (32, 128, 512)]
SPECS = {
    "mul G = 1": MheSpec(),
    "add G = 1": MheSpec(variant="add"),
    "mul G = 3": MheSpec(groups=3),
    "mul G = 6": MheSpec(groups=6),
}
NEW_TOKENS = 40


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--seconds", type=float, default=6.0, help="per shape (default 6)")
    options.add_argument("--marian", required=True)
    options.add_argument("--pairs", required=True)
    options = options.parse_args()
    start(options)
    _, model = minilm()
    blocks = {"original": find_blocks(model)[0]}
    for name, spec in SPECS.items():
        blocks[name] = find_blocks(hf_heads.convert(model, spec, blocks="*layer.0*")[0])[0]
    rows = []
    for batch, length in SHAPES:
        states = torch.randn(batch, length, model.config.hidden_size)

        def run(block: Block, states: torch.Tensor = states) -> Callable[[], object]:
            return lambda: block.output(block.module(states)[0])

        with torch.inference_mode():
            times = medians({name: run(block) for name, block in blocks.items()}, options.seconds)
        for name in SPECS:
            row = {"method": name, "batch": batch, "length": length, "milliseconds": 1000 * times[name]}
            row["ratio"] = times["original"] / times[name]
            rows.append(row)
            print(f"{batch:3} x {length:3} {name} {row['ratio']:.2f}", flush=True)

    marian = load_source(resolve_source(options.marian))
    tokenizer = AutoTokenizer.from_pretrained(options.marian)
    heads = find_blocks(marian)[0].module.num_heads
    models = {"original": marian}
    for groups in (1, heads // 2):
        models[f"mul G = {groups}"] = hf_heads.convert(marian, MheSpec(groups=groups))[0]
    decoding = []
    for batch in (1, 16, 64):
        texts = [row["en"] for row in read_jsonl(options.pairs)[:batch]]
        inputs = tokenizer(texts, padding=True, return_tensors="pt")

        def decode(one: PreTrainedModel, inputs: dict = inputs) -> Callable[[], object]:
            settings = dict(num_beams=4, do_sample=False, min_new_tokens=NEW_TOKENS, max_new_tokens=NEW_TOKENS)
            return lambda: one.generate(**inputs, **settings)

        times = medians({name: decode(one) for name, one in models.items()}, 5 * options.seconds)
        for name, seconds in times.items():
            row = {"method": name, "batch": batch, "tokens_per_second": batch * NEW_TOKENS / seconds}
            row["ratio"] = times["original"] / seconds
            decoding.append(row)
            print(f"decoding {batch:3} {name} {row['tokens_per_second']:.0f} tokens/s ({row['ratio']:.2f})", flush=True)
    save("mhe_latency", {"rows": rows, "decoding": decoding, "new_tokens": NEW_TOKENS}, options)


if __name__ == "__main__":
    main()
