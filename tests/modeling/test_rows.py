"""Forty rows cost nothing until they are used, and one that is broken costs nobody anything else."""

from __future__ import annotations

import subprocess
import sys

import pytest
from transformers import BlipConfig
from transformers.models.auto import configuration_auto

from hf_heads.attention.hosts import table
from hf_heads.attention.hosts.sites import AttentionAdapter
from hf_heads.methods.words import refusals
from hf_heads.modeling import registration
from hf_heads.modeling.classes import class_by_name

PROGRAM = """
import sys, time
import transformers.models.auto.configuration_auto
modules, begin = set(sys.modules), time.process_time()
import hf_heads
seconds, new = time.process_time() - begin, set(sys.modules) - modules
print(seconds, *(name for name in new if "configuration_" in name or name == "peft"))
"""


def test_importing_beside_transformers_takes_little_and_imports_no_architecture_and_no_peft():
    found = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True).stdout.split()
    assert float(found[0]) < 0.3 and not found[1:]  # a tenth of that on an idle core


@pytest.mark.parametrize("package", [None, "no_such_package"])
def test_a_broken_row_leaves_all_others_alone(package: str | None, monkeypatch: pytest.MonkeyPatch):
    broken = AttentionAdapter("no-such-type", "text", (), package=package)
    rows = {"no-such-type": broken, **table.ADAPTERS}
    monkeypatch.setattr(table, "ADAPTERS", rows)
    table.architectures.cache_clear()
    try:
        mapping = configuration_auto._LazyConfigMapping(configuration_auto.CONFIG_MAPPING_NAMES)
        monkeypatch.setattr(configuration_auto, "CONFIG_MAPPING", mapping)
        registration._register(configuration_auto)
        assert mapping["heads_roberta"].__name__ == "HeadsRobertaConfig"
        assert ("heads_no-such-type" in mapping) == (package is not None)
        if package:
            with pytest.raises(ModuleNotFoundError, match=package):
                mapping["heads_no-such-type"]
        assert class_by_name("HeadsRobertaModel").__name__ == "HeadsRobertaModel"
        assert refusals()["roberta"]["collab"] is None
    finally:
        table.architectures.cache_clear()


def test_an_architecture_without_a_row_is_refused_with_its_reason():
    found = table.refusal(BlipConfig())
    assert found is not None and found.startswith("cannot convert 'blip': its captioners have blocks that BlipModel")
    assert not set(table.REFUSED) & set(table.ADAPTERS)
