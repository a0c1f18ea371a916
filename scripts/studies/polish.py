"""What some seconds are worth: more examples to calibrate MiniLM on, or `convert --polish`; scored on STS-B dev.

Calibrated on training sentences, packed and cut to many lengths as by default: with as many as are read by default,
with all, and by default and then polished. A row that is in --work already is not measured again.
"""

from __future__ import annotations

import argparse
import datetime
import json
import time
from typing import Any

from hf_heads import CalibrationChoice, CollabSpec, HeadsSpec, MheSpec
from hf_heads.io.checkpoints.loading import load_source
from hf_heads.io.checkpoints.sources import resolve_source
from hf_heads.jobs.conversion.checkpoint import convert_checkpoint
from hf_heads.jobs.conversion.request import ConversionRequest
from hf_heads.jobs.finetuning.polishing import convert_polished
from studies.shared.running import add_folders, save, shown
from studies.shared.sentences import Sentences

SPECS: dict[str, HeadsSpec] = {"collab 48": CollabSpec(rank=48), "mhe 1": MheSpec()}
WAYS = ("by default", "all examples", "polished")


def add_options(parser: argparse.ArgumentParser) -> None:
    add_folders(parser, "data", "work")
    parser.add_argument("--polish", type=float, default=120, help="seconds (default 120)")
    parser.add_argument("--examples", type=int, default=10_000, help="of `all examples` (default 10000)")


def run(options: argparse.Namespace) -> None:
    sentences = Sentences(options)
    options.work.mkdir(parents=True, exist_ok=True)
    rows = []
    for name, spec in SPECS.items():
        for way in WAYS:
            kept = options.work / f"{name}-{way}.json".replace(" ", "-")
            if not kept.is_file():
                kept.write_text(json.dumps({"setting": name, "way": way, **_measured(sentences, spec, way, options)}))
            rows.append(shown(json.loads(kept.read_text())))
            save("polish", {"polish": options.polish, "seed": options.seed, "rows": rows}, options)


def _measured(sentences: Sentences, spec: HeadsSpec, way: str, options: argparse.Namespace) -> dict[str, Any]:
    samples = options.examples if way == "all examples" else None
    choice = CalibrationChoice(sentences.files.train, samples=samples, seed=options.seed)
    request = ConversionRequest(sentences.source, spec, calibration=choice, device=options.device)
    folder, steps = options.work / "converted", 0
    begun = time.process_time()
    if way == "polished":
        healed = convert_polished(request, folder, options.polish, overwrite=True).healed
        steps = healed.distillation["steps"] if healed else 0
    else:
        convert_checkpoint(request, folder, overwrite=True)
    row = {"cpu_seconds": time.process_time() - begun, "steps": steps, "date": datetime.date.today().isoformat()}
    return {**row, **sentences.score(load_source(resolve_source(str(folder))))}
