"""The contract on every architecture of the table: by default a check with one method, in the full matrix with all."""

from __future__ import annotations

from pathlib import Path

import pytest

from hf_heads.attention.hosts.table import ADAPTERS, reasons_against
from hf_heads.jobs.contract import CHECKS, Case, Twin, possible
from hf_heads.methods.registry import about
from tests.support.image_twins import IMAGE_TWINS
from tests.support.sound_twins import SOUND_TWINS
from tests.support.text_twins import TEXT_TWINS
from tests.support.twins import TWINS

HOSTS: dict[str, Twin] = {**TEXT_TWINS, **IMAGE_TWINS, **SOUND_TWINS}
METHODS = ("collab", "low-rank", "mgk", "mhe", "pruned")


# Of checks that find little new from row to row, or take seconds, one architecture of each kind runs by default.
_SLOW = ("loading", "maps", "training", "sizes", "precision", "folders")
_KINDS = ("roberta", "opt", "m2m_100", "deit", "beit", "wav2vec2", "whisper", "clip", "gpt2", "albert", "llama", "t5")


def _methods(name: str) -> list[str]:
    """The methods that an architecture allows."""
    row = ADAPTERS[HOSTS[name].model_type]
    return [method for method in METHODS if reasons_against(row, method, about(method).handles) is None]


def _cases() -> list[object]:
    """Every check of every pair; by default each check of an architecture runs with one method, in turn."""
    cases = []
    for place, name in enumerate(HOSTS):
        methods = _methods(name)
        for index, check in enumerate(CHECKS):
            for number, method in enumerate(methods):
                chosen = (place + index) % len(methods) == number and (check not in _SLOW or name in _KINDS)
                marks = () if chosen else pytest.mark.full
                cases.append(pytest.param(name, method, check, id=f"{name}-{method}-{check}", marks=marks))
    return cases


@pytest.mark.parametrize(("name", "method", "check"), _cases())
def test_architectures_keep_the_contract(name: str, method: str, check: str, tmp_path: Path):
    CHECKS[check](Case(HOSTS[name], method, tmp_path))


def test_every_row_has_a_twin():
    assert set(ADAPTERS) == {twin.model_type for twin in (*HOSTS.values(), *TWINS.values())}


@pytest.mark.parametrize("name", ["llama", "gpt_bigcode", "esm"])
def test_methods_that_an_architecture_does_not_allow_are_refused_with_the_reason(name: str):
    assert _methods(name) != list(METHODS)
    assert [method for method in METHODS if possible(HOSTS[name], method)] == _methods(name)
