"""Who asks for products that the processor is slow at is told so before they are made."""

from __future__ import annotations

import warnings

import pytest
import torch

from hf_heads import CollabSpec
from hf_heads.core import products
from hf_heads.core.errors import HeadsWarning
from hf_heads.core.products import product_seconds, warn_where_slow
from hf_heads.jobs.conversion.convert import convert
from tests.support.twins import TWINS, WIDTH


def takes(monkeypatch: pytest.MonkeyPatch, seconds: dict[torch.dtype, float]):
    monkeypatch.setattr(products, "product_seconds", lambda dtype: seconds[dtype])


def test_a_processor_without_products_in_bfloat16(monkeypatch: pytest.MonkeyPatch):
    takes(monkeypatch, {torch.bfloat16: 0.07, torch.float32: 0.001})
    with pytest.warns(HeadsWarning, match=r"bfloat16 take this processor 70 times .* float32: take float32"):
        warn_where_slow("bfloat16")
    with pytest.warns(HeadsWarning, match="70 times as long as in float32: take float32"):
        convert(TWINS["bert"].model(), CollabSpec(rank=WIDTH // 2), calibration="none", compute="bfloat16")


@pytest.mark.parametrize(("precision", "seconds"), [("bfloat16", 0.0015), ("float32", 0.07)])
def test_nothing_is_said_where_nothing_is_lost(precision: str, seconds: float, monkeypatch: pytest.MonkeyPatch):
    takes(monkeypatch, {torch.bfloat16: seconds, torch.float32: 0.001})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_where_slow(precision)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_seconds_are_those_of_a_product(dtype: torch.dtype):
    assert 0 < product_seconds(dtype, tries=1) < 5
