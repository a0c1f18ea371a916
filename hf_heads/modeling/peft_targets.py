"""Where PEFT puts adapters when it is not told: in converted blocks on what it takes in their host's own."""

from __future__ import annotations

import sys
from typing import Any

from hf_heads.attention.hosts.sites import AttentionAdapter
from hf_heads.core.vocabulary import PREFIX

CONSTANTS = "peft.utils.constants"
_MADE = {
    "query": ("shared_query", "narrow_query", "component_query"),
    "key": ("shared_key", "narrow_key", "component_key"),
    "value": ("shared_value", "component_value"),
}


def offer_targets(adapter: AttentionAdapter) -> None:
    """Tell PEFT's tables of default targets, if PEFT is imported, of an architecture's derived model type.

    What a table says of the host is said of the derived type as well, and with a projection of the host go those that
    converted blocks have in its place. Where tables of queries and values do not know the host, these are named.
    """
    tables = vars(sys.modules[CONSTANTS]) if CONSTANTS in sys.modules else {}
    usual = tables.get("TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING", {}).get("bert")
    for name, table in tables.items():
        if name.startswith("TRANSFORMERS_MODELS_TO_") and name.endswith("_MODULES_MAPPING"):
            own = table.get(adapter.model_type)
            if own is None and table.get("bert") == usual:
                own = [one for site in adapter.sites for one in (site.fused or site.query, site.fused or site.value)]
            if isinstance(own, list):
                table.setdefault(PREFIX + adapter.model_type, _with_made(own, adapter))


def _with_made(own: list[str], adapter: AttentionAdapter) -> list[str]:
    """Names of projections, and of what converted blocks have in their place; of a fused one, queries and values."""
    named: dict[str, Any] = dict.fromkeys(own)
    for site in adapter.sites:
        for role, host in (("query", site.query), ("key", site.key), ("value", site.value)):
            if host in own or (site.fused in own and role != "key"):
                named.update(dict.fromkeys((host, *_MADE[role])))
    return list(named)
