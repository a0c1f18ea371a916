"""Texts made from nothing: how often which tokens are drawn."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import BertModel

from hf_heads.io.data.made import frequencies, made_examples, probe_examples
from tests.support.tokenizers import WORDS, save_tokenizer
from tests.support.twins import bert_config

MARKED = ["##{}", "▁{}", "Ġ{}", "{}</w>", "{}"]


def test_words_are_as_frequent_as_their_rank_says():
    """Zipf's law with Mandelbrot's shift, written out; alphabets are rare, brackets never drawn, stops a tenth."""
    words = [MARKED[number % 5].format(f"w{number}") for number in range(400)]
    tokens = ["[unused0]", "<0x0A>", None, *"abcdefghij", *words[:200], ".", "▁,", *words[200:]]
    found = frequencies(tokens)
    assert found is not None
    assert float(found.sum()) * 0.1 == pytest.approx(2 * float(found[tokens.index(".")]), rel=1e-4)
    for token, weight in zip(tokens, found.tolist(), strict=True):
        if token in (".", "▁,"):
            expected = float(found[tokens.index("▁,")])
        elif token in words:
            expected = 1 / (words.index(token) + 1 + 100)
        else:
            expected = 0 if token is None or token[0] in "[<" else 1 / (400 + 100)
        assert weight == pytest.approx(expected), token


def test_where_an_order_says_nothing_all_tokens_are_alike():
    assert frequencies([*"天地玄黃宇宙洪荒", "one", "two", "three"]) is None
    assert frequencies(["[A]", "[B]"]) is None


def test_made_texts_follow_the_vocabulary_and_probes_do_not(tmp_path: Path):
    save_tokenizer(tmp_path)
    config = BertModel(bert_config()).config
    weights = [1 / (rank + 100) for rank in range(1, len(WORDS) + 1)]
    half = len(WORDS) // 2
    config.vocab_size += 200  # rows that no token has
    shares = []
    for make in (made_examples, probe_examples):
        ids = torch.cat([torch.tensor(example["input_ids"][1:-1]) for example in make(config, tmp_path, 2000, 0)])
        assert int(ids.min()) >= 5 and (int(ids.max()) < 5 + len(WORDS)) == (make is made_examples)
        ids = ids[ids < 5 + len(WORDS)]
        shares.append(float((ids - 5 < half).double().mean()))
    assert shares == [pytest.approx(sum(weights[:half]) / sum(weights), abs=0.01), pytest.approx(0.5, abs=0.03)]
