"""The learning rate over a run."""

from __future__ import annotations

import pytest

from hf_heads.jobs.distillation.schedule import rate_factor, rate_from_start


def over(steps: int, warmup: int | None = None, stop: float = 1.0) -> list[float]:
    """The factors of a run that ends, by its time, after `steps` steps."""
    return [rate_factor(step, stop * step / steps, warmup) for step in range(steps)]


@pytest.mark.parametrize("steps", [10, 25, 100, 1000])
def test_a_run_of_any_length_reaches_its_learning_rate_early(steps: int):
    factors = over(steps)
    assert factors[0] > 0 and max(factors) > 0.95
    assert factors.index(max(factors)) <= steps / 10 + 1


def test_a_long_run_rises_in_twenty_steps_and_falls_as_a_cosine():
    factors = over(1000)
    assert factors[:20] == sorted(factors[:20]) and factors[20:] == sorted(factors[20:], reverse=True)
    assert factors[500] == pytest.approx(0.5) and factors[-1] < 1e-5


def test_a_warmup_that_is_given_is_one_of_so_many_steps():
    assert rate_factor(0, 0.0, 0) == 1.0
    assert [rate_factor(step, 0.0, 4) for step in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert max(over(25, warmup=50)) < 0.5


def test_a_model_that_starts_near_its_original_takes_smaller_steps():
    rates = [rate_from_start(drift) for drift in (0.0, 0.02, 0.1, 0.2, 2.0)]
    assert rates == pytest.approx([0.3, 0.3, 0.5, 1, 1])
