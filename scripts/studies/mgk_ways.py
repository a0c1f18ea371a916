"""Time and memory of a mixture of Gaussian keys: the fused way, in log space at once, and the naive formula.

    MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=4294967296 MALLOC_TOP_PAD_=268435456 \\
        python scripts/mgk_ways.py

The naive way makes every distance, exponentiates, weighs and divides, as the formula is written. Batch 1, 6 heads of
width 32, two keys for every position, float32. Peak memory is that of a process of its own, above what it has before
(read from /proc, so on Linux alone). Writes scripts/results/mgk_ways.json.
"""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from common import medians, parser, save, start
from torch import Tensor

from hf_heads.attention import mixture
from hf_heads.attention.mixture import mixture_attention

HEADS, COMPONENTS, DIM = 6, 2, 32
LENGTHS = (128, 512, 2048)


def inputs(length: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(1, HEADS, 1, length, DIM, generator=generator)
    key = torch.randn(1, HEADS, COMPONENTS, length, DIM, generator=generator)
    prior = torch.rand(HEADS, COMPONENTS, generator=generator).log_softmax(-1)
    return query, key, torch.randn(1, HEADS, length, DIM, generator=generator), prior


def naive(query: Tensor, key: Tensor, value: Tensor, prior: Tensor) -> Tensor:
    distances = (query[:, :, :, :, None] - key[:, :, :, None]).square().sum(-1)
    kernel = (prior.exp()[:, :, None, None] * (-0.5 * DIM**-0.5 * distances).exp()).sum(2)
    return kernel / kernel.sum(-1, keepdim=True) @ value


def logarithmic(query: Tensor, key: Tensor, value: Tensor, prior: Tensor) -> Tensor:
    additive = prior[:, :, None] - 0.5 * DIM**-0.5 * key.square().sum(-1)
    return mixture_attention(query, key, value, DIM**-0.5, additive, None, False, 0.0, "sdpa")[0]


def fused(query: Tensor, key: Tensor, value: Tensor, prior: Tensor) -> Tensor:
    mixture._LONG = 0
    return logarithmic(query, key, value, prior)


def at_once(query: Tensor, key: Tensor, value: Tensor, prior: Tensor) -> Tensor:
    mixture._LONG = sys.maxsize
    return logarithmic(query, key, value, prior)


WAYS = {"fused": fused, "at once": at_once, "naive": naive}


def peak(way: str, length: int, answer: multiprocessing.Queue) -> None:
    """Put megabytes that one call needs above what the process has before."""
    torch.set_num_threads(2)
    given = inputs(length)
    with torch.inference_mode():
        WAYS[way](*inputs(16))
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
        before = memory("VmRSS")
        WAYS[way](*given)
        answer.put(memory("VmHWM") - before)


def memory(name: str) -> float:
    """Megabytes of this process, resident now (VmRSS) or at most (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--seconds", type=float, default=8.0, help="per length (default 8)")
    options = options.parse_args()
    start(options)
    context = multiprocessing.get_context("spawn")
    rows = []
    for length in LENGTHS:
        given = inputs(length)

        def run(way: Callable[..., Tensor], given: tuple[Tensor, ...] = given) -> Callable[[], object]:
            return lambda: way(*given)

        with torch.inference_mode():
            outputs = [way(*given) for way in WAYS.values()]
            assert all((one - outputs[0]).abs().max() < 1e-4 for one in outputs)
            times = medians({name: run(way) for name, way in WAYS.items()}, options.seconds)
        for name, seconds in times.items():
            answer = context.Queue()
            process = context.Process(target=peak, args=(name, length, answer))
            process.start()
            row = {"way": name, "length": length, "milliseconds": 1000 * seconds, "megabytes": answer.get()}
            process.join()
            rows.append(row)
            print(f"{length:5} {name:8} {row['milliseconds']:.1f} ms {row['megabytes']:.0f} MB", flush=True)
    save("mgk_ways", {"rows": rows}, options)


if __name__ == "__main__":
    main()
