"""Task scores and their intervals against sacrebleu, scipy and plain loops."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy
import pytest
import sacrebleu
import torch
from scipy.stats import rankdata, spearmanr
from transformers import BertForMaskedLM, BertForSequenceClassification, BertLMHeadModel, BertModel, PreTrainedModel

from hf_heads import HeadsError
from hf_heads.core.intervals import paired_scores
from hf_heads.io.checkpoints.sources import Source
from hf_heads.io.data import ngrams
from hf_heads.io.data.calibration import CalibrationChoice
from hf_heads.io.data.ngrams import ngram_counts
from hf_heads.jobs.evaluation.metrics import average_ranks, bleu, perplexity, spearman
from hf_heads.jobs.evaluation.tasks import Task, make_task
from tests.support.files import write_rows
from tests.support.tokenizers import save_tokenizer
from tests.support.twins import TWINS, bert_config, randomize

HYPOTHESES = ["the cat sat on the mat today", "a dog", "", "rain fell on the old town, and on us", "yes"]
REFERENCES = [
    "the cat sat on a mat",
    "a dog barks loudly",
    "nothing at all",
    "rain fell on the old town and on us",
    "no",
]


def rows(path: Path, *entries: dict[str, Any]) -> str:
    return str(write_rows(path, entries))


def task(
    model: PreTrainedModel, folder: Path, source: str, metric: str = "auto", samples: int = 50, **choice: Any
) -> Task:
    randomize(model.eval(), seed=3)
    save_tokenizer(folder)
    found = make_task(metric, model, Source("twin", folder), CalibrationChoice(source, samples=samples, **choice))
    assert found is not None
    return found


def test_bleu_is_that_of_sacrebleu():
    counts = torch.stack([ngram_counts(*pair) for pair in zip(HYPOTHESES, REFERENCES, strict=True)])
    for chosen in ([0, 1, 2, 3, 4], [0, 0, 3], [0], [3, 4], [4], [2], [1, 4]):
        wanted = sacrebleu.corpus_bleu([HYPOTHESES[i] for i in chosen], [[REFERENCES[i] for i in chosen]]).score
        assert float(bleu(counts[chosen])) == pytest.approx(wanted, abs=1e-9), chosen
    assert torch.equal(bleu(counts[torch.tensor([[0, 3], [3, 4]])])[1], bleu(counts[[3, 4]]))


def test_spearman_is_that_of_scipy_with_ties_too():
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(5, (3, 40, 2), generator=generator).double()
    assert numpy.array_equal(average_ranks(values[0, :, 0]).numpy(), rankdata(values[0, :, 0].numpy()))
    for one, found in zip(values, spearman(values), strict=True):
        assert float(found) == pytest.approx(100 * spearmanr(one[:, 0], one[:, 1])[0])
    assert float(spearman(torch.ones(4, 2))) == 0


def test_intervals_draw_the_same_examples_for_all_models():
    generator = torch.Generator().manual_seed(0)
    first = torch.rand(60, 2, generator=generator).double() + 1
    second = first * torch.tensor([1.1, 1.0])
    (one, none), (two, more) = paired_scores([first, second], perplexity, resamples=300)
    assert one.value == pytest.approx(math.exp(float(first[:, 0].sum() / first[:, 1].sum())))
    assert one.low < one.value < one.high and none == (0, 0, 0)
    assert more.value == pytest.approx(two.value - one.value)
    # exp(1.1 x) - exp(x) varies far less than exp(x) where x is the same draw's
    assert 0 < more.low < more.value < more.high
    assert more.high - more.low < one.high - one.low
    draws = torch.randint(60, (300, 60), generator=torch.Generator().manual_seed(0))
    naive = torch.stack([perplexity(first[draw]) for draw in draws]).quantile(0.025)
    assert one.low == pytest.approx(float(naive))


def test_sts_is_the_correlation_of_cosines_of_mean_pooled_embeddings(tmp_path: Path):
    pairs = [("word1 word2", "word1 word2 word3", 4.0), ("word5", "word9 word8", 1), ("word4 word4", "word7", 2.5)]
    data = rows(tmp_path / "a.jsonl", *({"a": a, "b": b, "score": score} for a, b, score in pairs))
    model = BertModel(bert_config())
    found = task(model, tmp_path, data)
    assert (found.metric.name, found.examples) == ("spearman", 3)
    statistics = found.measure(model)
    for a, b, score in pairs:
        ids = [torch.tensor([[2, *(5 + int(word[4:]) for word in text.split()), 3]]) for text in (a, b)]
        with torch.no_grad():
            cosine = torch.cosine_similarity(*(model(one).last_hidden_state.mean(1) for one in ids))
        row = statistics[statistics[:, 1] == score][0]
        assert float(row[0]) == pytest.approx(float(cosine), abs=1e-6)


def test_accuracy_counts_hits(tmp_path: Path):
    data = rows(tmp_path / "a.jsonl", *({"text": f"word{i} word{2 * i}", "label": i % 2} for i in range(12)))
    model = BertForSequenceClassification(bert_config(num_labels=2))
    found = task(model, tmp_path, data)
    hits = 0
    for i in range(12):
        with torch.no_grad():
            hits += int(model(torch.tensor([[2, 5 + i, 5 + 2 * i, 3]])).logits.argmax()) == i % 2
    assert found.metric.name == "accuracy"
    assert float(found.metric.value(found.measure(model))) == pytest.approx(100 * hits / 12)


def test_perplexity_is_that_of_the_models_own_loss(tmp_path: Path):
    data = rows(tmp_path / "a.jsonl", {"text": "word1 word2 word3"}, {"text": "word4 word5 word6 word7 word8"})
    model = BertLMHeadModel(bert_config(is_decoder=True))
    found = task(model, tmp_path, data)
    nll = tokens = 0.0
    for words in ((1, 2, 3), (4, 5, 6, 7, 8)):
        ids = torch.tensor([[2, *(5 + word for word in words), 3]])
        with torch.no_grad():
            nll += float(model(ids, labels=ids).loss) * (ids.shape[1] - 1)
        tokens += ids.shape[1] - 1
    assert found.metric.name == "perplexity" and not found.metric.higher_is_better
    assert float(found.metric.value(found.measure(model))) == pytest.approx(math.exp(nll / tokens), rel=1e-5)


def test_pseudo_perplexity_masks_every_ordinary_token_alone(tmp_path: Path):
    data = rows(tmp_path / "a.jsonl", {"text": "word1 word2 word3"}, {"text": "word4 word5"})
    model = BertForMaskedLM(bert_config())
    found = task(model, tmp_path, data)
    nll = []
    for words in ((1, 2, 3), (4, 5)):
        ids = torch.tensor([[2, *(5 + word for word in words), 3]])
        for place in range(1, len(words) + 1):
            masked = ids.clone()
            masked[0, place] = 4
            with torch.no_grad():
                nll.append(-float(model(masked).logits[0, place].log_softmax(-1)[ids[0, place]]))
    assert (found.metric.name, found.examples) == ("pseudo-perplexity", 2)
    assert float(found.metric.value(found.measure(model))) == pytest.approx(math.exp(sum(nll) / 5), rel=1e-5)
    assert task(model, tmp_path, data, samples=3).examples == 1  # samples are tokens here


def test_what_is_refused_and_what_auto_leaves_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model, choice = BertModel(bert_config()), CalibrationChoice(rows(tmp_path / "t.jsonl", {"text": "word1"}))
    save_tokenizer(tmp_path)
    source = Source("twin", tmp_path)
    assert make_task("auto", model, source, choice) is None
    assert make_task("none", model, source, choice) is None
    assert make_task("auto", model, source, CalibrationChoice()) is None
    marian = TWINS["marian"].model()
    for metric, one, data, words in (
        ("best", model, choice, "unknown metric 'best'"),
        ("bleu", model, choice, "BertModel has no bleu. Metrics here: spearman, none"),
        ("spearman", model, choice, "two columns of texts and one of numbers"),
        ("spearman", model, CalibrationChoice(), "name it with --data"),
        ("bleu", marian, choice, "name both with --columns a,b"),
    ):
        with pytest.raises(HeadsError, match=words):
            make_task(metric, one, source, data)
    two = rows(tmp_path / "u.jsonl", {"a": "word1", "b": "word2", "x": 1, "y": 2})
    with pytest.raises(HeadsError, match="x, y; name one with --label"):
        make_task("auto", model, source, CalibrationChoice(two))
    monkeypatch.setattr(ngrams.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(HeadsError, match=r"pip install sacrebleu"):
        make_task("bleu", marian, source, choice)
