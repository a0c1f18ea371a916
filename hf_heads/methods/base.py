"""What a method is: a spec (its settings), an attention class (its forward) and `from_dense` (its conversion).

What there is to say of a method without importing torch stands in an `About`, beside its settings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hf_heads.attention.spec import HeadsSpec

if TYPE_CHECKING:
    from torch import Tensor

    from hf_heads.attention.module import HeadsAttention
    from hf_heads.core.dense import DenseAttention
    from hf_heads.core.statistics import BlockStatistics


@dataclass(frozen=True)
class Converted:
    """What `from_dense` hands back.

    Attributes:
        weights: the new module's tensors by name; `query.*`, `key.*`, `value.*` and `output.*` stand for the host's own
            projections, whatever the host calls them.
        error: the relative error of what was decomposed, in the norm that was minimised; 0 is lossless. None where
            nothing was decomposed, but the attention is another than the host's.
        spec: the settings with what the conversion itself decided; None where that is nothing.
    """

    weights: dict[str, Tensor]
    error: float | None
    spec: HeadsSpec | None = None


@dataclass(frozen=True)
class Method:
    """A method, complete.

    Attributes:
        spec: its settings.
        attention: its forward, a class to be mixed into the host's attention class.
        from_dense: weights and statistics of a block and a resolved spec to the new module's weights.
        title: one line that says what it does.
        paper: where it comes from.
        reason_against: by model type, why the method cannot be used there.
        handles: which of `hf_heads.attention.hosts.sites.NEEDS` it can do.
        scores: parameters of the module that make its scores, which may be refined to the original's attention maps;
            none where the attention is no softmax of `HeadsAttention.scores`.
    """

    spec: type[HeadsSpec]
    attention: type[HeadsAttention]
    from_dense: Callable[[DenseAttention, BlockStatistics, Any], Converted]
    title: str
    paper: str
    reason_against: Mapping[str, str] = field(default_factory=dict)
    handles: tuple[str, ...] = ()
    scores: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The name of the method in commands, recipes and configs."""
        return self.spec.method


@dataclass(frozen=True)
class About:
    """What can be said of a method while torch is not imported; the attributes are those of `Method`."""

    spec: type[HeadsSpec]
    title: str
    paper: str
    reason_against: Mapping[str, str] = field(default_factory=dict)
    handles: tuple[str, ...] = ()

    def method(
        self,
        attention: type[HeadsAttention],
        from_dense: Callable[[DenseAttention, BlockStatistics, Any], Converted],
        scores: tuple[str, ...] = (),
    ) -> Method:
        """The method, complete."""
        about = self.title, self.paper, self.reason_against, self.handles
        return Method(self.spec, attention, from_dense, *about, scores)
