"""p values by random signs, and their correction for many heads, against what they are."""

from __future__ import annotations

import itertools

import pytest
import torch

from hf_heads.core.intervals import holm, sign_test


def test_random_signs_come_to_the_share_of_all_signs():
    values = torch.randn(9, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.5
    sums = [
        abs(sum(sign * float(one) for sign, one in zip(signs, values, strict=True)))
        for signs in itertools.product((-1, 1), repeat=9)
    ]
    wanted = sum(one >= abs(float(values.sum())) - 1e-12 for one in sums) / len(sums)
    assert sign_test(values) == pytest.approx(wanted, abs=0.01)
    assert sign_test(values, seed=1) != sign_test(values)


def test_no_difference_is_no_surprise_and_a_sure_one_is():
    assert sign_test(torch.zeros(5)) == 1
    assert sign_test(torch.ones(50)) == pytest.approx(1 / 10_001)
    assert sign_test(torch.cat([torch.ones(3), -torch.ones(3)])) == 1


def test_holms_correction_steps_down_and_never_back():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0] and holm([]) == []
