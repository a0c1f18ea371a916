"""Rows that are no rows: said in a line, though the readers below would end the process or say less."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hf_heads.core.errors import HeadsError
from hf_heads.io.data.choice import CalibrationChoice
from hf_heads.io.data.reading import read_examples
from hf_heads.jobs.evaluation.scores import scored_pairs
from tests.support.labelled import classifier, load_labelled
from tests.support.tokenizers import save_tokenizer

ROW = '{"text": "word1", "label": 1}'


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", f"null\n{ROW}\n", "line 1 of '{}' is null, expected an object: leave it out"),
        ("a.jsonl", f"\ufeff null\n{ROW}\n", "line 1 of '{}' is null, expected an object: leave it out"),
        ("a.jsonl", f"{ROW}\n\tnull {ROW}\n", "line 2 of '{}' is null, expected an object: leave it out"),
        ("a.json", f"[null, {ROW}]", "row 1 of '{}' is None, expected an object"),
        ("a.json", f"[{ROW}, 5]", "row 2 of '{}' is 5, expected an object"),
        ("a.json", f"[{ROW}", "'{}' is not valid JSON"),
        ("a.json", "[" * 10**5, "'{}' nests more than 100 values in one another"),
        ("a.jsonl", f'{ROW}\n{{"text": {"[" * 20_000}{"]" * 20_000}}}\n', "line 2 of '{}' nests more than 100 values"),
    ],
    ids=lambda one: one[:30],
)
def test_rows_at_which_the_reader_below_would_crash(tmp_path: Path, name: str, content: str, words: str):
    path = tmp_path / name
    path.write_text(content)
    for source in (path, tmp_path):
        with pytest.raises(HeadsError, match=re.escape(words.format(path))):
            read_examples(str(source), None, "text", 8, 0)


def test_brackets_in_texts_nest_nothing(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{"text": "' + '[{\\"' * 500 + '"}\n')
    assert read_examples(str(tmp_path / "a.jsonl"), None, "text", 8, 0)[0] == ['[{"' * 500]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", '{"text": "word1", "label": 1}\n{"text": "word2", "label": "good"}\n'),
        ("a.csv", "text,label\nword1,1\nword2,good\n"),
        ("a.tsv", "text\tlabel\nword1\t1\nword2\tgood\n"),
    ],
)
def test_labels_of_mixed_types(tmp_path: Path, name: str, content: str):
    (tmp_path / name).write_text(content)
    save_tokenizer(tmp_path)
    with pytest.raises(HeadsError) as caught:
        load_labelled(str(tmp_path / name), classifier(), tmp_path, label="label")
    assert "column 'label' of " in str(caught.value) and "holds numbers in some rows" in str(caught.value)
    assert "and texts in others ('good'); make all labels of one kind" in str(caught.value)


def test_scores_of_pairs_that_are_no_numbers(tmp_path: Path):
    (tmp_path / "a.csv").write_text("one,two,score\nword1,word2,0.5\nword3,word4,much\n")
    with pytest.raises(HeadsError, match=r"column 'score' of '.*' holds '.*', which is no number"):
        scored_pairs(CalibrationChoice(str(tmp_path / "a.csv"), ("one", "two"), "score"))
