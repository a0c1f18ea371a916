"""Training as the papers' experiments need it: one loop by accelerate, runs that go on where they stopped, seeds.

A run is one process on one device; several GPUs take several seeds or variants.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from scipy.stats import t as student
from torch import Tensor, nn

Batch = Mapping[str, Tensor]


@dataclass(frozen=True)
class Plan:
    """How a model is trained.

    Attributes:
        steps: updates of the weights.
        batch: rows of one forward.
        learning_rate: its highest.
        warmup: steps in which the rate climbs to it.
        schedule: what it does then: linear (to zero at the last step), cosine (the same, curved), or root (falls with
            the inverse root of the step).
        betas, epsilon, decay: of AdamW.
        clip: largest norm of the gradients; 0 leaves them.
        forwards: of which one step is made.
    """

    steps: int
    batch: int
    learning_rate: float
    warmup: int
    schedule: str = "linear"
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    decay: float = 0.01
    clip: float = 1.0
    forwards: int = 1

    def share(self, step: int) -> float:
        """Of the highest rate what step `step`, from 0 on, takes."""
        warmup = max(1, self.warmup)
        climbing = (step + 1) / warmup
        if self.schedule == "root":
            return min(climbing, (warmup / (step + 1)) ** 0.5)
        falling = (self.steps - step) / max(1, self.steps - warmup)
        if self.schedule == "cosine":
            left = torch.tensor(max(0.0, min(1.0, falling)) * torch.pi)
            return min(climbing, float(0.5 - 0.5 * left.cos()))
        return max(0.0, min(climbing, falling))


def add_training(parser: argparse.ArgumentParser) -> None:
    """The options of studies that train: precision, and how often a run is kept."""
    parser.add_argument(
        "--precision", default="no", choices=("no", "bf16", "fp16"), help="mixed precision by accelerate (default no)"
    )
    parser.add_argument(
        "--keep-every", type=int, default=1000, metavar="STEPS", help="a checkpoint to go on from (default 1000)"
    )


def add_runs(parser: argparse.ArgumentParser, seeds: int, small: str, few: int = 2) -> None:
    """The options of studies of many runs: how many seeds, fewer perhaps where all is small, and small sizes."""
    number = f"{seeds}" if few == seeds else f"{seeds}, with --small {few}"
    parser.add_argument("--seeds", type=int, help=f"of each run, from --seed on (default {number})")
    parser.add_argument("--small", action="store_true", help=small)
    parser.set_defaults(usual_seeds=(seeds, few))


def seeds_of(options: argparse.Namespace) -> range:
    """The seeds of `add_runs`."""
    usual, few = options.usual_seeds
    return range(options.seed, options.seed + (options.seeds or (few if options.small else usual)))


def fit(
    model: nn.Module,
    batches: Iterator[Batch],
    plan: Plan,
    options: argparse.Namespace,
    folder: Path | None = None,
    loss: Callable[[nn.Module, Batch], Tensor] | None = None,
    groups: list[dict[str, Any]] | None = None,
) -> float:
    """Train a model in place, in the precision and on the device of the options.

    Args:
        model: in full precision; it is left on the device.
        batches: without end, and the same again for the same seed, so that a run that goes on skips what it has seen.
        plan: how.
        options: of `add_training` and `add_common`.
        folder: where checkpoints are kept while the run lasts, and where it goes on from if there are any.
        loss: of the model and a batch; the model's own when not given.
        groups: of parameters, with what differs between them; all alike when not given.

    Returns:
        The mean loss of the last tenth of the steps.
    """
    accelerator = Accelerator(
        mixed_precision=getattr(options, "precision", "no"),
        gradient_accumulation_steps=plan.forwards,
        cpu=options.device == "cpu",
    )
    trained = groups or [{"params": [one for one in model.to(options.device).parameters() if one.requires_grad]}]
    adam = torch.optim.AdamW(
        trained, lr=plan.learning_rate, betas=plan.betas, eps=plan.epsilon, weight_decay=plan.decay
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(adam, plan.share)
    prepared, optimizer, scheduler = accelerator.prepare(model, adam, schedule)
    losses = _restored(accelerator, folder)
    prepared.train()
    for batch in islice(batches, len(losses) * plan.forwards, plan.steps * plan.forwards):
        inputs = {name: value.to(options.device) for name, value in batch.items()}
        with accelerator.accumulate(prepared):
            found = loss(prepared, inputs) if loss else prepared(**inputs).loss
            accelerator.backward(found)
            if accelerator.sync_gradients and plan.clip:
                accelerator.clip_grad_norm_(prepared.parameters(), plan.clip)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        if accelerator.sync_gradients:
            losses.append(float(found.detach()))
            if len(losses) % max(1, plan.steps // 4) == 0:
                print(f"step {len(losses)} of {plan.steps}, loss {losses[-1]:.3f}")
            if folder is not None and len(losses) % options.keep_every == 0 and len(losses) < plan.steps:
                _keep(accelerator, folder, losses)
    accelerator.unwrap_model(prepared, keep_fp32_wrapper=False)  # takes mixed precision off the model's forward
    return statistics.mean(losses[-max(1, plan.steps // 10) :])


def _keep(accelerator: Accelerator, folder: Path, losses: list[float]) -> None:
    """Write weights, optimizer, schedule and generators; a run that is cut off here leaves the one before."""
    state = folder / f"step-{len(losses)}"
    accelerator.save_state(str(state))
    fresh = folder / "losses.new"
    fresh.write_text(json.dumps(losses), encoding="utf-8")
    fresh.replace(folder / "losses.json")
    for old in folder.glob("step-*"):
        if old != state:
            shutil.rmtree(old)


def _restored(accelerator: Accelerator, folder: Path | None) -> list[float]:
    """Losses of the steps that a run has behind it, its state loaded; none for a run that begins."""
    if folder is None or not (kept := folder / "losses.json").is_file():
        return []
    losses = json.loads(kept.read_text(encoding="utf-8"))
    accelerator.load_state(str(folder / f"step-{len(losses)}"))
    return losses


def remembered(
    options: argparse.Namespace, name: str, settings: Mapping[str, Any], run: Callable[[Path], dict[str, Any]]
) -> dict[str, Any]:
    """What a run found, from --work where it has been made with the same settings.

    Args:
        options: with `work`.
        name: of the run, for the folder.
        settings: all that its result depends on.
        run: makes it, given a folder for its checkpoints, and returns plain values.
    """
    settled = json.dumps([name, dict(settings), str(options.device)], sort_keys=True, default=str)
    folder = options.work / f"{name}-{hashlib.sha256(settled.encode()).hexdigest()[:8]}"
    kept, fresh = folder / "row.json", folder / "row.new"
    if not kept.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        fresh.write_text(json.dumps(run(folder / "run")), encoding="utf-8")
        fresh.replace(kept)
        shutil.rmtree(folder / "run", ignore_errors=True)
    return json.loads(kept.read_text(encoding="utf-8"))


def over_seeds(values: Sequence[float]) -> dict[str, Any]:
    """The mean of runs, and its 95 % interval by Student's t where there are several."""
    mean, count = statistics.mean(values), len(values)
    if count < 2:
        return {"mean": mean, "low": None, "high": None, "values": list(values)}
    half = float(student.ppf(0.975, count - 1)) * statistics.stdev(values) / count**0.5
    return {"mean": mean, "low": mean - half, "high": mean + half, "values": list(values)}
