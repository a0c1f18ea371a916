"""The command line that makes a conversion, for cards, reports and recommendations."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from hf_heads.attention.spec import HeadsSpec
from hf_heads.io.checkpoints.sources import Source
from hf_heads.io.data.choice import CalibrationChoice
from hf_heads.jobs.conversion.request import ConversionRequest

_KEPT = ("revision", "blocks", "keep_heads", "objective", "inputs", "compute", "dtype", "max_shard_size")


def options_of(spec: HeadsSpec) -> dict[str, Any]:
    """What of a spec is said on the command line, by the option's name: what is not as it is by default."""
    return {
        item.name.replace("_", "-"): value
        for item in fields(spec)
        if item.metadata["command"] and (value := getattr(spec, item.name)) != item.default
    }


def convert_command(request: ConversionRequest, source: Source, *, public: bool) -> str | None:
    """The command that makes what a request asks for, as one line for a shell.

    Args:
        request: what is converted, and how.
        source: the checkpoint.
        public: for others, who need not know where anything is kept: paths are their last parts.

    Returns:
        The line; None where only a recipe can say it: settings for some blocks, or ones that no option sets.
    """
    choice = request.calibration
    spec = request.spec
    if not isinstance(spec, HeadsSpec) or _beyond_options(spec):
        return None
    parts = ["hf-heads", "convert", source.public if public else source.given, "--to", spec.method]
    for name, value in options_of(spec).items():
        parts += _option(name, Path(value).name if public and name == "scores" else value)
    defaults = {item.name: item.default for item in fields(request)}
    for name in _KEPT:
        value = getattr(request, name)
        if value is not None and value != defaults[name]:
            parts += _option(name.replace("_", "-"), value)
    parts += [] if request.refit else ["--no-refit"]
    named = choice.public()["source"] if public else choice.source
    return shlex.join(parts + _data(choice, [named] if isinstance(named, str) else named))


def _beyond_options(spec: HeadsSpec) -> bool:
    """Whether a setting differs from its default that the command line has no option for."""
    others = (item for item in fields(spec) if item.init and not item.metadata["command"])
    return any(
        getattr(spec, item.name) != (item.default if item.default_factory is MISSING else item.default_factory())
        for item in others
    )


def _option(name: str, value: Any) -> list[str]:
    return [f"--{name}"] if value is True else [f"--{name}", str(value)]


def _data(choice: CalibrationChoice, names: Sequence[str]) -> list[str]:
    """What says the data, and the seed."""
    parts = [] if choice.seed == 0 else ["--seed", str(choice.seed)]
    parts += [] if choice.max_length is None else ["--max-length", str(choice.max_length)]
    parts += [] if choice.samples is None else ["--calibration-samples", str(choice.samples)]
    parts += [] if choice.pack else ["--no-pack"]
    if not choice.made:
        parts += [part for one in names for part in ("--calibrate", one)]
        parts += [] if choice.pairs is None else ["--pairs" if choice.pairs else "--no-pairs"]
        parts += ["--columns", ",".join(choice.columns)] if choice.columns else []
        parts += ["--label", choice.label] if choice.label else []
    return parts
