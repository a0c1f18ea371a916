"""The settings of a mixture of Gaussian keys (arXiv 2110.08678)."""

from __future__ import annotations

import dataclasses
from dataclasses import MISSING, dataclass
from typing import TYPE_CHECKING, ClassVar

from hf_heads.attention.spec import HeadsSpec, option
from hf_heads.core.errors import HeadsError
from hf_heads.methods.base import About

if TYPE_CHECKING:
    from hf_heads.core.dense import AttentionShape


@dataclass(frozen=True)
class MgkSpec(HeadsSpec):
    """A mixture of Gaussian keys.

    Position j has M keys k_jr for every head, and query i attends to it by

        a_ij ~ sum_r pi_r exp(s_ijr),   s_ijr = (q_i k_jr - beta |k_jr|^2 / 2) / sigma^2

    which is the paper's exp(-|q_i - k_jr|^2 / 2 sigma^2) at beta = 1, and the host's dot product at beta = 0.

    Attributes:
        components: M, keys for a position and head.
        mixture: mgk (a projection for every component) or smgk (one projection and a shift for every component).
        assignment: soft (the sum over components) or hard (the largest of them).
        priors: pi learned, fixed (equal), or em: running means of the components' shares in the attention, which needs
            soft assignment and the softmax kernel.
        kernel: softmax, or linear (features elu + 1 in the place of the exponential), which has no hard assignment and
            no norm.
        merge: turn so many heads into one, each a component of it.
        queries: of merged heads: each its own (exact scores, nothing saved), or one shared (saves a query).
        values: of merged heads: full (all of them side by side) or shared (one head's width).
        shift: size of the differences between components that start equal, as a share of the keys' own size. None is
            0.01 for mgk, which moves the output a little, and 0.5 for smgk, whose shifts drop out of the softmax as
            long as beta is 0.
        norm: beta at the start.
        order: heads of the host by place, where heads were merged.
    """

    method: ClassVar[str] = "mgk"
    components: int = option(2, "keys for every position and head", at_least=1, at_most=64)
    mixture: str = option("mgk", "a projection (mgk) or a shift (smgk) for every key", choices=("mgk", "smgk"))
    assignment: str = option("soft", "sum over a position's keys, or the largest", choices=("soft", "hard"))
    priors: str = option("learned", "of the keys of a position", choices=("learned", "fixed", "em"))
    kernel: str = option("softmax", "exponential, or features that make it linear", choices=("softmax", "linear"))
    merge: int = option(1, "heads that become one, each a key of it", at_least=1, at_most=64)
    queries: str = option("own", "of merged heads: one each, or one for all", choices=("own", "shared"))
    values: str = option("full", "of merged heads: all, or one head's width", choices=("full", "shared"))
    shift: float | None = option(
        None, "size of what tells keys apart that start equal", stored=False, at_least=0, at_most=100
    )
    norm: float = option(
        0.0,
        "beta at the start: 0 is the host's dot product, 1 the paper's kernel",
        stored=False,
        at_least=0,
        at_most=100,
    )
    order: tuple[int, ...] | None = option(None, "the host's heads by place", command=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self, ResolvedMgk):
            return  # earlier versions wrote such checkpoints, which compute what they did then
        if self.kernel == "linear" and (self.assignment == "hard" or self.norm):
            name = "assignment hard" if self.assignment == "hard" else f"norm {self.norm:g}"
            raise HeadsError(
                f"the linear kernel has no {name.split()[0]}: leave out {name}, or take the softmax kernel"
            )
        if self.priors == "em" and (self.kernel == "linear" or self.assignment == "hard"):
            other = "the linear kernel" if self.kernel == "linear" else "hard assignment"
            raise HeadsError(f"{other} has no shares by which priors em could move: take priors learned or fixed")

    @classmethod
    def block_type(cls) -> type[HeadsSpec]:
        return ResolvedMgk

    def resolve(
        self, shape: AttentionShape, where: str = "the block", before: HeadsSpec | None = None
    ) -> HeadsSpec | None:
        if self.merge == 1:
            if self.queries != "own" or self.values != "full":
                raise HeadsError("queries and values say how heads are merged: give merge as well")
            return self.settle(heads=self.heads or shape.heads)
        if self.heads not in (None, shape.heads // self.merge):
            raise HeadsError(f"merge {self.merge} decides the number of heads itself; leave out heads")
        if shape.heads % self.merge:
            raise HeadsError(f"merge {self.merge} does not divide the {shape.heads} heads of {where}")
        if self.mixture != "mgk" or self.kernel != "softmax":
            raise HeadsError("heads are merged into mgk with the softmax kernel: leave out mixture and kernel")
        if self.components not in (2, self.merge):
            raise HeadsError(f"merge {self.merge} makes {self.merge} components; leave out components")
        return self.settle(heads=shape.heads // self.merge, components=self.merge)


@dataclass(frozen=True, kw_only=True)
class ResolvedMgk(MgkSpec):
    """A mixture of Gaussian keys in one block."""

    heads: int = option(MISSING, "number of heads", command=False, at_least=0)

    def reshape(self, shape: AttentionShape) -> AttentionShape:
        widened = self.merge if self.values == "full" else 1
        return dataclasses.replace(shape, heads=self.heads, value_dim=shape.value_dim * widened)

    @property
    def query_count(self) -> int:
        """Queries of a head: one, or one for every component."""
        return self.merge if self.queries == "own" else 1

    def parameters(self, shape: AttentionShape) -> int:
        heads, softmax = shape.heads, self.kernel == "softmax"
        query = heads * self.query_count * shape.head_dim * (shape.query_width + shape.biases.query)
        keys = self.components if self.mixture == "mgk" else 1
        key = heads * keys * shape.head_dim * (shape.key_width + (shape.biases.key or self.merge > 1))
        shifts = heads * self.components * shape.head_dim if self.mixture == "smgk" else 0
        priors = heads * self.components if self.priors == "learned" else 0
        return query + key + shifts + priors + 2 * heads * softmax + shape.value_parameters

    def cache_per_token(self, shape: AttentionShape) -> int:
        keys = self.components if self.mixture == "mgk" else 1
        return shape.heads * (keys * shape.head_dim + shape.value_dim)


ABOUT = About(
    MgkSpec,
    "several Gaussian keys for every position and head; merges heads into one",
    "Nguyen et al. 2022, arXiv 2110.08678",
)
