"""Exact ways of computing collaborative attention, per shape: the measurement behind the choice in attention.py.

    MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=4294967296 MALLOC_TOP_PAD_=268435456 \\
        python scripts/ways.py

Twelve heads of width 32, R = 96, float32, without gradients: all scores at once; the scores in pieces that stay in the
cache (what hf-heads does); torch's fused kernel with the values padded to the keys' width and the content bias as a
mask. The standard heads in the fused kernel stand beside. Writes scripts/results/ways.json, in milliseconds.
"""

from __future__ import annotations

import torch
from common import parser, save, start
from latency import SHAPES, medians
from torch.nn.functional import pad, scaled_dot_product_attention

from hf_heads.attention.kernels import _fold, _in_pieces, _weights

HEADS, WIDTH, RANK = 12, 32, 96


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--seconds", type=float, default=3.0, help="per shape (default 3)")
    options = options.parse_args()
    start(options)
    rows = []
    for batch, length in SHAPES:
        generator = torch.Generator().manual_seed(0)

        def random(*shape: int, generator: torch.Generator = generator) -> torch.Tensor:
            return torch.randn(*shape, generator=generator)

        query, key = random(batch, HEADS, length, RANK), random(batch, 1, length, RANK)
        value, bias = random(batch, HEADS, length, WIDTH), random(batch, HEADS, 1, length)
        narrow_query, narrow_key = (random(batch, HEADS, length, WIDTH) for _ in range(2))
        arguments = (query, key, value, 0.1, bias)

        def at_once(arguments: tuple = arguments) -> torch.Tensor:
            query, key, value, scaling, bias = arguments
            return _fold(_weights(query, key, scaling, bias, None), value)

        def in_pieces(arguments: tuple = arguments) -> torch.Tensor:
            return _in_pieces(*arguments, None)

        def fused(arguments: tuple = arguments) -> torch.Tensor:
            query, key, value, scaling, bias = arguments
            mask = bias.expand(-1, -1, query.shape[2], -1)
            keys, values = key.expand(-1, HEADS, -1, -1), pad(value, (0, RANK - WIDTH))
            return scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=scaling)[..., :WIDTH]

        def standard(q: torch.Tensor = narrow_query, k: torch.Tensor = narrow_key, v: torch.Tensor = value) -> object:
            return scaled_dot_product_attention(q, k, v)

        with torch.inference_mode():
            assert (at_once() - in_pieces()).abs().max() < 1e-4 and (at_once() - fused()).abs().max() < 1e-4
            times = medians(
                {"at once": at_once, "in pieces": in_pieces, "fused": fused, "standard heads": standard},
                options.seconds,
            )
        rows.append({"batch": batch, "length": length, **{name: 1000 * value for name, value in times.items()}})
        print({name: round(value, 2) for name, value in rows[-1].items()}, flush=True)
    save("ways", {"rows": rows}, options)


if __name__ == "__main__":
    main()
