"""ListOps sequences: their values, lengths and classes, and that none of the training is in the test."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
import run
import torch
from studies import listops


@pytest.fixture(scope="module")
def rows() -> list[tuple[list[str], int]]:
    return listops.generate(1000, 24, 96, seed=0)


def value_by_python(tokens: list[str]) -> int:
    """The value, with the sequence made an expression of Python."""
    names = {"[MAX": "max([", "[MIN": "min([", "[MED": "median([", "[SM": "sum_modulo(["}
    text = "".join("])," if token == "]" else names.get(token, f"{token},") for token in tokens)
    functions = {"median": lambda values: int(np.median(values)), "sum_modulo": lambda values: sum(values) % 10}
    return eval(text.rstrip(","), functions)


def levels(tokens: list[str]) -> int:
    depth = [(token in listops.OPERATORS) - (token == "]") for token in tokens]
    return max(np.cumsum(depth))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("[MAX 4 3 [MIN 2 3 ] 1 0 [MED 1 5 8 9 2 ] ]", 5),  # of the Long Range Arena's paper
        ("[MED 1 2 ]", 1),
        ("[MED 9 0 5 2 ]", 3),
        ("[SM 9 9 [MAX 3 7 ] ]", 5),
        ("[MIN [MIN 7 8 ] [SM 9 [MED 6 6 ] 9 ] 5 ]", 4),
    ],
)
def test_a_sequence_has_its_value(text, value):
    assert listops.evaluate(text.split()) == value == value_by_python(text.split())


def test_the_values_are_those_of_the_tokens(rows):
    for tokens, value in rows:
        assert listops.evaluate(tokens) == value == value_by_python(tokens)


@pytest.mark.parametrize("text", ["", "5 6", "]", "[MAX ]", "[MAX 1 2", "[MAX 1 2 ] 3", "[MAX 1 2 ] ]", "[MAX 12 x ]"])
def test_what_is_no_tree_has_no_value(text):
    with pytest.raises(ValueError):
        listops.evaluate(text.split())


@pytest.mark.parametrize(("minimum", "maximum"), [(4, 8), (8, 32), (24, 96), (500, 2000)])
def test_lengths_are_in_range_and_trees_are_nested_as_in_the_long_range_arena(minimum, maximum):
    found = listops.generate(60, minimum, maximum, seed=3)
    lengths = [len(tokens) for tokens, _ in found]
    assert minimum <= min(lengths) and max(lengths) <= maximum
    assert max(levels(tokens) for tokens, _ in found) < listops.MOST_LEVELS
    assert {token for tokens, _ in found for token in tokens} <= set(listops.VOCABULARY) - {"[PAD]", "[CLS]"}
    assert all(tokens[0] in listops.OPERATORS and tokens[-1] == "]" for tokens, _ in found)


def test_a_range_of_one_length_and_of_none():
    assert {len(tokens) for tokens, _ in listops.generate(50, 4, 4, seed=0)} == {4}
    for minimum, maximum in ((1, 3), (9, 8)):
        with pytest.raises(ValueError, match="no tree has"):
            listops.generate(1, minimum, maximum, seed=0)


def test_more_sequences_than_there_are_are_refused(monkeypatch):
    monkeypatch.setattr(listops, "PATIENCE", 20_000)
    with pytest.raises(ValueError, match="found 400 sequences"):  # 4 operators x 100 pairs of digits
        listops.generate(401, 4, 4, seed=0)


def test_a_seed_gives_the_same_sequences_again(rows):
    assert listops.generate(200, 24, 96, seed=0) == rows[:200]
    assert listops.generate(200, 24, 96, seed=1) != rows[:200]


def test_no_class_is_common_and_none_is_rare(rows):
    shares = Counter(value for _, value in rows)
    assert len(shares) == listops.CLASSES
    assert max(shares.values()) < 0.2 * len(rows)  # measured: 16 %, of 0 and of 9
    assert min(shares.values()) > 0.05 * len(rows)  # 8 %


def test_guesses_are_percent_of_the_rows(rows):
    found = listops.guesses(rows)
    assert 10 <= found["majority"] < found["operator"] < 40
    assert listops.guesses([(["[MAX", "1", "2", "]"], 2)]) == {"majority": 100, "operator": 100}


def test_train_and_test_have_nothing_in_common():
    train, test = listops.split(3000, 500, 4, 24, seed=0)
    assert (len(train), len(test)) == (3000, 500)
    assert len({" ".join(tokens) for tokens, _ in [*train, *test]}) == 3500
    assert listops.split(10, 500, 4, 24, seed=0)[1] == test


def test_encoded_sequences_begin_with_cls_and_are_padded():
    short, long = "[MAX 1 2 ]", "[SM 1 2 [MIN 3 4 ] ]"
    ids, mask = listops.encode([short.split(), long.split()])
    names = list(listops.VOCABULARY)
    assert [names[index] for index in ids[0]] == ["[CLS]", *short.split(), *["[PAD]"] * 4]
    assert [names[index] for index in ids[1]] == ["[CLS]", *long.split()]
    assert torch.equal(mask.sum(1), torch.tensor([5, 9])) and torch.equal(mask, (ids != 0).long())


def test_the_script_writes_rows_of_sentence_and_label(tmp_path, capsys):
    output = tmp_path / "listops.jsonl"
    words = ["--count", "50", "--minimum", "8", "--maximum", "32", "--seed", "5", "--results", str(tmp_path)]
    run.main(["listops", *words, "--output", str(output)])
    written = [json.loads(line) for line in output.read_text().splitlines()]
    assert [(row["sentence"].split(), row["label"]) for row in written] == listops.generate(50, 8, 32, seed=5)
    assert "50 sequences" in capsys.readouterr().out
