"""Our CP against tensorly's `parafac` on the same tensors: error and seconds, in one process with the same threads.

The tensors are the query-key tensors of all-MiniLM-L6-v2 (384 x 12 x 384), unwhitened. Ours never forms them; theirs
are formed before the clock starts. tensorly gets float64 torch tensors and its own stopping rule at 100 iterations.
Beside our default stands the time that ours takes to the better one of tensorly's errors. Also times a whole conversion
at rank 96, statistics and refit included. Decompositions run on the CPU, whatever --device the model is on.
"""

from __future__ import annotations

import argparse

import tensorly
import torch
from tensorly.decomposition import parafac

import hf_heads
from hf_heads import CollabSpec
from hf_heads.attention.hosts.blocks import find_blocks
from hf_heads.attention.hosts.reading import read_host
from hf_heads.core.decompositions import cp
from studies.shared.inputs import calibration, load
from studies.shared.running import Timer, save, shown


def time_to(error: float, query: torch.Tensor, key: torch.Tensor, rank: int) -> dict[str, float]:
    """The seconds that our CP takes with just as many sweeps (of 20, 40, ...) as get it to an error."""
    for sweeps in (20, 40, 60, 100, 200):
        with Timer() as timer:
            found = cp(query, key, rank, sweeps)
        if found.error <= error:
            break
    return {"equal_error": found.error, "equal_seconds": timer.seconds}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--layers", type=int, nargs="*", default=[0, 3], help="which layers (default 0 and 3)")
    parser.add_argument("--ranks", type=int, nargs="*", default=[192, 96, 48, 32], help="default 192, 96, 48 and 32")


def run(options: argparse.Namespace) -> None:
    source, model = load("minilm", options)
    batches = calibration(source, model, options)
    with Timer() as conversion:
        hf_heads.convert(model, CollabSpec(rank=96), calibration=batches)
    print(f"conversion at R = 96 {conversion.seconds:.1f} s")
    blocks = find_blocks(model)
    rows = []
    for layer in options.layers:
        dense = read_host(blocks[layer].module, blocks[layer].site, blocks[layer].output).double()
        query, key = dense.query.cpu(), dense.key.cpu()
        tensor = torch.einsum("hid,hjd->ihj", query, key)
        for rank in options.ranks:
            with Timer() as ours:
                found = cp(query, key, rank)
            row = {"layer": layer, "rank": rank, "error": found.error, "seconds": ours.seconds}
            for begin in ("random", "svd"):
                with tensorly.backend_context("pytorch"), Timer() as theirs:
                    other = parafac(tensor, rank, init=begin, random_state=options.seed, n_iter_max=100)
                    error = float((tensorly.cp_to_tensor(other) - tensor).norm() / tensor.norm())
                row |= {f"{begin}_error": error, f"{begin}_seconds": theirs.seconds}
            row |= time_to(min(row["random_error"], row["svd_error"]), query, key, rank)
            rows.append(shown(row))
    save("solver", {"conversion_seconds": conversion.seconds, "rows": rows}, options)
