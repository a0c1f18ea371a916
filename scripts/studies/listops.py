"""ListOps sequences of any length: nested MAX, MIN, MED and SM over digits (arXiv 1804.06028, LRA: arXiv 2011.04006).

Trees are drawn as in the Long Range Arena, which takes 500 to 2000 tokens: an argument is a tree with probability 0.25
and else a digit, a tree has 2 to 10 arguments, 10 levels at most, and trees of other lengths are thrown away. Writes
rows of `sentence` and `label`.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from studies.shared.sequences import Padded, Part

OPERATORS: dict[str, Callable[[Sequence[int]], int]] = {
    "[MAX": max,
    "[MIN": min,
    "[MED": lambda values: int(statistics.median(values)),  # the mean of the middle two, rounded down
    "[SM": lambda values: sum(values) % 10,
}
END = "]"
VOCABULARY = {token: index for index, token in enumerate(("[PAD]", "[CLS]", *OPERATORS, END, *map(str, range(10))))}
CLASSES = 10

TREE_SHARE = 0.25
MOST_ARGUMENTS = 10
MOST_LEVELS = 10  # the lowest of them has digits only
SHORTEST = 4  # [MAX 1 2 ]
PATIENCE = 1_000_000

Row = tuple[list[str], int]


def generate(count: int, minimum: int, maximum: int, seed: int) -> list[Row]:
    """Different sequences and their values; more of the same seed begin with the same ones.

    Args:
        count: how many.
        minimum: fewest tokens of a sequence, brackets counted and [CLS] not.
        maximum: most tokens.
        seed: the same sequences for the same seed.
    """
    if not SHORTEST <= maximum >= minimum:
        raise ValueError(f"no tree has {minimum} to {maximum} tokens; the shortest has {SHORTEST}")
    draw, rows, tries = random.Random(seed), {}, 0
    while len(rows) < count:
        tries += 1
        found = draw_tree(draw, maximum)
        if found is not None and len(found[0]) >= minimum and (key := " ".join(found[0])) not in rows:
            rows[key], tries = found, 0
        if tries > PATIENCE:
            raise ValueError(f"found {len(rows)} sequences of {minimum} to {maximum} tokens, not {count}")
    return list(rows.values())


def split(train: int, test: int, minimum: int, maximum: int, seed: int) -> tuple[list[Row], list[Row]]:
    """Sequences to train on and to test on, none in both; the test is the same for any number to train on."""
    rows = generate(test + train, minimum, maximum, seed)
    return rows[test:], rows[:test]


def draw_tree(draw: random.Random, room: int, level: int = 1) -> Row | None:
    """A tree of at most `room` tokens and its value; None where it grows larger."""
    operator = draw.choice(list(OPERATORS))
    tokens: list[str] = [operator]
    values: list[int] = []
    for _ in range(draw.randint(2, MOST_ARGUMENTS)):
        if level + 1 < MOST_LEVELS and draw.random() < TREE_SHARE:
            inner = draw_tree(draw, room - len(tokens) - 1, level + 1)
            if inner is None:
                return None
        else:
            digit = draw.randrange(10)
            inner = [str(digit)], digit
        tokens += inner[0]
        values.append(inner[1])
        if len(tokens) >= room:  # no room for the closing bracket
            return None
    return [*tokens, END], OPERATORS[operator](values)


def evaluate(tokens: Sequence[str]) -> int:
    """The value of a sequence, read from its tokens."""
    stack: list[str | int] = []
    for token in tokens:
        if token != END:
            stack.append(token if token in OPERATORS else int(token))
            continue
        values: list[int] = []
        while stack and isinstance(value := stack[-1], int):
            values.append(value)
            stack.pop()
        if not stack or not values:
            raise ValueError(f"a bracket closes nothing in {' '.join(tokens)}")
        values.sort()
        match stack.pop():
            case "[MAX":
                stack.append(values[-1])
            case "[MIN":
                stack.append(values[0])
            case "[MED":
                stack.append((values[(len(values) - 1) // 2] + values[len(values) // 2]) // 2)
            case "[SM":
                stack.append(sum(values) % 10)
    if len(stack) != 1 or not isinstance(stack[0], int):
        raise ValueError(f"not one whole tree: {' '.join(tokens)}")
    return stack[0]


def encode(sequences: Sequence[Sequence[str]]) -> tuple[Tensor, Tensor]:
    """Ids with [CLS] in front and [PAD] behind, and their mask, both (sequences, 1 + most tokens)."""
    rows = [torch.tensor([VOCABULARY[token] for token in ("[CLS]", *tokens)]) for tokens in sequences]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=VOCABULARY["[PAD]"])
    return ids, (ids != VOCABULARY["[PAD]"]).long()


def part(rows: Sequence[Row]) -> Part:
    """Rows to train or to measure on."""
    ids, mask = encode([tokens for tokens, _ in rows])
    return Part(Padded(ids.int(), mask.sum(1)), torch.tensor([value for _, value in rows]))


def guesses(rows: Sequence[Row]) -> dict[str, float]:
    """Percent right by always saying the commonest value, and the commonest of the outermost operator."""
    pairs = Counter((tokens[0], value) for tokens, value in rows)
    commonest = Counter(value for _, value in rows).most_common(1)[0][1]
    outermost = sum(max(pairs[operator, value] for value in range(CLASSES)) for operator in OPERATORS)
    return {"majority": 100 * commonest / len(rows), "operator": 100 * outermost / len(rows)}


def add_lengths(parser: argparse.ArgumentParser, minimum: int, maximum: int) -> None:
    """How long sequences are."""
    for name, default, which in (("minimum", minimum, "fewest"), ("maximum", maximum, "most")):
        about = f"{which} tokens of a ListOps (default {default})"
        parser.add_argument(f"--{name}", type=int, default=default, metavar="TOKENS", help=about)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--count", type=int, default=2000, help="how many sequences (default 2000)")
    add_lengths(parser, 24, 96)
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help=".jsonl")


def run(options: argparse.Namespace) -> None:
    rows = generate(options.count, options.minimum, options.maximum, options.seed)
    lines = [json.dumps({"sentence": " ".join(tokens), "label": value}) for tokens, value in rows]
    options.output.write_text("\n".join(lines) + "\n", encoding="utf-8")
    shares = Counter(value for _, value in rows)
    print(f"{len(rows)} sequences, percent per value:", *(f"{100 * shares[n] / len(rows):.1f}" for n in range(CLASSES)))
