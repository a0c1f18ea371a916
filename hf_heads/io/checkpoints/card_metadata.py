"""The metadata block of a model card, in the hub's format: lineage, licence, task, and the record's numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData, metadata_load
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from hf_heads.attention.hosts.table import architectures
from hf_heads.core.errors import HeadsError
from hf_heads.core.vocabulary import METRICS, PREFIX
from hf_heads.io.checkpoints.json_files import read_json
from hf_heads.io.checkpoints.sources import Source

# The hub's task by the end of the class that a checkpoint was saved from; the first that fits.
_TASKS = {
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "ForMultipleChoice": "multiple-choice",
    "ForMaskedLM": "fill-mask",
    "LMHeadModel": "text-generation",
    "ForCausalLM": "text-generation",
    "ForImageClassification": "image-classification",
    "MTModel": "translation",
    "ForCTC": "automatic-speech-recognition",
    "ForAudioClassification": "audio-classification",
    "ForAudioFrameClassification": "audio-classification",
}
_TASKS_OF_BASES = {"text": "feature-extraction", "image": "image-feature-extraction"}  # by what goes in
Figures = dict[str, float]


def metadata(source: Source, record: dict[str, Any]) -> str:
    """The YAML between a card's two lines of dashes.

    Args:
        source: what was converted.
        record: the content of `heads_report.json`.
    """
    methods = method_names(record)
    card = source_metadata(source.folder)
    tags = ["hf-heads", *methods]
    if (source.folder / "modules.json").is_file():
        tags.append("sentence-transformers")
    task = card.get("pipeline_tag") or task_of(source.folder)
    base_model = known_base(source, card)
    results = list(eval_results(record, task or "feature-extraction"))
    data = ModelCardData(
        library_name="transformers",
        tags=tags,
        base_model=base_model,
        # Of the relations that the hub knows (finetune, adapter, merge, quantized) a conversion without training is
        # none; left out, the hub looks at the files.
        base_model_relation="finetune" if base_model and "distillation" in record else None,
        language=card.get("language"),
        license=card.get("license"),
        license_name=card.get("license_name"),
        license_link=card.get("license_link"),
        pipeline_tag=task,
        model_name="-".join([source.name, *methods]),
        eval_results=results or None,
    )
    if not results:
        data.model_name = None  # a name is part of the numbers' index alone
    return data.to_yaml(original_order=["library_name", "tags", "base_model", "base_model_relation"])


def method_names(record: dict[str, Any]) -> list[str]:
    """The methods of a record's blocks, in order of their names."""
    return sorted({block["method"] for block in record["blocks"]})


def source_metadata(folder: Path) -> dict[str, Any]:
    """The metadata block of a checkpoint's own model card; nothing where there is none that can be read."""
    card = folder / "README.md"
    if not card.is_file():
        return {}
    try:
        found = metadata_load(card)
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}


def known_base(source: Source, card: dict[str, Any]) -> str | list[str] | None:
    """The hub id that a checkpoint goes by; of one that has none, what its own card says it was made from."""
    found = source.base_model or card.get("base_model")
    ids = found if isinstance(found, list) else [found]
    try:
        for one in ids:
            validate_repo_id(one)
    except HFValidationError:
        return None  # a folder or a mistake; the hub refuses a card that links to it
    return found


def task_of(folder: Path) -> str | None:
    """The hub's task of a checkpoint, by the class that its config names."""
    try:
        config = read_json(folder / "config.json", "config")
    except HeadsError:
        return None
    name = str((config.get("architectures") or [""])[0])
    if (task := next((task for ending, task in _TASKS.items() if name.endswith(ending)), None)) is not None:
        return task
    row = architectures().get(str(config.get("model_type")).removeprefix(PREFIX))
    return _TASKS_OF_BASES.get(row.modality) if row is not None and name.endswith("Model") else None


def eval_results(record: dict[str, Any], task: str) -> Iterator[EvalResult]:
    """The record's numbers about the weights that the folder holds, as results on tasks."""
    for row in record.get("scores", ()):
        yield EvalResult(
            task_type=row["task"],
            dataset_type=row["dataset"],
            dataset_name=row["dataset"],
            metric_type=row["metric"],
            metric_name=row["metric"],
            metric_value=row["value"],
        )
    for kind, name, figures in final_drift(record):
        for figure, value in figures.items():
            if figure in METRICS and value is not None and math.isfinite(value):
                metric, words = METRICS[figure]
                yield EvalResult(
                    task_type=task,
                    dataset_type=kind,
                    dataset_name=name,
                    metric_type=metric,
                    metric_name=words,
                    metric_value=value,
                )


def final_drift(record: dict[str, Any]) -> Iterator[tuple[str, str, Figures]]:
    """The drift of the weights in the folder, healed or not, by type and name of the data."""
    if healed := record.get("distillation"):
        data = str(healed["data"])
    else:
        choice = record.get("calibration_choice") or {}
        sources = choice.get("source", "calibration")
        sources = sources if isinstance(sources, list) else [sources]
        data = ", ".join(Path(str(one)).name for one in sources)
    for inputs, figures in record["drift"].items():
        kind, of, length = inputs.partition(" of ")
        if kind == "random":
            yield inputs, f"random inputs{of}{length}, made by hf-heads", figures
        else:
            comma = ", " if length else ""
            yield f"{data}{comma}{length}", f"{kind} examples of {data}{comma}{length}", figures
