"""A MiniLM with less of its values, one shot: narrower heads against values that heads share, scores as they were.

Calibrated on 512 training sentences of STS-B; cosine is that of the converted to the original sentence embeddings, mean
over 512 other sentences.
"""

from __future__ import annotations

import argparse

import hf_heads
from hf_heads import HeadsSpec, LowRankSpec, MheSpec
from hf_heads.jobs.evaluation.drift import measure_drift
from studies.shared.inputs import calibration, files, load
from studies.shared.running import add_folders, save, shown

HEADS, WIDTH = 12, 32


def add_options(parser: argparse.ArgumentParser) -> None:
    add_folders(parser, "data")


def run(options: argparse.Namespace) -> None:
    source, model = load("minilm", options)
    train, held_out = (calibration(source, model, options, path) for path in files("stsb", options))
    rows = []
    for groups in (6, 3, 2, 1):
        ways: dict[str, HeadsSpec] = {
            "narrower": LowRankSpec(value_rank=groups * WIDTH // HEADS * HEADS),
            "shared": MheSpec(groups_qk=HEADS, groups_v=groups),
        }
        for label, spec in ways.items():
            converted, report = hf_heads.convert(model, spec, calibration=train, objective="scores")
            cosine = measure_drift(converted, model, held_out).to_dict()["cosine"]
            rows.append(shown({"label": label, "groups": groups, "cosine": cosine, "cache": report.blocks[0].cache}))
    save("values", {"rows": rows}, options)
