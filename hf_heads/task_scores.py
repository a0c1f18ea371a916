"""Task scores from what every example adds to them, so that intervals can draw examples anew.

Each metric turns statistics (..., examples, several) into figures (...): sums of counts, a correlation, a mean.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from . import auto
from .adapters import adapter_of
from .calibration import main_output
from .checkpoint import Source
from .checkpoint_conversion import RANDOM, CalibrationChoice, labelled_batches
from .data import (
    IGNORED,
    Batch,
    Table,
    encode_pairs,
    encode_text,
    load_tokenizer,
    make_batches,
    read_examples,
    read_table,
)
from .drift import mean_pool
from .errors import HeadsError
from .labelled import kind_of

AUTO, NONE = "auto", "none"
_ORDER = 4  # the longest n-grams of BLEU


@dataclass(frozen=True)
class Metric:
    """A task score.

    Attributes:
        name: what --metric calls it.
        about: what it is, in a line.
        higher_is_better: which way is up.
        value: statistics (..., examples, several) to the score (...).
    """

    name: str
    about: str
    higher_is_better: bool
    value: Callable[[Tensor], Tensor]


def average_ranks(values: Tensor) -> Tensor:
    """Ranks from 1 along the last dimension; equal values share the mean of their ranks."""
    ordered = values.contiguous().sort(-1).values
    below = torch.searchsorted(ordered, values.contiguous(), side="left")
    not_above = torch.searchsorted(ordered, values.contiguous(), side="right")
    return (below + not_above + 1).double() / 2


def spearman(statistics: Tensor) -> Tensor:
    """100 * rank correlation of (..., examples, 2): predicted, wanted; 0 where either is the same for all."""
    first, second = (average_ranks(statistics[..., column]) for column in (0, 1))
    first, second = (ranks - ranks.mean(-1, keepdim=True) for ranks in (first, second))
    norm = (first.square().sum(-1) * second.square().sum(-1)).sqrt()
    return 100 * (first * second).sum(-1) / norm.clamp_min(1e-300)


def accuracy(statistics: Tensor) -> Tensor:
    """100 * share of hits from (..., examples, 1): 1 or 0."""
    return 100 * statistics[..., 0].mean(-1)


def perplexity(statistics: Tensor) -> Tensor:
    """exp(sum of negative log-likelihoods / number of tokens) from (..., examples, 2)."""
    nll, tokens = statistics.sum(-2).unbind(-1)
    return (nll / tokens).exp()


def bleu(statistics: Tensor) -> Tensor:
    """BLEU from (..., examples, 10): matches of 1- to 4-grams, 1- to 4-grams, tokens of hypothesis, of reference.

    min(1, exp(1 - reference / hypothesis)) * (p_1 p_2 p_3 p_4)^(1/4) with p_n = 100 * matches / n-grams; the k-th order
    without a match counts 1 / 2^k of one, as sacrebleu smooths.
    """
    sums = statistics.sum(-2)
    matches, total = sums[..., :_ORDER], sums[..., _ORDER : 2 * _ORDER]
    hypothesis, reference = sums[..., -2], sums[..., -1]
    missed = matches == 0
    smooth = torch.where(missed, 0.5 ** missed.cumsum(-1), matches)
    precisions = 100 * smooth / total.clamp_min(1e-300)
    brevity = (1 - reference / hypothesis.clamp_min(1e-300)).clamp_max(0).exp()
    score = brevity * precisions.log().mean(-1).exp()
    return score.where((total > 0).all(-1) & ~missed.all(-1), 0.0)


METRICS = {
    metric.name: metric
    for metric in (
        Metric("spearman", "Spearman correlation x 100 of predicted and human scores", True, spearman),
        Metric("accuracy", "share of examples whose label is predicted, in percent", True, accuracy),
        Metric("bleu", "corpus BLEU of the model's translations (sacrebleu)", True, bleu),
        Metric("perplexity", "exp of the mean negative log-likelihood of a token", False, perplexity),
        Metric(
            "pseudo-perplexity",
            "exp of the mean negative log-likelihood of a token that is masked alone",
            False,
            perplexity,
        ),
    )
}


@dataclass(frozen=True)
class Task:
    """A metric with its data.

    Attributes:
        metric: what is scored.
        examples: how many examples there are.
        measure: a model to the statistics (examples, several) of the metric.
    """

    metric: Metric
    examples: int
    measure: Callable[[PreTrainedModel], Tensor]


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
        if name == "spearman" and kind_of(model) is None and _scored_pairs(choice) is None:
            name = NONE
        if name == NONE:
            return None
    if name not in possible:
        raise HeadsError(f"{type(model).__name__} has no {name}. Metrics here: {', '.join((*possible, NONE))}")
    if name == "bleu":
        return _translation(model, source, choice, beams)
    if name == "pseudo-perplexity":
        return _masked_one_by_one(model, source, choice)
    if name == "spearman" and kind_of(model) is None:
        return _similarity(model, source, choice)
    measure = {"accuracy": _hits, "perplexity": _token_nll, "spearman": _predicted_numbers}[name]
    batches = labelled_batches(source, model, choice)
    return Task(METRICS[name], sum(len(batch["labels"]) for batch in batches), partial(measure, batches))


def metrics_of(model: PreTrainedModel) -> tuple[str, ...]:
    """The metrics that a model has outputs for, the usual one first."""
    kind, adapter = kind_of(model), adapter_of(model.config)
    if kind is None:
        base = auto.native_model(type(model)).__name__ == auto.auto_classes(adapter)["AutoModel"]
        return ("spearman",) if base and adapter.modality == "text" else ()
    if kind in ("text-class", "image-class"):
        return ("spearman",) if model.config.num_labels == 1 else ("accuracy",)
    return {"targets": ("bleu", "perplexity"), "masked": ("pseudo-perplexity",), "causal": ("perplexity",)}[kind]


def _logits(model: PreTrainedModel, batch: Batch) -> Tensor:
    return main_output(model, {name: value for name, value in batch.items() if name not in ("labels", "index")})[0]


# Labelled batches: classes, numbers, next tokens.


@torch.inference_mode()
def _hits(batches: list[Batch], model: PreTrainedModel) -> Tensor:
    hits = [_logits(model, batch).argmax(-1).cpu() == batch["labels"] for batch in batches]
    return torch.cat(hits).double()[:, None]


@torch.inference_mode()
def _predicted_numbers(batches: list[Batch], model: PreTrainedModel) -> Tensor:
    pairs = [torch.stack([_logits(model, batch)[:, 0].cpu(), batch["labels"]], 1) for batch in batches]
    return torch.cat(pairs).double()


@torch.inference_mode()
def _token_nll(batches: list[Batch], model: PreTrainedModel) -> Tensor:
    """Sum over each example's tokens of the negative log-likelihood, and how many they are."""
    found = []
    for batch in batches:
        logits, labels = _logits(model, batch), batch["labels"].to(model.device)
        if auto.is_causal_lm(model):
            logits, labels = logits[:, :-1], labels[:, 1:]
        nll = nn.functional.cross_entropy(logits.mT.float(), labels, ignore_index=IGNORED, reduction="none")
        found.append(torch.stack([nll.double().sum(1), (labels != IGNORED).sum(1)], 1).cpu())
    return torch.cat(found)


# Masked tokens.


def _masked_one_by_one(model: PreTrainedModel, source: Source, choice: CalibrationChoice) -> Task:
    """Whole texts as long as they have no more ordinary tokens than `choice.samples` together, one text at least."""
    texts, _ = read_examples(choice.source, choice.columns, "text", choice.samples, choice.seed)
    tokenizer = load_tokenizer(source.folder)
    if tokenizer.mask_token_id is None:
        raise HeadsError(f"the tokenizer of '{source.given}' has no mask token, which pseudo-perplexity needs")
    special, count = set(tokenizer.all_special_ids), 0
    examples: list[dict[str, Any]] = []
    for encoded in encode_text(texts, source.folder):
        ids = encoded["input_ids"]
        places = [place for place, token in enumerate(ids) if token not in special]
        if examples and len(examples) + len(places) > choice.samples:
            break
        for place in places:
            masked = [tokenizer.mask_token_id if other == place else token for other, token in enumerate(ids)]
            labels = [token if other == place else IGNORED for other, token in enumerate(ids)]
            examples.append({"input_ids": masked, "labels": labels, "index": count})
        count += bool(places)
    if not examples:
        raise HeadsError(f"no text of '{choice.source}' has an ordinary token to mask")
    return Task(METRICS["pseudo-perplexity"], count, partial(_masked_nll, make_batches(examples, model.config), count))


@torch.inference_mode()
def _masked_nll(batches: list[Batch], examples: int, model: PreTrainedModel) -> Tensor:
    found = torch.zeros(examples, 2, dtype=torch.float64)
    for batch in batches:
        chosen = batch["labels"] != IGNORED  # one in every row
        logits = _logits(model, batch)[chosen.to(model.device)].float()
        nll = nn.functional.cross_entropy(logits, batch["labels"][chosen].to(model.device), reduction="none")
        found.index_add_(0, batch["index"], torch.stack([nll, torch.ones_like(nll)], 1).double().cpu())
    return found


# Pairs of texts.


def _scored_pairs(choice: CalibrationChoice) -> tuple[list[tuple[str, str]], list[float]] | None:
    """Pairs of texts with a number each, or None where the data has no two columns of texts or none of numbers."""
    given = [*(choice.columns or ()), *([choice.label] if choice.label else [])]
    table = read_table(choice.source, given, choice.samples, choice.seed)
    texts = table.of_kind("text", choice.columns, besides=choice.label)
    numbers = [choice.label] if choice.label else [name for name in table.columns if _numeric(table, name)]
    if len(texts) != 2 or not numbers:
        return None
    if len(numbers) > 1:
        raise HeadsError(
            f"several columns of '{choice.source}' could be the score of a pair: {', '.join(numbers)}; name one with "
            "--label"
        )
    rows = [row for row in table.rows if all(row[name] for name in texts) and row[numbers[0]] is not None]
    return [(row[texts[0]], row[texts[1]]) for row in rows], [float(row[numbers[0]]) for row in rows]


def _numeric(table: Table, column: str) -> bool:
    values = [row[column] for row in table.rows if row[column] is not None]
    return bool(values) and all(isinstance(value, int | float) for value in values)


def _similarity(model: PreTrainedModel, source: Source, choice: CalibrationChoice) -> Task:
    found = _scored_pairs(choice)
    if not found or not found[1]:
        raise HeadsError(
            f"spearman needs two columns of texts and one of numbers in '{choice.source}': name them with --columns "
            "a,b --label score, or pass --metric none"
        )
    pairs, scores = found
    texts = [first for first, _ in pairs] + [second for _, second in pairs]
    examples = [{**one, "index": index} for index, one in enumerate(encode_text(texts, source.folder))]
    batches = make_batches(examples, model.config)
    wanted = torch.tensor(scores, dtype=torch.float64)
    return Task(METRICS["spearman"], len(scores), partial(_cosines, batches, wanted))


@torch.inference_mode()
def _cosines(batches: list[Batch], wanted: Tensor, model: PreTrainedModel) -> Tensor:
    """Cosine of the mean-pooled embeddings of each pair, and its score."""
    embeddings = torch.empty(2 * len(wanted), model.config.hidden_size)
    for batch in batches:
        embeddings[batch["index"]] = mean_pool(_logits(model, batch).float(), batch["attention_mask"]).cpu()
    first, second = embeddings.double().chunk(2)
    return torch.stack([torch.cosine_similarity(first, second), wanted], 1)


# Translations.


def _translation(model: PreTrainedModel, source: Source, choice: CalibrationChoice, beams: int) -> Task:
    if importlib.util.find_spec("sacrebleu") is None:
        raise HeadsError("bleu needs sacrebleu, which is not installed: pip install 'hf-heads[compare]'")
    pairs, used = read_examples(choice.source, choice.columns, "text-to-text", choice.samples, choice.seed)
    if not pairs or isinstance(pairs[0], str):
        raise HeadsError(
            f"bleu needs source and target texts, and '{choice.source}' has {', '.join(used)}: name both with "
            "--columns a,b, or pass --metric none"
        )
    encoded = encode_pairs([text for text, _ in pairs], source.folder)
    batches = make_batches([{**one, "index": index} for index, one in enumerate(encoded)], model.config)
    tokenizer, references = load_tokenizer(source.folder), [text for _, text in pairs]
    return Task(METRICS["bleu"], len(pairs), partial(_ngrams, batches, references, tokenizer, beams))


@torch.inference_mode()
def _ngrams(batches: list[Batch], references: list[str], tokenizer: Any, beams: int, model: PreTrainedModel) -> Tensor:
    """What `bleu` sums, for each translation."""
    found = torch.empty(len(references), 2 * _ORDER + 2, dtype=torch.float64)
    for batch in batches:
        inputs = {name: value.to(model.device) for name, value in batch.items() if name != "index"}
        longest = min(model.config.max_position_embeddings - 1, 2 * inputs["input_ids"].shape[1] + 16)
        ids = model.generate(**inputs, do_sample=False, num_beams=beams, max_new_tokens=longest)  # type: ignore[operator]
        for index, text in zip(
            batch["index"].tolist(), tokenizer.batch_decode(ids, skip_special_tokens=True), strict=True
        ):
            found[index] = ngram_counts(text, references[index])
    return found


def ngram_counts(hypothesis: str, reference: str) -> Tensor:
    """What a sentence adds to BLEU, (10,) as `bleu` takes it; tokens are sacrebleu's."""
    from sacrebleu.metrics import BLEU

    score = BLEU(effective_order=True).sentence_score(hypothesis, [reference])
    return torch.tensor([*score.counts, *score.totals, score.sys_len, score.ref_len], dtype=torch.float64)
