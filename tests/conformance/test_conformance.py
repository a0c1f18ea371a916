"""Transformers' own tests of models and of generation, on derived classes: every method in every host.

They lie in no package: `HF_TRANSFORMERS_TESTS` names the folder `tests` of a checkout; see CONTRIBUTING.md.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

CHECKOUT = os.environ.get("HF_TRANSFORMERS_TESTS")
if not CHECKOUT:
    pytest.skip("HF_TRANSFORMERS_TESTS names no folder with transformers' tests", allow_module_level=True)

from tests.conformance.expected import expected  # noqa: E402
from tests.conformance.suite import HOSTS, derived_test, open_checkout  # noqa: E402
from tests.modeling.test_parts import SPECS  # noqa: E402

pytestmark = pytest.mark.filterwarnings("default")  # those of the checkout, for which warnings are no errors

open_checkout(Path(CHECKOUT))


def deal(host: int, method: int) -> Callable[[int], bool]:
    """By default a host has each test with one method: all pairs of host and method, and of host and test."""
    return lambda test: (host + test) % len(SPECS) == method


tests = [
    derived_test(host, method, spec, deal(row, column), expected)
    for row, host in enumerate(HOSTS)
    for column, (method, spec) in enumerate(SPECS.items())
]
globals().update({made.__name__: made for made in tests})
