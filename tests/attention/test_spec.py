"""Specs check themselves, and those of one block are a type of their own."""

from __future__ import annotations

import pickle
import re
from dataclasses import MISSING, fields
from typing import Any

import pytest

import hf_heads
from hf_heads import CollabSpec, HeadsError, LowRankSpec, MgkSpec, MheSpec, PrunedSpec
from hf_heads.core.dense import AttentionShape

SHAPE = AttentionShape(4, 32, 32, 8, 8, 32)


@pytest.mark.parametrize(
    ("spec", "settings", "text"),
    [
        (CollabSpec, {"rank": -1}, "rank is -1, expected 1 or more"),
        (CollabSpec, {"rank": "ninety"}, "rank is 'ninety', expected int"),
        (CollabSpec, {"rank": True}, "rank is True, expected int"),
        (CollabSpec, {"rank": 96.0}, "rank is 96.0, expected int"),
        (CollabSpec, {"rank": 8, "form": "cpp"}, "form is 'cpp', expected one of cp, tucker"),
        (CollabSpec, {"energy": float("nan")}, "energy is nan, expected 0 to 1"),
        (LowRankSpec, {"energy": 0}, "energy is 0"),
        (LowRankSpec, {"energy": 1.1}, "energy is 1.1, expected 0 to 1"),
        (PrunedSpec, {"keep": 2}, "keep is 2, expected 0 to 1"),
        (PrunedSpec, {"kept": [0.5]}, "kept is [0.5], expected a list of int"),
        (PrunedSpec, {"kept": "01"}, "kept is '01', expected a list of int"),
        (PrunedSpec, {"keep": 0.5, "repair": "yes"}, "repair is 'yes', expected bool"),
        (MheSpec, {"groups": 0}, "groups is 0, expected 1 or more"),
        (MgkSpec, {"norm": float("inf")}, "norm is inf, expected 0 to 100"),
        (MgkSpec, {"components": None}, "components is None, expected int"),
    ],
)
def test_a_spec_that_makes_no_sense_is_not_built(spec: type, settings: dict[str, Any], text: str):
    with pytest.raises(HeadsError, match=re.escape(text)):
        spec(**settings)


def test_lists_are_tuples_in_a_spec():
    assert PrunedSpec(kept=[1, 2]).kept == (1, 2)


@pytest.mark.parametrize("name", hf_heads.methods)
def test_the_settings_of_one_block_lack_nothing(name: str):
    spec = hf_heads.methods[name].spec
    made = {"collab": {"rank": 8}, "low-rank": {"rank": 8}, "pruned": {"kept": (1,)}}.get(name, {})
    resolved = spec(**made).resolve(SHAPE)
    assert type(resolved) is spec.resolved() is not spec and isinstance(resolved, spec)
    needed = [item.name for item in fields(resolved) if item.default is MISSING]
    assert "heads" in needed and all(getattr(resolved, one) is not None for one in needed)
    again = spec.resolved().from_mapping({key: value for key, value in resolved.to_config().items() if key != "method"})
    assert again.to_config() == resolved.to_config()
    for one in needed:
        entries = {key: value for key, value in resolved.to_config().items() if key not in ("method", one)}
        with pytest.raises(HeadsError, match=f"here: {one} is missing"):
            spec.resolved().from_mapping(entries, "here")


def test_settings_that_are_found_by_planning_resolve_to_nothing():
    for spec in (CollabSpec(energy=0.9), LowRankSpec(rank=8, allocate=True), PrunedSpec(keep=0.5)):
        assert spec.resolve(SHAPE) is None


def test_a_derived_spec_keeps_its_own_method():
    from tests.support.plugin import DerivedSpec

    resolved = DerivedSpec(rank=8, extra=3).resolve(SHAPE)
    assert resolved.method == "derived" and resolved.extra == 3 and isinstance(resolved, DerivedSpec)
    assert resolved.parameters(SHAPE) == LowRankSpec(rank=8).resolve(SHAPE).parameters(SHAPE)
    assert resolved == pickle.loads(pickle.dumps(resolved))
    assert type(resolved.settle(rank=4)) is type(resolved)
