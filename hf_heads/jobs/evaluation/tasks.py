"""A metric and the data that a model is scored on."""

from __future__ import annotations

from functools import partial

from transformers import PreTrainedModel

from hf_heads.attention.hosts.table import adapter_of
from hf_heads.core.errors import HeadsError
from hf_heads.core.vocabulary import RANDOM
from hf_heads.io.checkpoints.sources import Source
from hf_heads.io.data.calibration import CalibrationChoice, labelled_batches
from hf_heads.io.data.labelled import kind_of
from hf_heads.jobs.evaluation.choices import AUTO
from hf_heads.jobs.evaluation.metrics import METRICS, Task
from hf_heads.jobs.evaluation.scores import (
    hits,
    masked_one_by_one,
    predicted_numbers,
    scored_pairs,
    similarity,
    token_nll,
    translation,
)
from hf_heads.modeling.auto_classes import auto_classes
from hf_heads.modeling.classes import native_model

NONE = "none"


def make_task(
    name: str, model: PreTrainedModel, source: Source, choice: CalibrationChoice, *, beams: int = 1
) -> Task | None:
    """The task of a model by the name of its metric; `auto` chooses by the model's class and the data.

    Args:
        name: one of `METRICS`, `auto` or `none`.
        model: the original; the other models must take the same inputs.
        source: where its tokenizer or image processor is.
        choice: the data, its columns, how many examples and the seed of their choice.
        beams: of the translations that BLEU scores; 1 is greedy.

    Returns:
        The task with its data read and encoded; None for `none`, and for `auto` where a model without a head has no
        scored pairs of texts.

    Raises:
        HeadsError: an unknown name, a metric that the model has no outputs for, no data, data that lacks what the
            metric needs, or sacrebleu is missing.
    """
    if name not in (AUTO, NONE, *METRICS):
        raise HeadsError(f"unknown metric '{name}'. Known: {', '.join((AUTO, NONE, *METRICS))}")
    if name == NONE or (name == AUTO and choice.source == RANDOM):
        return None
    if choice.source == RANDOM:
        raise HeadsError(f"{name} needs data: name it with --data SRC")
    possible = metrics_of(model)
    if name == AUTO:
        name = possible[0] if possible else NONE
        if name == "spearman" and kind_of(model) is None and scored_pairs(choice) is None:
            name = NONE
        if name == NONE:
            return None
    if name not in possible:
        raise HeadsError(f"{type(model).__name__} has no {name}. Metrics here: {', '.join((*possible, NONE))}")
    if name == "bleu":
        return translation(model, source, choice, beams)
    if name == "pseudo-perplexity":
        return masked_one_by_one(model, source, choice)
    if name == "spearman" and kind_of(model) is None:
        return similarity(model, source, choice)
    measure = {"accuracy": hits, "perplexity": token_nll, "spearman": predicted_numbers}[name]
    batches = labelled_batches(source, model, choice)
    return Task(METRICS[name], sum(len(batch["labels"]) for batch in batches), partial(measure, batches))


def metrics_of(model: PreTrainedModel) -> tuple[str, ...]:
    """The metrics that a model has outputs for, the usual one first."""
    kind, adapter = kind_of(model), adapter_of(model.config)
    if kind is None:
        base = native_model(type(model)).__name__ == auto_classes(adapter)["AutoModel"]
        return ("spearman",) if base and adapter.modality == "text" else ()
    if kind in ("text-class", "image-class"):
        return ("spearman",) if model.config.num_labels == 1 else ("accuracy",)
    return {"targets": ("bleu", "perplexity"), "masked": ("pseudo-perplexity",), "causal": ("perplexity",)}[kind]
