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

    Without embeddings these are the baselines: single-head attention (one group), multi-query attention (groups_q = the
    number of heads, one group of keys and values) and grouped-query attention (several). Heads that positions turn
    after projection, or that share keys already, have no embeddings and queries of their own, whatever is said.

    Attributes:
        variant: mul, add, or none (no embeddings).
        groups: number of shared heads; 1 is the paper, the number of heads is the original.
        groups_qk, groups_v: the same for queries and keys, and for values, where they differ; one divides the other.
        groups_q, groups_k: the same for queries, and for keys, where they differ. A conversion takes as many queries as
            heads then.
        memory: for models from scratch, two more baselines, each head with queries of its own and no embeddings: `skv`
            has one projection for keys and values, `el` none, its heads attending to their parts of the inputs.
        order: which head of the host stands at each place: heads that share are neighbours.
        inertia: how many times larger what heads share is stored than it acts, embeddings too, so that training moves
            it less; a conversion sets it, None is 1.
    """

    method: ClassVar[str] = "mhe"
    variant: str = option("mul", "how embeddings enter, or none of them", choices=("mul", "add", "none"))
    groups: int | None = option(
        None, "shared heads; 1 (the default) is the paper, the number of heads loses nothing", at_least=1
    )
    groups_qk: int | None = option(None, "shared heads of queries and keys, where not `groups`", at_least=1)
    groups_q: int | None = option(None, "shared heads of queries, where not `groups-qk`", at_least=1)
    groups_k: int | None = option(None, "shared heads of keys, where not `groups-qk`", stored=False, at_least=1)
    groups_v: int | None = option(None, "shared heads of values, where not `groups`", at_least=1)
    memory: str | None = option(
        None, "keys that are values too, or inputs that are both; from scratch", command=False, choices=("skv", "el")
    )
    order: tuple[int, ...] | None = option(None, "the host's heads by place", command=False)
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
        if self.memory is not None:
            return self._with_own_memory(shape, where)
        self._refuse_idle_groups()
        of_both = self.groups_qk or self.groups or 1
        groups_q, groups_k = self.groups_q or of_both, self.groups_k or of_both
        groups_v = self.groups_v or self.groups or 1
        for groups in (groups_q, groups_k, groups_v):
            if shape.heads % groups:
                fitting = [str(one) for one in range(1, shape.heads + 1) if shape.heads % one == 0]
                raise HeadsError(
                    f"{groups} groups do not divide the {shape.heads} heads of {where}: {', '.join(fitting)}"
                )
        if groups_k % groups_v and groups_v % groups_k:
            raise HeadsError(f"groups_qk {groups_k} and groups_v {groups_v}: one must divide the other")
        settled = {"heads": shape.heads, "groups": None, "groups_k": None, "groups_qk": groups_k, "groups_v": groups_v}
        if shape.turned or shape.kv_heads is not None:
            self._check_shared(shape, groups_k, groups_v, where)
            return self.settle(**settled, variant="none", groups_q=shape.heads)
        return self.settle(**settled, groups_q=None if groups_q == groups_k else groups_q)

    def _with_own_memory(self, shape: AttentionShape, where: str) -> HeadsSpec:
        """The settings of a block with `memory`.

        Raises:
            HeadsError: embeddings or groups are asked for, heads are turned, normed or shared already, or keys are not
                as wide as values or as a head's part of the inputs.
        """
        groups = {self.groups, self.groups_qk, self.groups_q, self.groups_k, self.groups_v}
        if self.variant != "none" or groups - {None, shape.heads}:
            raise HeadsError(f"memory {self.memory} is one of all heads, without embeddings: variant none, no groups")
        if shape.turned or shape.normed or shape.kv_heads is not None or shape.head_dim != shape.value_dim:
            raise HeadsError(f"memory {self.memory} needs keys that can be values, which those of {where} cannot")
        if self.memory == "el" and shape.key_width != shape.heads * shape.head_dim:
            raise HeadsError(
                f"memory el gives {shape.heads} heads {shape.head_dim} inputs each, of {where} there are "
                f"{shape.key_width}"
            )
        none = dict.fromkeys(("groups", "groups_k", "groups_q"))
        return self.settle(**none, heads=shape.heads, groups_qk=shape.heads, groups_v=shape.heads)

    def _check_shared(self, shape: AttentionShape, groups_qk: int, groups_v: int, where: str) -> None:
        """Refuse what heads that are turned after projection, or share keys already, cannot do.

        Raises:
            HeadsError: there are fewer key and value heads than groups, a norm is in the way, queries were to be shared
                or embeddings to be added.
        """
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
        if self.variant == "add":
            raise HeadsError(f"variant {self.variant} is one of embeddings, which heads of {where} do not have")
        if self.groups_q not in (None, shape.heads):
            raise HeadsError(f"heads of {where} keep queries of their own: leave out groups_q {self.groups_q}")

    def _refuse_idle_groups(self) -> None:
        """Numbers that others leave nothing to say.

        Raises:
            HeadsError: there is one.
        """
        both = self.groups_qk is not None or (self.groups_q is not None and self.groups_k is not None)
        if self.groups is not None and both and self.groups_v is not None:
            scores = f"groups_qk {self.groups_qk}" if self.groups_qk else f"groups_q {self.groups_q}"
            raise HeadsError(f"{self.groups} groups and {scores}, groups_v {self.groups_v}: leave one out")
        if None not in (self.groups_qk, self.groups_q, self.groups_k):
            raise HeadsError(f"groups_qk {self.groups_qk} and groups_q {self.groups_q}, groups_k: leave one out")


@dataclass(frozen=True, kw_only=True)
class ResolvedMhe(MheSpec):
    """Head embeddings of one block."""

    heads: int = option(MISSING, "number of heads", command=False, at_least=0)
    groups_qk: int = option(MISSING, "shared heads of keys, and of queries where they have no number", at_least=1)
    groups_v: int = option(MISSING, "shared heads of values", at_least=1)

    # Records of grouped queries had this in the place of `variant` and `groups_q` once, and another name of a tensor.
    own_queries: bool | None = option(
        None, "in old records: heads keep their own queries, whose projection is `own_query`", command=False, told=False
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.own_queries:
            object.__setattr__(self, "variant", "none")
            object.__setattr__(self, "groups_q", self.heads)

    @property
    def query_groups(self) -> int:
        """Shared heads of queries."""
        return self.groups_q or self.groups_qk

    @property
    def has_embeddings(self) -> bool:
        """Whether something tells heads of one group apart."""
        return self.variant != "none"

    @property
    def is_grouped(self) -> bool:
        """Whether this is grouped-query attention: queries of each head's own, and nothing else."""
        return not self.has_embeddings and self.query_groups == self.heads

    def refines(self) -> bool:
        return not self.is_grouped

    def reshape(self, shape: AttentionShape) -> AttentionShape:
        found = super().reshape(shape)
        if not self.is_grouped:
            return found
        held = max(self.groups_qk, self.groups_v)
        return dataclasses.replace(found, kv_heads=None if held == found.heads else held)

    def parameters(self, shape: AttentionShape) -> int:
        biases = shape.biases
        queries = self.query_groups * shape.head_dim * (shape.query_width + biases.query)
        keys = self.groups_qk * shape.head_dim * (shape.key_width + biases.key) * (self.memory != "el")
        values = self.groups_v * shape.value_dim * (shape.key_width + biases.value) * (self.memory is None)
        embeddings = shape.heads * (2 * shape.head_dim + shape.value_dim) if self.has_embeddings else 0
        return queries + keys + values + embeddings + shape.output_parameters

    def cache_per_token(self, shape: AttentionShape) -> int:
        return self.groups_qk * shape.head_dim + self.groups_v * shape.value_dim * (self.memory is None)


ABOUT = About(
    MheSpec,
    "one shared head for all, told apart by embeddings: multi-query attention",
    "Xue, Aletras 2023, arXiv 2310.07911",
    handles=("rotary", "groups"),
)
