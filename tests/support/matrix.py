"""Matrices of cases: what of all combinations runs by default; the rest is marked `full` (`make test-all`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping
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

    return _parametrized(named, _covering(named, shown))


def each(**factors: Iterable[Any]) -> pytest.MarkDecorator:
    """As `pairwise`, for what does not interact: every value is seen at least once."""
    named = _named(factors)
    return _parametrized(named, _covering(named, set))


def only(*default: str, **factors: Iterable[Any]) -> pytest.MarkDecorator:
    """As `pairwise`, for what takes seconds each: by default run those combinations whose names are given."""
    named = _named(factors)
    found = {_name(case): case for case in _cases(named)}
    return _parametrized(named, {found[name] for name in default})


def _named(factors: Mapping[str, Iterable[Any]]) -> dict[str, dict[str, Any]]:
    return {
        name: dict(values) if isinstance(values, Mapping) else {str(value): value for value in values}
        for name, values in factors.items()
    }


def _cases(named: dict[str, dict[str, Any]]) -> list[Case]:
    return [tuple(zip(named, labels, strict=True)) for labels in product(*named.values())]


def _name(case: Case) -> str:
    return "-".join(label for _, label in case)


def _parametrized(named: dict[str, dict[str, Any]], default: set[Case]) -> pytest.MarkDecorator:
    parameters = [
        pytest.param(
            *(named[name][label] for name, label in case),
            id=_name(case),
            marks=() if case in default else pytest.mark.full,
        )
        for case in _cases(named)
    ]
    return pytest.mark.parametrize(list(named), parameters)


def _covering(named: dict[str, dict[str, Any]], shown: Callable[[Case], set[Hashable]]) -> set[Case]:
    """Few cases that show all that all cases show: again and again the one that shows most that is new.

    Of several such cases it is the one whose parts were seen least, so that variants do not all meet the same value.
    """
    parts = {case: shown(case) for case in _cases(named)}
    missing, seen, chosen = set[Hashable]().union(*parts.values()), Counter[Hashable](), set[Case]()
    while missing:
        best = max(parts, key=lambda case: (len(parts[case] & missing), -sum(seen[one] for one in parts[case])))
        chosen.add(best)
        missing -= parts[best]
        seen.update(parts[best])
    return chosen
