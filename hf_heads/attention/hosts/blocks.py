"""The attention blocks of a model at hand, by the table of architectures."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from torch import nn

from hf_heads.attention.hosts.sites import AttentionAdapter, AttentionSite, Kind
from hf_heads.attention.hosts.table import adapter_of
from hf_heads.core.errors import HeadsError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Block:
    """One attention block of a model at hand.

    Attributes:
        name: the attention module's name inside the base model; the key of the config's `heads` section.
        site: its row entry; the kind is resolved for this model.
        module: the attention module.
        output: the output projection, wherever the host keeps it; a Conv1D where the block is a host's that has such.
        path: the attention module's name inside the model at hand, which is a task class or a part of the base model.
    """

    name: str
    site: AttentionSite
    kind: Kind
    module: nn.Module
    output: nn.Linear
    path: str

    @property
    def output_path(self) -> str:
        """The output projection's name inside the model at hand."""
        return self.site.output_name(self.path)


def base_prefix(model: PreTrainedModel) -> str:
    """What precedes the base model's names in the names of `model`: `bert.` in a task class, else nothing."""
    prefix = model.base_model_prefix
    return f"{prefix}." if prefix and hasattr(model, prefix) else ""


def find_blocks(model: PreTrainedModel, pattern: str | None = None) -> list[Block]:
    """The attention blocks of a model, in the order in which they run.

    Args:
        model: a model whose architecture has an adapter; converted before or not.
        pattern: comma-separated shell patterns for block names; a leading `!` leaves out. None takes all.

    Raises:
        HeadsError: no model of transformers, no adapter, or the pattern matches no block.
    """
    if not isinstance(model, nn.Module) or not hasattr(model, "config"):
        raise HeadsError(f"find_blocks takes a model of transformers, not {type(model).__name__}")
    blocks = blocks_of(model, adapter_of(model.config))
    chosen = select_names([block.name for block in blocks], pattern)
    return [block for block in blocks if block.name in chosen]


def blocks_of(model: PreTrainedModel, adapter: AttentionAdapter) -> list[Block]:
    """The attention blocks of a model by the row of its architecture, in the order in which they run."""
    prefix, parts = base_prefix(model), dict(adapter.parts)
    part = next((f"{parts[kind.__name__]}." for kind in type(model).__mro__ if kind.__name__ in parts), "")
    blocks = []
    for path, module in model.named_modules():
        name = part + path.removeprefix(prefix)
        site = adapter.site(name)
        if site is None:
            continue
        causal = adapter.decoder_flag is not None and getattr(model.config, adapter.decoder_flag, False)
        kind: Kind = "causal" if causal and site.kind == "self" else site.kind
        output = model.get_submodule(site.output_name(path))
        blocks.append(Block(name, site, kind, module, cast(nn.Linear, output), path))
    if adapter.runs:
        blocks.sort(key=lambda block: adapter.runs.index(block.name.partition(".")[0]))
    return blocks


def select_names(names: list[str], pattern: str | None) -> set[str]:
    """The names that comma-separated shell patterns choose; parts that start with `!` leave out.

    Raises:
        HeadsError: nothing is chosen.
    """
    if pattern is None:
        return set(names)
    parts = [part.strip() for part in pattern.split(",") if part.strip()]
    wanted = [part for part in parts if not part.startswith("!")] or ["*"]
    unwanted = [part[1:] for part in parts if part.startswith("!")]
    chosen = {
        name
        for name in names
        if any(fnmatch.fnmatchcase(name, part) for part in wanted)
        and not any(fnmatch.fnmatchcase(name, part) for part in unwanted)
    }
    if not chosen:
        raise HeadsError(f"no attention block matches '{pattern}'. Blocks: {', '.join(names[:4])} ... ({len(names)})")
    return chosen
