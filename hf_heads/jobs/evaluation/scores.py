"""What every example adds to a task's score."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_heads.attention.hosts.table import positions_of
from hf_heads.core.batches import Batch, main_output, mean_pool
from hf_heads.core.corpus import ORDER
from hf_heads.core.errors import HeadsError
from hf_heads.core.numbers import shown
from hf_heads.io.checkpoints.sources import Source
from hf_heads.io.data.batching import IGNORED, make_batches
from hf_heads.io.data.calibration import CalibrationChoice
from hf_heads.io.data.encoding import encode_pairs, encode_text, load_tokenizer
from hf_heads.io.data.ngrams import need_sacrebleu, ngram_counts
from hf_heads.io.data.reading import Table, read_examples, read_table
from hf_heads.jobs.evaluation.metrics import METRICS, Task
from hf_heads.modeling.classes import is_causal_lm


def _logits(model: PreTrainedModel, batch: Batch) -> Tensor:
    return main_output(model, {name: value for name, value in batch.items() if name not in ("labels", "index")})[0]


# Labelled batches: classes, numbers, next tokens.


@torch.inference_mode()
def hits(batches: list[Batch], model: PreTrainedModel) -> Tensor:
    """Whether the predicted class is the label, (examples, 1)."""
    hits = [_logits(model, batch).argmax(-1).cpu() == batch["labels"] for batch in batches]
    return torch.cat(hits).double()[:, None]


@torch.inference_mode()
def predicted_numbers(batches: list[Batch], model: PreTrainedModel) -> Tensor:
    """What a regression predicts and what was wanted, (examples, 2)."""
    pairs = [torch.stack([_logits(model, batch)[:, 0].cpu(), batch["labels"]], 1) for batch in batches]
    return torch.cat(pairs).double()


@torch.inference_mode()
def token_nll(batches: list[Batch], model: PreTrainedModel) -> Tensor:
    """Sum over each example's tokens of the negative log-likelihood, and how many they are."""
    found = []
    for batch in batches:
        logits, labels = _logits(model, batch), batch["labels"].to(model.device)
        if is_causal_lm(model):
            logits, labels = logits[:, :-1], labels[:, 1:]
        nll = nn.functional.cross_entropy(logits.mT.float(), labels, ignore_index=IGNORED, reduction="none")
        found.append(torch.stack([nll.double().sum(1), (labels != IGNORED).sum(1)], 1).cpu())
    return torch.cat(found)


# Masked tokens.


def masked_one_by_one(model: PreTrainedModel, source: Source, choice: CalibrationChoice) -> Task:
    """Whole texts as long as they have no more ordinary tokens than `choice.count` together, one text at least."""
    texts, _ = read_examples(choice.single, choice.columns, "text", choice.count, choice.seed)
    tokenizer = load_tokenizer(source.folder)
    if tokenizer.mask_token_id is None:
        raise HeadsError(f"the tokenizer of '{source.given}' has no mask token, which pseudo-perplexity needs")
    special, count = set(tokenizer.all_special_ids), 0
    examples: list[dict[str, Any]] = []
    for encoded in encode_text(texts, source.folder, choice.max_length):
        ids = encoded["input_ids"]
        places = [place for place, token in enumerate(ids) if token not in special]
        if examples and len(examples) + len(places) > choice.count:
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


def scored_pairs(choice: CalibrationChoice) -> tuple[list[tuple[str, str]], list[float]] | None:
    """Pairs of texts with a number each, or None where the data has no two columns of texts or none of numbers."""
    given = [*(choice.columns or ()), *([choice.label] if choice.label else [])]
    table = read_table(choice.single, given, choice.count, choice.seed)
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
    scores = [row[numbers[0]] for row in rows]
    if wrong := [one for one in scores if not isinstance(one, int | float) or not math.isfinite(one)]:
        raise HeadsError(
            f"column '{numbers[0]}' of '{choice.source}' holds {shown(wrong[0])}, which is no number: name the scores "
            "with --label"
        )
    return [(row[texts[0]], row[texts[1]]) for row in rows], [float(one) for one in scores]


def _numeric(table: Table, column: str) -> bool:
    values = [row[column] for row in table.rows if row[column] is not None]
    return bool(values) and all(isinstance(value, int | float) for value in values)


def similarity(model: PreTrainedModel, source: Source, choice: CalibrationChoice) -> Task:
    """Spearman of pairs of texts: the cosine of their pooled embeddings against human scores."""
    found = scored_pairs(choice)
    if not found or not found[1]:
        raise HeadsError(
            f"spearman needs two columns of texts and one of numbers in '{choice.source}': name them with --columns "
            "a,b --label score, or pass --metric none"
        )
    pairs, scores = found
    texts = [first for first, _ in pairs] + [second for _, second in pairs]
    examples = [
        {**one, "index": index} for index, one in enumerate(encode_text(texts, source.folder, choice.max_length))
    ]
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


def translation(model: PreTrainedModel, source: Source, choice: CalibrationChoice, beams: int) -> Task:
    """BLEU of the translations that a text-to-text model writes."""
    need_sacrebleu()
    pairs, used = read_examples(choice.single, choice.columns, "text-to-text", choice.count, choice.seed)
    if not pairs or isinstance(pairs[0], str):
        raise HeadsError(
            f"bleu needs source and target texts, and '{choice.source}' has {', '.join(used)}: name both with "
            "--columns a,b, or pass --metric none"
        )
    encoded = encode_pairs([text for text, _ in pairs], source.folder, choice.max_length)
    batches = make_batches([{**one, "index": index} for index, one in enumerate(encoded)], model.config)
    tokenizer, references = load_tokenizer(source.folder), [text for _, text in pairs]
    return Task(METRICS["bleu"], len(pairs), partial(_ngrams, batches, references, tokenizer, beams))


@torch.inference_mode()
def _ngrams(batches: list[Batch], references: list[str], tokenizer: Any, beams: int, model: PreTrainedModel) -> Tensor:
    """What `bleu` sums, for each translation."""
    found = torch.empty(len(references), 2 * ORDER + 2, dtype=torch.float64)
    for batch in batches:
        inputs = {name: value.to(model.device) for name, value in batch.items() if name != "index"}
        wanted = 2 * inputs["input_ids"].shape[1] + 16
        longest = min(positions_of(model.config) or wanted + 1, wanted + 1) - 1
        ids = model.generate(**inputs, do_sample=False, num_beams=beams, max_length=None, max_new_tokens=longest)  # type: ignore[operator]
        for index, text in zip(
            batch["index"].tolist(), tokenizer.batch_decode(ids, skip_special_tokens=True), strict=True
        ):
            found[index] = ngram_counts(text, references[index])
    return found
