"""A spec as another package would write it: derived from a method's own, annotations not postponed."""

from dataclasses import dataclass
from typing import ClassVar, Optional

from hf_heads import LowRankSpec
from hf_heads.attention.spec import option


@dataclass(frozen=True)
class DerivedSpec(LowRankSpec):
    """Low rank by another name, with settings of its own."""

    method: ClassVar[str] = "derived"
    extra: int = option(1, "a number", at_least=0)
    word: Optional[str] = option(None, "a word")  # noqa: UP045  as older code writes it
