"""Our CP against tensorly's `parafac` on the same tensors: error and CPU seconds, in one process, same threads.

The tensors are the unwhitened query-key tensors of all layers of all-MiniLM-L6-v2 (384 x 12 x 384) and of a ViT (128 x
8 x 128). Ours is not damped here, since theirs is not. It never forms the tensors; theirs are formed before the clock
starts. tensorly gets float64 torch tensors and its own stopping rule at 100 iterations, from a random start and from
one by SVD. Beside our default stands the time that ours takes to the better one of tensorly's errors. Also times ours
at the size of BERT-base on made weights, and a whole conversion of MiniLM at rank 96. Decompositions run on the CPU,
whatever --device the models are on.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from typing import Any

import tensorly
import torch
from tensorly.decomposition import parafac
from torch import Tensor

import hf_heads
from hf_heads import CollabSpec
from hf_heads.attention.hosts.blocks import find_blocks
from hf_heads.attention.hosts.reading import read_host
from hf_heads.core.decompositions import cp
from studies.shared.inputs import calibration, load
from studies.shared.running import add_folders, save, shown


def cpu_seconds(work: Callable[[], Any]) -> tuple[Any, float]:
    """What some work gives, and how long this process computed for it, over all its threads."""
    started = time.process_time()
    found = work()
    return found, time.process_time() - started


def compared(query: Tensor, key: Tensor, rank: int, seed: int) -> dict[str, float]:
    """Errors and seconds of either side, and how long ours takes to the better one of tensorly's errors."""
    tensor = torch.einsum("hid,hjd->ihj", query, key)
    found, seconds = cpu_seconds(lambda: cp(query, key, rank, damping=0.0))
    row = {"error": found.error, "seconds": seconds}
    for begin in ("random", "svd"):
        with tensorly.backend_context("pytorch"), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Trying to compute SVD")
            other, seconds = cpu_seconds(
                lambda begin=begin: parafac(tensor, rank, init=begin, random_state=seed, n_iter_max=100)
            )
            row[f"{begin}_error"] = float((tensorly.cp_to_tensor(other) - tensor).norm() / tensor.norm())
        row[f"{begin}_seconds"] = seconds
    for sweeps in (1, 2, 5, 10, 20, 40, 100):
        found, seconds = cpu_seconds(lambda sweeps=sweeps: cp(query, key, rank, sweeps, damping=0.0))
        row |= {"equal_error": found.error, "equal_seconds": seconds}
        if found.error <= min(row["random_error"], row["svd_error"]):
            break
    return row


def large(rank: int, seed: int) -> dict[str, float]:
    """Ours on made weights of BERT-base's sizes: heads that share decaying directions."""
    generator = torch.Generator().manual_seed(seed)
    sides = []
    for _ in range(2):
        shared = torch.randn(768, 768, generator=generator, dtype=torch.float64) / torch.arange(1, 769).sqrt()
        own = torch.randn(12, 768, 64, generator=generator, dtype=torch.float64)
        sides.append(torch.einsum("wv,hvd->hwd", shared, own) / 100)
    found, seconds = cpu_seconds(lambda: cp(sides[0], sides[1], rank, damping=0.0))
    return {"rank": rank, "error": found.error, "seconds": seconds}


def add_options(parser: argparse.ArgumentParser) -> None:
    add_folders(parser, "models")
    parser.add_argument("--shares", type=int, nargs="*", default=[4, 8], help="of the width as ranks (default 4 and 8)")


def run(options: argparse.Namespace) -> None:
    rows = []
    for name in ("minilm", "vit"):
        _, model = load(name, options)
        for layer, block in enumerate(find_blocks(model)):
            dense = read_host(block.module, block.site, block.output).double()
            query, key = dense.query.detach().cpu(), dense.key.detach().cpu()
            for share in options.shares:
                rank = query.shape[1] // share
                row = compared(query, key, rank, options.seed)
                rows.append(shown({"model": name, "layer": layer, "rank": rank, **row}))
    made = [shown(large(rank, options.seed)) for rank in (256, 384)]
    source, model = load("minilm", options)
    batches = calibration(source, model, options)
    seconds = {
        objective: cpu_seconds(
            lambda objective=objective: hf_heads.convert(
                model, CollabSpec(rank=96), calibration=batches, objective=objective
            )
        )[1]
        for objective in ("scores", "attention")
    }
    print(seconds)
    save("solver", {"rows": rows, "large": made, "conversion_seconds": seconds}, options)
