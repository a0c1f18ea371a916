"""The settings of head embeddings (arXiv 2310.07911)."""

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
class MheSpec(HeadsSpec):
    """Head embeddings, MHE-ADD and MHE-MUL.

    With W_Q, W_K, W_V of one head's width and embeddings e_h of that width for every head,

        mul: q_h = (x W_Q) * (1 + e_h^Q), k_h = (y W_K) * (1 + e_h^K), v_h = (y W_V) * (1 + e_h^V)
        add: q_h = x W_Q + e_h^Q,         k_h = y W_K + e_h^K,         v_h = y W_V + e_h^V

    Attributes:
        variant: mul or add.
        groups: number of shared heads; 1 is the paper, the number of heads is the original.
        groups_qk, groups_v: the same for queries and keys, and for values, where they differ; one divides the other.
        order: which head of the host stands at each place: heads that share are neighbours.
        own_queries: heads keep queries of their own and have no embeddings: grouped-query attention. A conversion sets
            it where positions turn queries and keys after projection, or where keys are shared already.
        inertia: how many times larger what heads share is stored than it acts, embeddings too, so that training moves
            it less; a conversion sets it, None is 1.
    """

    method: ClassVar[str] = "mhe"
    variant: str = option("mul", "how embeddings enter", choices=("mul", "add"))
    groups: int | None = option(
        None, "shared heads; 1 (the default) is the paper, the number of heads loses nothing", at_least=1
    )
    groups_qk: int | None = option(None, "shared heads of queries and keys, where not `groups`", at_least=1)
    groups_v: int | None = option(None, "shared heads of values, where not `groups`", at_least=1)
    order: tuple[int, ...] | None = option(None, "the host's heads by place", command=False)
    own_queries: bool | None = option(None, "heads keep their own queries, and have no embeddings", command=False)
    inertia: int | None = option(
        None, "how much larger shared projections are stored", command=False, told=False, at_least=1
    )

    @classmethod
    def block_type(cls) -> type[HeadsSpec]:
        return ResolvedMhe

    def resolve(
        self, shape: AttentionShape, where: str = "the block", before: HeadsSpec | None = None
    ) -> HeadsSpec | None:
        self.check_heads(shape, where)
        if self.groups is not None and self.groups_qk is not None and self.groups_v is not None:
            raise HeadsError(
                f"{self.groups} groups and groups_qk {self.groups_qk}, groups_v {self.groups_v}: leave one out"
            )
        groups_qk, groups_v = (one or self.groups or 1 for one in (self.groups_qk, self.groups_v))
        for groups in (groups_qk, groups_v):
            if shape.heads % groups:
                fitting = [str(one) for one in range(1, shape.heads + 1) if shape.heads % one == 0]
                raise HeadsError(
                    f"{groups} groups do not divide the {shape.heads} heads of {where}: {', '.join(fitting)}"
                )
        if groups_qk % groups_v and groups_v % groups_qk:
            raise HeadsError(f"groups_qk {groups_qk} and groups_v {groups_v}: one must divide the other")
        own = self._own_queries(shape, groups_qk, groups_v, where)
        return self.settle(heads=shape.heads, groups=None, groups_qk=groups_qk, groups_v=groups_v, own_queries=own)

    def _own_queries(self, shape: AttentionShape, groups_qk: int, groups_v: int, where: str) -> bool | None:
        """Whether heads have queries of their own in a block of this shape; None is no.

        Raises:
            HeadsError: they need them, and there are fewer key and value heads than groups, or a norm is in the way.
        """
        if not (self.own_queries or shape.turned or shape.kv_heads is not None):
            return None
        if (groups := max(groups_qk, groups_v)) > shape.memory_heads:
            raise HeadsError(
                f"{groups} groups are more than the {shape.memory_heads} key and value heads of {where}, which lose "
                "nothing"
            )
        if shape.normed and groups_qk < shape.memory_heads:
            raise HeadsError(
                f"keys of {where} go through a norm of every head, so that heads cannot share them; values can be: "
                f"groups_qk {shape.memory_heads}, and groups_v fewer"
            )
        if self.variant != "mul":
            raise HeadsError(f"variant {self.variant} is one of embeddings, which heads of {where} do not have")
        return True

    def refines(self) -> bool:
        return not self.own_queries

    def reshape(self, shape: AttentionShape) -> AttentionShape:
        found = super().reshape(shape)
        if not self.own_queries:
            return found
        assert self.groups_qk is not None and self.groups_v is not None  # as `resolve` has settled
        held = max(self.groups_qk, self.groups_v)
        return dataclasses.replace(found, kv_heads=None if held == found.heads else held)


@dataclass(frozen=True, kw_only=True)
class ResolvedMhe(MheSpec):
    """Head embeddings of one block."""

    heads: int = option(MISSING, "number of heads", command=False, at_least=0)
    groups_qk: int = option(MISSING, "shared heads of queries and keys", at_least=1)
    groups_v: int = option(MISSING, "shared heads of values", at_least=1)

    def parameters(self, shape: AttentionShape) -> int:
        biases = shape.biases
        scores = self.groups_qk * shape.head_dim * (shape.query_width + biases.query + shape.key_width + biases.key)
        values = self.groups_v * shape.value_dim * (shape.key_width + biases.value)
        if self.own_queries:
            scores += (shape.heads - self.groups_qk) * shape.head_dim * (shape.query_width + biases.query)
            return scores + values + shape.output_parameters
        embeddings = shape.heads * (2 * shape.head_dim + shape.value_dim)
        return scores + values + embeddings + shape.output_parameters

    def cache_per_token(self, shape: AttentionShape) -> int:
        return self.groups_qk * shape.head_dim + self.groups_v * shape.value_dim


ABOUT = About(
    MheSpec,
    "one shared head for all, told apart by embeddings: multi-query attention",
    "Xue, Aletras 2023, arXiv 2310.07911",
    handles=("rotary", "groups"),
)
