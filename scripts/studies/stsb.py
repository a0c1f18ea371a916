"""Quality of converted MiniLMs on the STS benchmark, without fine-tuning: methods x ranks, and what to calibrate on.

Drop is in Spearman points x 100 against the original; cosine is that of the converted to the original sentence
embeddings, mean over all sentences.
"""

from __future__ import annotations

import argparse

import tensorly
import torch
from tensorly.decomposition import parafac
from transformers import PreTrainedModel

import hf_heads
from hf_heads import CollabSpec, HeadsSpec, LowRankSpec
from hf_heads.attention.hosts.blocks import find_blocks
from hf_heads.attention.hosts.reading import read_host
from hf_heads.core.decompositions import SharedFactors
from hf_heads.core.statistics import BlockStatistics
from hf_heads.jobs.conversion.installing import load_weights
from hf_heads.methods.collab import weights_from_factors
from studies.shared.inputs import TEXT
from studies.shared.running import Timer, add_folders, save, shown
from studies.shared.sentences import Sentences


def tucker_rank(rank: int, width: int, heads: int) -> int:
    """The Tucker rank with about the parameters of CP at `rank`: heads r^2 + 2 width r = (heads + 2 width) rank."""
    wanted = (heads + 2 * width) * rank
    return int(((width**2 + heads * wanted) ** 0.5 - width) / heads)


def tensorly_parafac(model: PreTrainedModel, rank: int, seed: int) -> PreTrainedModel:
    """Plain CP of the unwhitened dense tensors by tensorly from a random start, as a converted model."""
    converted, _ = hf_heads.convert(model, CollabSpec(rank=rank), calibration="none")
    for block, host in zip(find_blocks(converted), find_blocks(model), strict=True):
        dense = read_host(host.module, host.site, host.output)
        double = dense.double()
        tensor = torch.einsum("hid,hjd->ihj", double.query * dense.scale, double.key).cpu()
        with tensorly.backend_context("pytorch"):
            found = parafac(tensor, rank, init="random", random_state=seed, n_iter_max=50, tol=1e-5)
        query, mixing, key = (factor * found.weights ** (1 / 3) for factor in found.factors)
        factors = SharedFactors(query, mixing, key, 0.0)
        load_weights(block, weights_from_factors(dense, BlockStatistics.uninformed(dense.shape), factors))
    return converted


def add_options(parser: argparse.ArgumentParser) -> None:
    add_folders(parser, "data")
    parser.add_argument("--ranks", type=int, nargs="*", default=[192, 96, 48, 32], help="default 192, 96, 48 and 32")


def run(options: argparse.Namespace) -> None:
    study = Sentences(options)
    batches = study.calibration()
    width, heads = study.model.config.hidden_size, study.model.config.num_attention_heads
    rows: list[dict] = []

    def measure(table: str, label: str, rank: int, spec: HeadsSpec, data: list | None, refit: bool = True) -> None:
        row, report = study.converted(spec, data, refit=refit)
        ranks = [block.spec.rank for block in report.blocks]
        rows.append(shown({"table": table, "label": label, "rank": rank, **row, "ranks": ranks}))

    for rank in options.ranks:
        measure("methods", "collab, CP", rank, CollabSpec(rank=rank), batches)
        measure("methods", "collab, CP, no refit", rank, CollabSpec(rank=rank), batches, refit=False)
        measure("methods", "collab, CP, allocated", rank, CollabSpec(rank=rank, allocate=True), batches)
        equal = tucker_rank(rank, width, heads)
        measure("methods", "collab, Tucker", rank, CollabSpec(rank=equal, form="tucker"), batches)
        whole = -(-rank // heads) * heads  # every head gets the same width
        measure("methods", "low-rank", rank, LowRankSpec(rank=whole), batches)
        measure("methods", "collab, CP, weights only", rank, CollabSpec(rank=rank), None)
        with Timer() as timer:
            converted = tensorly_parafac(study.model, rank, options.seed)
        row = {**rows[-1], **study.score(converted), "label": "tensorly parafac", "seconds": timer.seconds}
        rows.append(shown(row))

    calibrations = {
        "512 training sentences": batches,
        "512 random sequences (default)": study.calibration("random"),
        "512 lines of other text": study.calibration(str(options.data / TEXT)),
    }
    for label, data in calibrations.items():
        measure("calibration", label, 96, CollabSpec(rank=96), data)
        measure("calibration", f"{label}, no refit", 96, CollabSpec(rank=96), data, refit=False)
    measure("calibration", "128 training sentences", 96, CollabSpec(rank=96), study.calibration(samples=128))
    measure("calibration", "none (weights only)", 96, CollabSpec(rank=96), None)
    save("stsb", {"base": study.base, "pairs": len(study.scores), "rows": rows}, options)
