"""The settings of pruned heads (arXiv 1905.10650)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from hf_heads.attention.spec import BlockProfile, HeadsSpec, RankHeads, option
from hf_heads.core.errors import HeadsError
from hf_heads.core.vocabulary import CONSTANT_RULES, RULES, UNITS
from hf_heads.methods.base import About

if TYPE_CHECKING:
    from hf_heads.core.dense import AttentionShape


@dataclass(frozen=True)
class PrunedSpec(HeadsSpec):
    """Fewer heads.

    Give `keep`, and the least important heads of all blocks together go, or `kept` for one block.

    Attributes:
        keep: share of the heads of all chosen blocks that stay, 0 to 1.
        kept: which heads of the block stay, numbered as in the host; an empty tuple leaves the output's bias alone.
        shared: where several heads read one key and value head, which of those that are left each of `kept` reads; one
            that nobody reads goes.
        score: what importance is.
        steps: in how many rounds heads go; importance is measured anew after each.
        normalize: divide importances by their l2 norm in each block, as in the paper.
        procedure: paper is the whole procedure of the paper: score gradient, normalized, every tenth of all heads that
            goes followed by new importances, and no repair.
        unit: of the rule gradient, whether the absolute value is taken of each example or of each token.
        least: how many heads of every block stay whatever their importance.
        scores: file of `hf-heads importance`, instead of measuring.
        repair: refit the output projection on the heads that are left; None does so where `keep` chooses them, and
            leaves it alone where they are named, so that removing a head is the same as masking it.
    """

    method: ClassVar[str] = "pruned"
    keep: float | None = option(None, "share (0-1) of all heads to keep", stored=False, at_least=0, at_most=1)
    kept: tuple[int, ...] | None = option(None, "heads of the block that stay", command=False)
    score: str = option("gauss-newton", "what makes a head important", stored=False, choices=tuple(RULES))
    steps: int = option(
        4, "rounds of removal; importance is measured anew after each", stored=False, at_least=1, at_most=1000
    )
    normalize: bool = option(False, "divide importances by their l2 norm in each block", stored=False)
    procedure: str | None = option(
        None, "the paper's: gradient, normalized, measured anew after each tenth", stored=False, choices=("paper",)
    )
    unit: str = option(
        "example", "what the absolute value of a gradient is taken of", stored=False, choices=tuple(UNITS)
    )
    least: int = option(0, "heads that stay in every block", stored=False, at_least=0)
    scores: str | None = option(None, "importances that `hf-heads importance` wrote, instead of new ones", stored=False)
    repair: bool | None = option(
        None, "refit the output projection also where a recipe names the heads; --keep does by itself", stored=False
    )
    shared: tuple[int, ...] | None = option(
        None, "which key and value head each of them reads, where several read one", command=False
    )
    places: tuple[int, ...] | None = option(None, "`kept`, counted in the block as it is", stored=False, command=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.procedure is not None:
            own = {"score": "gradient", "steps": 4, "normalize": False, "scores": None}
            for name, default in own.items():
                if getattr(self, name) not in (default, "gauss-newton"):
                    raise HeadsError(f"procedure {self.procedure} says {name} itself: leave out {name}")
        if self.unit != "example" and (self.rule != "gradient" or self.scores is not None):
            raise HeadsError(f"unit {self.unit} is of the score gradient: take it, or leave out unit")
        if self.keep is None and self.kept is not None and not isinstance(self, ResolvedPruned):
            for name, idle in (("procedure", self.procedure is None), ("least", not self.least)):
                if not idle:
                    raise HeadsError(f"{name} helps to choose heads, and kept names them: leave out {name}")

    @property
    def rule(self) -> str:
        """What makes a head important."""
        return self.score if self.procedure is None else "gradient"

    @classmethod
    def block_type(cls) -> type[HeadsSpec]:
        return ResolvedPruned

    def resolve(
        self, shape: AttentionShape, where: str = "the block", before: HeadsSpec | None = None
    ) -> HeadsSpec | None:
        if before is not None and not isinstance(before, PrunedSpec):
            raise HeadsError(f"{where} is {before.method} already, and only standard heads can be pruned: prune first")
        numbers = before.kept if before is not None and before.kept is not None else tuple(range(shape.heads))
        if self.kept is None:
            if self.keep is None:
                raise HeadsError("pruned needs the share of heads to keep: keep = 0.5, say, or the heads to keep")
            return None
        if self.keep is not None:
            raise HeadsError("keep chooses the heads itself; leave out kept")
        if unknown := [head for head in self.kept if head not in numbers]:
            raise HeadsError(
                f"{where} has no head {unknown[0]}; its heads are {', '.join(map(str, numbers)) or 'gone'}"
            )
        kept = tuple(sorted(set(self.kept)))
        places = tuple(numbers.index(head) for head in kept)
        return self.settle(heads=len(kept), kept=kept, places=places, shared=_readers(shape, before, places))

    def plan(self, blocks: Mapping[str, BlockProfile], rank_heads: RankHeads) -> dict[str, HeadsSpec]:
        if self.keep is None:
            return super().plan(blocks, rank_heads)
        total = sum(block.shape.heads for block in blocks.values())
        going = total - round(self.keep * total)
        self._check_least({name: block.shape.heads for name, block in blocks.items()}, total - going)
        gone: set[tuple[str, int]] = set()
        if going:
            paper = self.procedure is not None
            order = rank_heads(
                list(blocks),
                rule=self.rule,
                steps=math.ceil(10 * going / total) if paper else self.steps,
                keep=self.keep,
                normalize=self.normalize or paper,
                scores=self.scores,
                unit=self.unit,
                least=self.least,
            )
            gone = set(spared(order, self.least)[:going])
        specs: dict[str, HeadsSpec] = {}
        for name, block in blocks.items():
            places = [place for place in range(block.shape.heads) if (name, place) not in gone]
            numbers = getattr(block.before, "kept", None) or range(block.shape.heads)
            kept = tuple(numbers[place] for place in places)
            shared = _readers(block.shape, block.before, places)
            specs[name] = self.settle(
                heads=len(kept), keep=None, kept=kept, places=tuple(places), shared=shared, repair=self.refits()
            )
        return specs

    def _check_least(self, heads: Mapping[str, int], stay: int) -> None:
        """Refuse to keep more heads in each block than there are to keep.

        Raises:
            HeadsError: it is so.
        """
        wanted = sum(min(self.least, count) for count in heads.values())
        if wanted > stay:
            raise HeadsError(
                f"keep {self.keep:g} leaves {stay} heads, and least {self.least} wants {wanted} of {len(heads)} "
                "blocks: keep more, or take a smaller least"
            )

    @property
    def kv_heads(self) -> int | None:
        """How many heads of keys and values are left; None where every head has its own."""
        return None if self.shared is None else len(set(self.shared))

    def reshape(self, shape: AttentionShape) -> AttentionShape:
        return dataclasses.replace(super().reshape(shape), kv_heads=self.kv_heads)

    def keep_exact(self, heads: tuple[int, ...], shape: AttentionShape, where: str) -> HeadsSpec:
        if gone := [head for head in heads if head not in (self.places or ())]:
            raise HeadsError(
                f"head {gone[0]} of {where} is to be kept, but these settings remove it: keep more heads, or name fewer"
            )
        return self  # heads that stay are exact

    def keeps_matching(self, shape: AttentionShape) -> bool:
        chosen = self.procedure is None and self.scores is None and self.rule not in CONSTANT_RULES
        return self.keep is not None and chosen

    def refits(self) -> bool:
        by_itself = self.keep is not None and self.procedure is None  # the paper removes heads and leaves the rest
        return by_itself if self.repair is None else self.repair

    def weighs_tokens(self) -> bool:
        return self.refits()

    def uses_data(self) -> bool:
        measured = self.keep is not None and self.scores is None and self.rule not in CONSTANT_RULES
        return self.refits() or measured

    def choice(self) -> str:
        if self.keep is None:
            return ""
        return f"heads chosen by {self.rule if self.scores is None else 'the scores in ' + Path(self.scores).name}"

    def needs_labels(self) -> bool:
        return self.keep is not None and self.scores is None and self.rule == "gradient"


@dataclass(frozen=True, kw_only=True)
class ResolvedPruned(PrunedSpec):
    """The heads of one block that stay."""

    heads: int = option(MISSING, "number of heads", command=False, at_least=0)
    kept: tuple[int, ...] = option(MISSING, "heads of the block that stay", command=False)

    def parameters(self, shape: AttentionShape) -> int:
        return dataclasses.replace(shape, heads=self.heads, kv_heads=self.kv_heads).parameters

    def cache_per_token(self, shape: AttentionShape) -> int:
        # A block without heads keeps one number, so that a cache can still tell how many tokens it holds.
        held = self.heads if self.kv_heads is None else self.kv_heads
        return held * (shape.head_dim + shape.value_dim) or 1


def _readers(shape: AttentionShape, before: HeadsSpec | None, places: Sequence[int]) -> tuple[int, ...] | None:
    """Which of the key and value heads that are left each head reads, from the places of those that stay."""
    if shape.kv_heads is None:
        return None
    reads = getattr(before, "shared", None)
    reads = tuple(head * shape.kv_heads // shape.heads for head in range(shape.heads)) if reads is None else reads
    read = [reads[place] for place in places]
    left = sorted(set(read))
    return tuple(left.index(one) for one in read)


def spared(order: Sequence[tuple[str, int]], least: int) -> list[tuple[str, int]]:
    """An order of removal in which the `least` heads of each block that would go last go after all others."""
    left: dict[str, int] = {}
    for name, _ in order:
        left[name] = left.get(name, 0) + 1
    first: list[tuple[str, int]] = []
    last: list[tuple[str, int]] = []
    for head in order:
        (first if left[head[0]] > least else last).append(head)
        left[head[0]] -= 1
    return first + last


ABOUT = About(
    PrunedSpec,
    "fewer heads: the least important ones of all blocks are removed",
    "Michel, Levy, Neubig 2019, arXiv 1905.10650",
    handles=("rotary", "groups", "pairs"),
)
