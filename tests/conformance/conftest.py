"""The marks of transformers' tests, which pytest has to know."""

from __future__ import annotations

import pytest

MARKS = (
    "accelerate_tests bitsandbytes executorch_export_test flash_attn_test flash_attn_3_test flash_attn_4_test generate "
    "is_pipeline_test onnx_export_test timeout torch_compile_test torch_export_test"
)


def pytest_configure(config: pytest.Config) -> None:
    for mark in MARKS.split():
        config.addinivalue_line("markers", f"{mark}: of transformers' tests")
