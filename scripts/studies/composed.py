"""Shared scores and shared values in one block: collab behind mhe on a MiniLM, against what has as many parameters.

A block keeps one method. A model that is converted to shared values and then to shared scores computes what a block
with both would, and is measured as that; its parameters and its cache are counted as that block's, which are less than
those it has. One shot, on training sentences of STS-B; cosine is that of the converted to the original sentence
embeddings, mean over other ones.
"""

from __future__ import annotations

import argparse

import hf_heads
from hf_heads import CollabSpec, HeadsSpec, LowRankSpec, MheSpec
from hf_heads.jobs.evaluation.drift import measure_drift
from studies.shared.inputs import calibration, files, load
from studies.shared.running import add_folders, save, shown

HEADS, WIDTH = 12, 32  # of a MiniLM; a head is this wide
GROUPS = (6, 3)


def add_options(parser: argparse.ArgumentParser) -> None:
    add_folders(parser, "data")
    parser.add_argument("--samples", type=int, default=512, help="sentences to calibrate on (default 512)")


def ways(groups: int) -> dict[str, list[HeadsSpec]]:
    """What leaves so many heads' width of scores and of values, as conversions one behind the other."""
    rank = groups * WIDTH
    scores, values = CollabSpec(rank=rank), MheSpec(groups_qk=HEADS, groups_v=groups)
    return {
        "shared scores alone": [scores],
        "shared values alone": [values],
        "shared scores and shared values": [values, scores],
        "head embeddings": [MheSpec(groups=groups)],
        "narrower": [LowRankSpec(rank=rank, value_rank=rank)],
    }


def run(options: argparse.Namespace) -> None:
    source, model = load("minilm", options)
    paths = files("stsb", options)
    train, held_out = (calibration(source, model, options, path, options.samples) for path in paths)
    rows: list[dict[str, object]] = []
    for groups in GROUPS:
        sizes: dict[str, tuple[int, int]] = {}
        for label, specs in ways(groups).items():
            made = model
            for spec in specs:
                made, report = hf_heads.convert(made, spec, calibration=train)
            block = report.blocks[0]
            if len(specs) == 1:
                sizes[label] = block.parameters, block.cache
                whole = block.parameters_before, block.cache_before
            else:  # what both save
                parts = zip(sizes["shared scores alone"], sizes["shared values alone"], whole, strict=True)
                sizes[label] = tuple(one + other - both for one, other, both in parts)
            cosine = measure_drift(made, model, held_out).to_dict()["cosine"]
            parameters, cache = sizes[label]
            row = {"label": label, "groups": groups, "cosine": cosine, "parameters": parameters, "cache": cache}
            rows.append(shown(row))
    save("composed", {"samples": options.samples, "rows": rows}, options)
