"""The ratios that studies report, against the papers' words."""

from __future__ import annotations

import pytest
from studies.mhe_scratch import elasticity, retained


def test_what_is_retained_is_relative_to_multi_head_attention():
    assert retained(50.0, 50.0) == 100 and retained(55.0, 50.0) == pytest.approx(90)


def test_elasticity_is_percent_gained_for_each_percent_of_parameters():
    assert elasticity(98.0, 100.0, 101.0, 100.0) == pytest.approx(2)  # 2 % better for 1 % more
    assert elasticity(102.0, 100.0, 101.0, 100.0) == pytest.approx(-2)
