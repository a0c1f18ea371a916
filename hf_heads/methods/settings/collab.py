"""The settings of collaborative heads (arXiv 2006.16362)."""

from __future__ import annotations

import dataclasses
from dataclasses import MISSING, dataclass
from typing import TYPE_CHECKING, ClassVar

from hf_heads.attention.spec import HeadsSpec, option
from hf_heads.core.errors import HeadsError
from hf_heads.methods.base import About
from hf_heads.methods.settings.ranks import RankSpec

if TYPE_CHECKING:
    from hf_heads.core.dense import AttentionShape


@dataclass(frozen=True)
class CollabSpec(RankSpec):
    """Collaborative heads.

    score_h(x, y) = scale * (x U) G_h (y V)^T + y c_h, with U and V shared by all heads, (width, rank) each. In the CP
    form G_h is a diagonal, the head's mixing vector; in the Tucker form a rank x rank matrix.

    Attributes:
        rank: R, width of the shared space; heads * head_dim is lossless.
        exact: heads whose scores are left as they are; each takes head_dim of the rank for itself.
        form: cp (a mixing vector per head) or tucker (a mixing matrix per head).
        inertia: how many times larger U, V and the mixing are stored than they act, so that training moves them less;
            a conversion sets it, None is 1.
        content_bias: whether c_h is there. A conversion always makes it; from scratch None is what the host's queries
            have.
        start: of the mixing from scratch. None draws it so that scores vary as those of heads of width head_dim would;
            concatenate gives every head columns of its own, as separate heads have; uniform draws all of it with
            standard deviation .2. The last two are the paper's authors', who call them so.
    """

    method: ClassVar[str] = "collab"
    exact: tuple[int, ...] | None = option(
        None, "heads left exact, each by head_dim of the rank", command=False, stored=False
    )
    form: str = option("cp", "how heads mix the shared space", choices=("cp", "tucker"))

    inertia: int | None = option(
        None, "how much larger shared factors are stored", command=False, told=False, at_least=1
    )
    content_bias: bool | None = option(None, "a score of its own for each key and head", command=False)
    start: str | None = option(None, "of the mixing, from scratch", command=False, choices=("concatenate", "uniform"))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.start == "uniform" and self.form != "cp":
            raise HeadsError(f"start uniform is of form cp, not {self.form}: leave out start, or take concatenate")

    @classmethod
    def block_type(cls) -> type[HeadsSpec]:
        return ResolvedCollab

    def at_rank(self, rank: int, shape: AttentionShape) -> HeadsSpec:
        # Beyond the inputs' width the Tucker factors would have more columns than rows and say nothing more.
        limit = min(shape.query_width, shape.key_width) if self.form == "tucker" else rank
        return super().at_rank(min(rank, limit), shape)

    def keep_exact(self, heads: tuple[int, ...], shape: AttentionShape, where: str) -> HeadsSpec:
        if self.form != "cp":
            raise HeadsError(f"form {self.form} cannot leave single heads exact; take form cp")
        assert self.rank is not None  # these are the settings of one block
        others = shape.heads - len(heads)
        least = len(heads) * shape.head_dim + bool(others)
        if self.rank < least:
            raise HeadsError(
                f"rank {self.rank} is too small to leave {len(heads)} heads of {where} exact: each takes "
                f"{shape.head_dim} of it, and the others need some; rank {least} is the least, or keep fewer heads"
            )
        return dataclasses.replace(self, exact=heads)

    def keeps_matching(self, shape: AttentionShape) -> bool:
        # From a quarter of the width on they keep nine tenths of their attention anyway.
        return self.form == "cp" and self.rank is not None and 4 * self.rank < shape.heads * shape.head_dim


@dataclass(frozen=True, kw_only=True)
class ResolvedCollab(CollabSpec):
    """Collaborative heads of one block."""

    heads: int = option(MISSING, "number of heads", command=False, at_least=0)
    rank: int = option(MISSING, "width of the query-key space", at_least=1)

    def for_scratch(self, shape: AttentionShape) -> HeadsSpec:
        return self if self.content_bias is not None else dataclasses.replace(self, content_bias=shape.biases.query)

    @property
    def has_content_bias(self) -> bool:
        """Whether c_h is there; it is in checkpoints that say nothing of it."""
        return self.content_bias is not False

    def parameters(self, shape: AttentionShape) -> int:
        core = self.rank if self.form == "cp" else self.rank**2
        shared = self.rank * (shape.query_width + shape.key_width)
        own = core + shape.key_width * self.has_content_bias
        return shared + shape.heads * own + shape.value_parameters

    def cache_per_token(self, shape: AttentionShape) -> int:
        return self.rank + shape.heads * self.has_content_bias + shape.heads * shape.value_dim


ABOUT = About(
    CollabSpec,
    "one shared query-key space, a mixing vector (cp) or matrix (tucker) per head",
    "Cordonnier, Loukas, Jaggi 2020, arXiv 2006.16362",
)
