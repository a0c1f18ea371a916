"""What merging pairs of heads costs on three models: the common attention alone, one query as well, one head's values.

512 training examples as they are, without labels; drift on dev examples. The error of attention is how far apart the
maps of heads that were merged are, as a share of their size, where nothing else is shared.
"""

from __future__ import annotations

import argparse
from typing import Any

import hf_heads
from hf_heads import CalibrationChoice, MgkSpec
from hf_heads.io.data.calibration import calibration_data
from hf_heads.jobs.evaluation.drift import measure_drift
from studies.shared.inputs import files, load
from studies.shared.running import add_folders, save, shown

MODELS = {"minilm": ("stsb", None), "marian": ("marian", ("en", "de")), "vit": ("vit", None)}
SHARED: dict[str, dict[str, Any]] = {
    "attention": {},
    "attention and query": {"queries": "shared"},
    "attention and one head's values": {"values": "shared"},
}


def add_options(parser: argparse.ArgumentParser) -> None:
    add_folders(parser, "data", "models")
    parser.add_argument("--examples", type=int, default=400, help="to measure drift on (default 400)")


def run(options: argparse.Namespace) -> None:
    rows: list[dict[str, Any]] = []
    for name, (data, columns) in MODELS.items():
        source, model = load(name, options)

        def batches(path: str, samples: int, columns: Any = columns, source: Any = source, model: Any = model) -> Any:
            choice = CalibrationChoice(path, columns, samples=samples, seed=options.seed, pack=False)
            return calibration_data(source, model, choice).batches

        train, dev = files(data, options)
        given, measured = batches(train, 512), batches(dev, options.examples)
        for label, shared in SHARED.items():
            converted, report = hf_heads.convert(
                model, MgkSpec(merge=2, **shared), calibration=given, seed=options.seed
            )
            drift = measure_drift(converted, model, measured)
            row = {"model": name, "shared": label, "cosine": drift.cosine, "kl": drift.kl}
            if not shared:
                row["apart"] = [block.error for block in report.blocks]
            rows.append(shown(row))
            save("merge", {"examples": options.examples, "rows": rows}, options)
