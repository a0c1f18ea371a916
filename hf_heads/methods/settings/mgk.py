"""The settings of a mixture of Gaussian keys (arXiv 2110.08678)."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import MISSING, dataclass
from typing import TYPE_CHECKING, ClassVar

from hf_heads.attention.spec import HeadsSpec, option
from hf_heads.core.errors import HeadsError
from hf_heads.methods.base import About

if TYPE_CHECKING:
    from hf_heads.core.dense import AttentionShape


_APART = 0.5  # of the attention of merged heads: more in every block of a ViT that lost by it, less in all of texts


@dataclass(frozen=True)
class MgkSpec(HeadsSpec):
    """A mixture of Gaussian keys.

    Position j has M keys k_jr for every head, and query i attends to it by

        a_ij ~ sum_r pi_r exp(s_ijr),   s_ijr = (q_i k_jr - beta |k_jr|^2 / 2) / sigma^2

    which is the paper's exp(-|q_i - k_jr|^2 / 2 sigma^2) at beta = 1, and the host's dot product at beta = 0. The
    paper's own setting is sigma fixed (sigma^2 = sqrt(head_dim), beta = 1) and, for its soft E-step, priors em with
    positions.

    Attributes:
        components: M, keys for a position and head.
        mixture: mgk (a projection for every component) or smgk (one projection and a shift for every component).
        assignment: soft (the sum over components) or hard (the largest of them, whatever the priors: remark 3).
        priors: pi learned, fixed (equal), or em: set by every forward in training to the share of queries that a
            component answers for (eq. 11), which needs soft assignment and the softmax kernel. None is learned, and
            fixed with hard assignment.
        positions: how many positions have priors of their own, as in the paper; inputs may not be longer. None has one
            set of priors for all positions of a head.
        sigma: learned, a parameter for every head and beta as well; or fixed at the paper's sigma^2 = sqrt(head_dim)
            and beta = 1.
        kernel: softmax, or linear (features elu + 1 in the place of the exponential), which has no hard assignment and
            no norm.
        merge: turn so many heads into one, each a component of it.
        queries: of merged heads: each its own (exact scores, nothing saved), or one shared (saves a query).
        values: of merged heads: full (all of them side by side) or shared (one head's width).
        shift: size of the differences between components that start equal, as a share of the keys' own size. None is
            0.01 for mgk, which moves the output a little, and 0.5 for smgk, whose shifts drop out of the softmax as
            long as beta is 0.
        norm: beta at the start; None is 0, and 1 where sigma is fixed.
        order: heads of the host by place, where heads were merged.
    """

    method: ClassVar[str] = "mgk"
    components: int = option(2, "keys for every position and head", at_least=1, at_most=64)
    mixture: str = option("mgk", "a projection (mgk) or a shift (smgk) for every key", choices=("mgk", "smgk"))
    assignment: str = option("soft", "sum over a position's keys, or the largest", choices=("soft", "hard"))
    priors: str | None = option(None, "of the keys of a position", choices=("learned", "fixed", "em"))
    positions: int | None = option(
        None, "positions with priors of their own, the longest input; all share one set when not given", at_least=1
    )
    sigma: str = option("learned", "width of the kernel, or the paper's, fixed", choices=("learned", "fixed"))
    kernel: str = option("softmax", "exponential, or features that make it linear", choices=("softmax", "linear"))
    merge: int = option(1, "heads that become one, each a key of it", at_least=1, at_most=64)
    queries: str = option("own", "of merged heads: one each, or one for all", choices=("own", "shared"))
    values: str = option("full", "of merged heads: all, or one head's width", choices=("full", "shared"))
    shift: float | None = option(
        None, "size of what tells keys apart that start equal", stored=False, at_least=0, at_most=100
    )
    norm: float | None = option(
        None,
        "beta at the start: 0 (the default) is the host's dot product, 1 the paper's kernel",
        stored=False,
        at_least=0,
        at_most=100,
    )
    order: tuple[int, ...] | None = option(None, "the host's heads by place", command=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self, ResolvedMgk):
            return  # earlier versions wrote such checkpoints, which compute what they did then
        self._refuse_of_linear()
        if self.assignment == "hard" and self.priors not in (None, "fixed"):
            raise HeadsError(
                f"hard assignment takes the largest term whatever the priors: leave out priors {self.priors}"
            )
        if self.positions is not None and self.settled_priors == "fixed":
            raise HeadsError("fixed priors are the same at all positions: leave out positions")
        if self.sigma == "fixed" and self.norm not in (None, 1):
            raise HeadsError(f"sigma fixed is the paper's kernel, whose norm is 1: leave out norm {self.norm:g}")

    def _refuse_of_linear(self) -> None:
        """Settings that would do nothing with the linear kernel.

        Raises:
            HeadsError: there are some.
        """
        if self.kernel != "linear":
            return
        idle = {"assignment hard": self.assignment == "hard", f"norm {self.norm or 0:g}": bool(self.norm)}
        idle["sigma fixed"] = self.sigma == "fixed"
        for name in (name for name, there in idle.items() if there):
            raise HeadsError(
                f"the linear kernel has no {name.split()[0]}: leave out {name}, or take the softmax kernel"
            )
        if self.priors == "em":
            raise HeadsError(
                "the linear kernel has no shares by which priors em could move: take priors learned or fixed"
            )

    @property
    def settled_priors(self) -> str:
        """`priors`, with what stands for None."""
        return self.priors or ("fixed" if self.assignment == "hard" else "learned")

    @classmethod
    def block_type(cls) -> type[HeadsSpec]:
        return ResolvedMgk

    def resolve(
        self, shape: AttentionShape, where: str = "the block", before: HeadsSpec | None = None
    ) -> HeadsSpec | None:
        if self.merge == 1:
            if self.queries != "own" or self.values != "full":
                raise HeadsError("queries and values say how heads are merged: give merge as well")
            return self.settle(heads=self.heads or shape.heads, priors=self.settled_priors)
        if self.heads not in (None, shape.heads // self.merge):
            raise HeadsError(f"merge {self.merge} decides the number of heads itself; leave out heads")
        if shape.heads % self.merge:
            raise HeadsError(f"merge {self.merge} does not divide the {shape.heads} heads of {where}")
        if self.mixture != "mgk" or self.kernel != "softmax":
            raise HeadsError("heads are merged into mgk with the softmax kernel: leave out mixture and kernel")
        if self.sigma == "fixed":
            raise HeadsError("merged heads keep the host's dot products, no fixed kernel: leave out sigma")
        if self.components not in (2, self.merge):
            raise HeadsError(f"merge {self.merge} makes {self.merge} components; leave out components")
        merged = {"heads": shape.heads // self.merge, "components": self.merge}
        return self.settle(**merged, priors=self.settled_priors)


@dataclass(frozen=True, kw_only=True)
class ResolvedMgk(MgkSpec):
    """A mixture of Gaussian keys in one block."""

    heads: int = option(MISSING, "number of heads", command=False, at_least=0)
    priors: str = option("learned", "of the keys of a position", choices=("learned", "fixed", "em"))

    def reshape(self, shape: AttentionShape) -> AttentionShape:
        widened = self.merge if self.values == "full" else 1
        return dataclasses.replace(shape, heads=self.heads, value_dim=shape.value_dim * widened)

    def doubt(self, error: float) -> str | None:
        # The root mean square of how far apart the maps of merged heads are and of what shared projections lose, which
        # for queries is less, and for values more, so that the error tells nothing of the maps.
        if self.merge == 1 or self.values == "shared" or error * (1 + (self.queries == "shared")) ** 0.5 <= _APART:
            return None
        return "the heads that were merged attend to different places: expect a loss that other methods do not have"

    @property
    def query_count(self) -> int:
        """Queries of a head: one, or one for every component."""
        return self.merge if self.queries == "own" else 1

    @property
    def prior_shape(self) -> tuple[int, ...]:
        """Of the priors of a head: components, and positions where each has its own."""
        return (self.components,) if self.positions is None else (self.components, self.positions)

    @property
    def learns_sigma(self) -> bool:
        """Whether there are parameters of the kernel."""
        return self.kernel == "softmax" and self.sigma == "learned"

    def parameters(self, shape: AttentionShape) -> int:
        heads = shape.heads
        query = heads * self.query_count * shape.head_dim * (shape.query_width + shape.biases.query)
        keys = self.components if self.mixture == "mgk" else 1
        key = heads * keys * shape.head_dim * (shape.key_width + (shape.biases.key or self.merge > 1))
        shifts = heads * self.components * shape.head_dim if self.mixture == "smgk" else 0
        priors = heads * math.prod(self.prior_shape) if self.priors == "learned" else 0
        return query + key + shifts + priors + 2 * heads * self.learns_sigma + shape.value_parameters

    def cache_per_token(self, shape: AttentionShape) -> int:
        keys = self.components if self.mixture == "mgk" else 1
        return shape.heads * (keys * shape.head_dim + shape.value_dim)


ABOUT = About(
    MgkSpec,
    "several Gaussian keys for every position and head; merges heads into one",
    "Nguyen et al. 2022, arXiv 2110.08678",
)
