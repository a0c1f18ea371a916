"""Matrices of cases: what of all combinations runs by default; the rest is marked `full` (`make test-all`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from itertools import combinations, product
from typing import Any

import pytest

Kind = Callable[[Any], Hashable]
Case = tuple[tuple[str, str], ...]  # the name of every argument, with that of its value


def pairwise(kinds: Mapping[str, Kind] | None = None, **factors: Iterable[Any]) -> pytest.MarkDecorator:
    """Parametrize a test by all combinations; by default run so many that all pairs of values are seen.

    Args:
        kinds: for a factor whose values are variants of few kinds, what tells the kind of a value. Then it is the kinds
            that meet every value of the other factors, and of the variants each is seen at least once.
        factors: the values of each argument of the test; of a mapping, the values, with the keys for their names.
    """
    named = _named(factors)
    kind_of = {
        (name, label): kinds[name](value) if kinds and name in kinds else label
        for name, values in named.items()
        for label, value in values.items()
    }

    def shown(case: Case) -> set[Hashable]:
        return {*case, *combinations([(name, kind_of[name, label]) for name, label in case], 2)}

    return _parametrized(named, shown)


def each(**factors: Iterable[Any]) -> pytest.MarkDecorator:
    """As `pairwise`, for what does not interact: every value is seen at least once."""
    return _parametrized(_named(factors), set)


def _named(factors: Mapping[str, Iterable[Any]]) -> dict[str, dict[str, Any]]:
    return {
        name: dict(values) if isinstance(values, Mapping) else {str(value): value for value in values}
        for name, values in factors.items()
    }


def _parametrized(named: dict[str, dict[str, Any]], shown: Callable[[Case], set[Hashable]]) -> pytest.MarkDecorator:
    cases = [tuple(zip(named, labels, strict=True)) for labels in product(*named.values())]
    chosen = covering([shown(case) for case in cases])
    parameters = [
        pytest.param(
            *(named[name][label] for name, label in case),
            id="-".join(label for _, label in case),
            marks=() if index in chosen else pytest.mark.full,
        )
        for index, case in enumerate(cases)
    ]
    return pytest.mark.parametrize(list(named), parameters)


def covering(shown: Sequence[set[Hashable]]) -> set[int]:
    """Indices of few sets whose union is the union of all: again and again the one with most that is new.

    Of several such sets it is the one whose members were seen least, so that variants do not all meet the same value.
    """
    missing, seen, chosen = set[Hashable]().union(*shown), Counter[Hashable](), set[int]()
    while missing:
        best = max(
            range(len(shown)), key=lambda index: (len(shown[index] & missing), -sum(seen[one] for one in shown[index]))
        )
        chosen.add(best)
        missing -= shown[best]
        seen.update(shown[best])
    return chosen
