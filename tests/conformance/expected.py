"""What of transformers' tests our classes do not pass, and why; each of these has to fail, or the suite does."""

from __future__ import annotations

import re
from typing import NamedTuple


class Failure(NamedTuple):
    """A kind of test, hosts and methods (regular expressions for the whole name), and the reason."""

    name: str
    reason: str
    hosts: str = ".*"
    methods: str = ".*"


FAILURES = (
    Failure(
        "test_inherits_generation_mixin",
        "looks for GenerationMixin among the direct bases; ours come to it through the host's class",
    ),
    Failure(
        "test_model_weights_reload_no_missing_tied_weights",
        "loads a file without any weight; ours refuse a checkpoint that lacks attention weights",
    ),
    Failure(
        "test_attention_outputs",
        "counts as many attention maps as the model tester has heads; pruned blocks return those that they keep",
        methods="pruned",
    ),
    Failure(
        "test_reverse_loading_mapping",
        "wants a weight for each name that transformers changes for a ViT; methods replace some of these projections",
        hosts="vit",
        methods="(?!pruned).*",
    ),
)


def expected(host: str, method: str, name: str) -> str | None:
    """The reason why a test of a host and method fails, if it is known to."""
    for failure in FAILURES:
        if all(map(re.fullmatch, (failure.name, failure.hosts, failure.methods), (name, host, method))):
            return failure.reason
    return None
