"""What `recommend` promises, and what the conversions that it names then lose on other data.

MiniLM on sentences, a Marian on translations, a ViT on images: recommended on their training data, then converted as
the printed command does, and measured on the development data, which neither saw.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import hf_heads
from hf_heads import CalibrationChoice
from hf_heads.core.batches import Batch
from hf_heads.io.checkpoints.loading import load_source
from hf_heads.io.data.calibration import calibration_data
from hf_heads.jobs.evaluation.drift import measure_drift
from hf_heads.jobs.recommendation.candidates import settings_of
from hf_heads.jobs.recommendation.record import GOALS, SAMPLES, Point
from studies.shared.inputs import files, source_of
from studies.shared.running import add_folders, save, shown

DATA = {"minilm": "stsb", "marian": "marian", "vit": "vit"}
MEASURED = 256


def add_options(parser: argparse.ArgumentParser) -> None:
    add_folders(parser, "data", "models")
    parser.add_argument("--names", nargs="+", default=list(DATA), choices=DATA, metavar="MODEL")
    parser.add_argument("--goal", default="balanced", choices=tuple(GOALS))
    parser.add_argument("--max-drop", type=float, default=0.02)


def run(options: argparse.Namespace) -> None:
    rows: list[dict[str, Any]] = []
    for name in options.names:
        rows += _rows(name, options)
        save("recommend", {"goal": options.goal, "max_drop": options.max_drop, "rows": rows}, options)


def _rows(name: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """The recommended conversion and those of the frontier that lose less than a tenth, promised and measured."""
    source, paths = source_of(name, options), files(DATA[name], options)
    started = time.process_time()
    choice = CalibrationChoice(paths.train, samples=SAMPLES, seed=options.seed)
    found = hf_heads.recommend(source, choice, goal=options.goal, max_drop=options.max_drop, device=options.device)
    seconds = time.process_time() - started
    original = load_source(source, options.device)
    other = calibration_data(source, original, CalibrationChoice(paths.dev, samples=MEASURED, pack=False)).batches
    calibration = calibration_data(source, original, CalibrationChoice(paths.train, seed=options.seed)).batches

    def lost(point: Point) -> float:
        model, _ = hf_heads.convert(original, settings_of(point), calibration=calibration, seed=options.seed)
        return _lost(model, original, other)

    about = {"model": name, "cpu_seconds": seconds, "measure": found.measure}
    if found.best is None:
        return [shown({**about, "conversion": found.reason, "recommended": True})]
    tried = [found.points[place] for place in found.frontier if found.points[place].promised < 0.1]
    return [
        shown(
            {
                **about,
                "conversion": " ".join([point.method, *(f"{key} {value}" for key, value in point.settings.items())]),
                "recommended": point is found.best,
                "gain": point.gain(found.goal, found.caches),
                "parameters": point.parameters,
                "cache": point.cache,
                "speed": point.speed,
                "promised": point.promised,
                "measured": lost(point),
            }
        )
        for point in tried
    ]


def _lost(model: Any, original: Any, batches: list[Batch]) -> float:
    """As `recommend` measures it."""
    drift = measure_drift(model, original, batches)
    return 1 - (drift.cosine if drift.agreement is None else drift.agreement)
