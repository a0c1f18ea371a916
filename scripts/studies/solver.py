"""Our CP against tensorly's `parafac` on the same tensors: error and seconds, in one process with the same threads.

    python scripts/solver.py

The tensors are the query-key tensors of all-MiniLM-L6-v2 (384 x 12 x 384), unwhitened. Ours never forms them; theirs
are formed before the clock starts. tensorly gets float64 torch tensors and its own stopping rule at 100 iterations.
Beside our default stands the time that ours takes to the better one of tensorly's errors. Also times a whole conversion
at rank 96, statistics and refit included. Writes scripts/results/solver.json.
"""

from __future__ import annotations

import tensorly
import torch
from common import Timer, calibration, minilm, parser, save, start
from tensorly.decomposition import parafac

import hf_heads
from hf_heads import CollabSpec
from hf_heads.core.decompositions import cp
from hf_heads.hosts.blocks import find_blocks
from hf_heads.hosts.reading import read_host


def time_to(error: float, query: torch.Tensor, key: torch.Tensor, rank: int) -> dict[str, float]:
    """The seconds that our CP takes with just as many sweeps (of 20, 40, ...) as get it to an error."""
    for sweeps in (20, 40, 60, 100, 200):
        with Timer() as timer:
            found = cp(query, key, rank, sweeps)
        if found.error <= error:
            break
    return {"equal_error": found.error, "equal_seconds": timer.seconds}


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--layers", type=int, nargs="*", default=[0, 3], help="which layers (default 0 and 3)")
    options = options.parse_args()
    start(options)
    source, model = minilm()
    data = calibration(None, source, model)
    with Timer() as conversion:
        hf_heads.convert(model, CollabSpec(rank=96), calibration=data.batches)
    print(f"conversion at R = 96 {conversion.seconds:.1f} s", flush=True)
    blocks = find_blocks(model)
    rows = []
    for layer in options.layers:
        dense = read_host(blocks[layer].module, blocks[layer].site, blocks[layer].output).double()
        tensor = torch.einsum("hid,hjd->ihj", dense.query, dense.key)
        for rank in (192, 96, 48, 32):
            with Timer() as ours:
                found = cp(dense.query, dense.key, rank)
            row = {"layer": layer, "rank": rank, "error": found.error, "seconds": ours.seconds}
            for start_name in ("random", "svd"):
                with tensorly.backend_context("pytorch"), Timer() as theirs:
                    other = parafac(tensor, rank, init=start_name, random_state=0, n_iter_max=100)
                    error = float((tensorly.cp_to_tensor(other) - tensor).norm() / tensor.norm())
                row |= {f"{start_name}_error": error, f"{start_name}_seconds": theirs.seconds}
            row |= time_to(min(row["random_error"], row["svd_error"]), dense.query, dense.key, rank)
            rows.append(row)
            print({name: round(value, 4) for name, value in row.items()}, flush=True)
    save("solver", {"conversion_seconds": conversion.seconds, "rows": rows}, options)


if __name__ == "__main__":
    main()
