"""Quality of converted MiniLMs on the STS benchmark, without fine-tuning: methods x ranks, and what to calibrate on.

    python scripts/stsb.py --train stsb/train.jsonl --dev stsb/dev.jsonl [--text wikitext.txt]

Writes scripts/results/stsb.json. Drop is in Spearman points x 100 against the original; cosine is that of the
converted to the original sentence embeddings, mean over all sentences.
"""

from __future__ import annotations

import tensorly
import torch
from common import SentenceTask, Timer, calibration, minilm, parser, save, start
from tensorly.decomposition import parafac
from transformers import PreTrainedModel

import hf_heads
from hf_heads import CollabSpec, LowRankSpec
from hf_heads.conversion.installing import load_weights
from hf_heads.core.decompositions import SharedFactors
from hf_heads.core.statistics import BlockStatistics
from hf_heads.hosts.blocks import find_blocks
from hf_heads.hosts.reading import read_host
from hf_heads.methods.collab import weights_from_factors

RANKS = (192, 96, 48, 32)


def tucker_rank(rank: int, width: int, heads: int) -> int:
    """The Tucker rank with about the parameters of CP at `rank`: heads r^2 + 2 width r = (heads + 2 width) rank."""
    wanted = (heads + 2 * width) * rank
    return int(((width**2 + heads * wanted) ** 0.5 - width) / heads)


def tensorly_parafac(model: PreTrainedModel, rank: int) -> PreTrainedModel:
    """Plain CP of the unwhitened dense tensors by tensorly from a random start, as a converted model."""
    converted, _ = hf_heads.convert(model, CollabSpec(rank=rank))
    for block, host in zip(find_blocks(converted), find_blocks(model), strict=True):
        dense = read_host(host.module, host.site, host.output)
        double = dense.double()
        tensor = torch.einsum("hid,hjd->ihj", double.query * dense.scale, double.key)
        with tensorly.backend_context("pytorch"):
            found = parafac(tensor, rank, init="random", random_state=0, n_iter_max=50, tol=1e-5)
        query, mixing, key = (factor * found.weights ** (1 / 3) for factor in found.factors)
        factors = SharedFactors(query, mixing, key, 0.0)
        load_weights(block, weights_from_factors(dense, BlockStatistics.uninformed(dense.shape), factors))
    return converted


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--train", required=True, help="training sentences to calibrate on (.jsonl)")
    options.add_argument("--dev", required=True, help="pairs to score (.jsonl)")
    options.add_argument("--text", help="text of another domain to calibrate on (.txt)")
    options = options.parse_args()
    start(options)
    source, model = minilm()
    task = SentenceTask(options.dev, source, model)
    batches = calibration(options.train, source, model).batches
    width, heads = model.config.hidden_size, model.config.num_attention_heads
    rows: list[dict] = []

    def add(table: str, label: str, rank: int, converted: PreTrainedModel, seconds: float, blocks: list) -> None:
        row = {"table": table, "label": label, "rank": rank, **task.score(converted), "seconds": seconds}
        row["attention_parameters"] = sum(block.parameters for block in blocks)
        row["ranks"] = [block.spec.rank for block in blocks]
        rows.append(row)
        print(
            f"{table} {label:24} R={rank:3} drop {row['drop']:+.2f} cos {row['cosine']:.4f} {seconds:.0f} s", flush=True
        )

    def measure(table: str, label: str, rank: int, spec: hf_heads.HeadsSpec, data: list | None, **more: bool) -> None:
        with Timer() as timer:
            converted, report = hf_heads.convert(model, spec, calibration=data, **more)
        add(table, label, rank, converted, timer.seconds, report.blocks)

    for rank in RANKS:
        measure("methods", "collab, CP", rank, CollabSpec(rank=rank), batches)
        measure("methods", "collab, CP, no refit", rank, CollabSpec(rank=rank), batches, refit=False)
        measure("methods", "collab, CP, allocated", rank, CollabSpec(rank=rank, allocate=True), batches)
        equal = tucker_rank(rank, width, heads)
        measure("methods", "collab, Tucker", rank, CollabSpec(rank=equal, form="tucker"), batches)
        whole = -(-rank // heads) * heads  # every head gets the same width
        measure("methods", "low-rank", rank, LowRankSpec(rank=whole), batches)
        measure("methods", "collab, CP, weights only", rank, CollabSpec(rank=rank), None)
        with Timer() as timer:
            converted = tensorly_parafac(model, rank)
        blocks = hf_heads.convert(model, CollabSpec(rank=rank))[1].blocks
        add("methods", "tensorly parafac", rank, converted, timer.seconds, blocks)

    sources = {"512 training sentences": options.train, "512 random sequences (default)": None}
    if options.text:
        sources["512 lines of other text"] = options.text
    for label, path in sources.items():
        data = calibration(path, source, model).batches
        measure("calibration", label, 96, CollabSpec(rank=96), data)
        measure("calibration", f"{label}, no refit", 96, CollabSpec(rank=96), data, refit=False)
    measure(
        "calibration",
        "128 training sentences",
        96,
        CollabSpec(rank=96),
        calibration(options.train, source, model, 128).batches,
    )
    measure("calibration", "none (weights only)", 96, CollabSpec(rank=96), None)
    save("stsb", {"base": task.base, "pairs": len(task.scores), "rows": rows}, options)


if __name__ == "__main__":
    main()
