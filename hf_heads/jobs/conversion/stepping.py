"""A model that runs batches all at once and stops at each of its attention blocks, so that it runs only once.

Each batch's forward pass is a greenlet: it goes on until it reaches an attention block, hands over what the block is
called with, and waits. What then stands at the block's place, converted or not, is what it goes on with.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, cast

import torch
from greenlet import getcurrent, greenlet
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_heads.attention.hosts.blocks import Block, find_blocks
from hf_heads.attention.hosts.parts import hook
from hf_heads.attention.hosts.reading import argument_names
from hf_heads.attention.kernels import Conditions
from hf_heads.attention.module import HeadsAttention
from hf_heads.core.batches import Batch
from hf_heads.jobs.team import Team
from hf_heads.modeling.grafting import native_attention


@dataclass
class Stop:
    """A batch that waits at a block.

    Attributes:
        name: of the block.
        batch: the model's arguments.
        arguments: those that the block is called with, by name.
        residual: (batch, target, width), what its output is added to: what comes into the layer that it opens. None
            for cross-attention, and where that is not known.
        result: gives what the block makes of them; None: the block is to be called.
        resting: tensors of these that the keeper of activations knows, by `id`.
        held: bytes of them that it counts as in memory.
        place: of the batch among those of its kind.
    """

    name: str
    batch: Batch
    arguments: dict[str, Any]
    residual: Tensor | None = None
    result: Callable[[], Any] | None = None
    resting: dict[int, Tensor] = field(default_factory=dict)
    held: int = 0
    place: int = 0

    @property
    def hidden_states(self) -> Tensor:
        """(batch, target, width), what comes into the block."""
        return self.arguments["hidden_states"]


class Keeper(Protocol):
    """Who keeps what batches hold while they wait."""

    def rest(self, stop: Stop) -> None:
        """Nobody computes with a stop's tensors for now."""

    def leave(self, stop: Stop | None) -> None:
        """A batch goes on from a stop."""


@dataclass(frozen=True)
class Running:
    """How batches run.

    Attributes:
        keeper: of what batches hold while they wait; None: all stays in memory.
        compute: what products are computed in where it is not float32; a block's arguments are handed over in float32.
    """

    keeper: Keeper | None = None
    compute: str = "float32"

    @property
    def precise(self) -> bool:
        """Whether nothing is computed in less than the model's own precision."""
        return self.compute == "float32"

    def resume(self, run: Any, device: torch.device) -> Any:
        """Let a greenlet run until it stops; precisions are of the thread, so that they end where it stops."""
        with torch.autocast(device.type, getattr(torch, self.compute), enabled=not self.precise):
            return run.switch()


PLAIN = Running()


def call_block(module: nn.Module, stop: Stop) -> Any:
    """What a block's module gives for a batch that waits there."""
    return type(module).forward(module, **stop.arguments)


def received_mask(block: Block, stop: Stop, source: int) -> Tensor | None:
    """The mask that a block was called with, (batch or 1, heads or 1, target or 1, source), added to scores.

    What may not be seen is minus infinity. A causal block that was given none may not see what comes later; None where
    all is seen.

    Args:
        source: number of keys.
    """
    causal = stop.arguments.get("is_causal")
    causal = block.kind == "causal" if causal is None else bool(causal)
    conditions = Conditions(stop.arguments.get(block.site.mask), causal)
    found, target = conditions.additive(stop.hidden_states, source), stop.hidden_states.shape[1]
    if block.site.bias is not None:
        term = hook(block.site.bias)(block.module, stop.arguments, 0, target, source)
        found = term if found is None else found + term
    if found is None:
        return None
    if isinstance(block.module, HeadsAttention):
        found = cast(Tensor, block.module.of_own_heads(found))
    found = found.masked_fill(found <= torch.finfo(found.dtype).min / 2, -torch.inf)
    return found[(None,) * (4 - found.ndim)]


def real_queries(block: Block, stop: Stop) -> Tensor | None:
    """Which positions of what comes into a block are no padding, boolean (batch, target); None where none is padding.

    In self-attention these are the positions that may see themselves, whatever the mask was made of.
    """
    rows, target = stop.hidden_states.shape[:2]
    if block.kind == "cross":
        mask = stop.batch.get(block.site.query_mask)
        return None if mask is None or mask.shape != (rows, target) else mask.bool()
    mask = received_mask(block, stop, target)
    if mask is None or stop.arguments.get(block.site.mask) is None:
        return None
    own = mask.amax(1).expand(rows, target, target).diagonal(dim1=1, dim2=2)
    return own > -torch.inf


class Stepper:
    """A model's forward passes of several batches, each at one of its blocks.

    To be used in a `with` block, in which gradients are off and the model's blocks stop. Nothing else may run the
    model meanwhile.

    Args:
        model: in evaluation mode; its blocks may be replaced while batches wait there.
        batches: keyword arguments of its forward.
        names: of the blocks at which to stop, in the order in which they run.
        more: other batches, which are asked for apart.
        how: they run.
        team: the processes that share the batches; each runs its own, and hands out no others.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        batches: Sequence[Batch],
        names: Sequence[str],
        more: Sequence[Batch] = (),
        how: Running = PLAIN,
        team: Team | None = None,
    ) -> None:
        self.model, self.batches, self.more, self.how, self.keeper = model, batches, more, how, how.keeper
        self.team = team or Team()
        self.layers: dict[str, str] = {}
        self.order = {name: place for place, name in enumerate(names)}
        self.paths = {block.name: block.path for block in find_blocks(model) if block.name in self.order}

    def __enter__(self) -> Stepper:
        self._gradients = torch.is_grad_enabled()
        torch.set_grad_enabled(False)
        # A cache would take in the keys of a block again each time that the block runs.
        self._cached = [config for config in _configs(self.model) if getattr(config, "use_cache", None)]
        for config in self._cached:
            config.use_cache = False
        self._stopping = [self.model.get_submodule(path) for path in self.paths.values()]
        for name, module in zip(self.paths, self._stopping, strict=True):
            module.forward = partial(self._stop, name)
        self._watch_layers()
        self._all = [*self.batches, *self.more]
        self._runs = [greenlet(partial(self._run, batch)) for batch in self._all]
        self._stops: list[Stop | None] = [None] * len(self._runs)
        return self

    def at(self, name: str, more: bool = False) -> Iterator[Stop]:
        """Every batch, or every other batch, at a block, brought there one by one; without those that never reach it.

        Blocks may be asked for again as long as none after them was.
        """
        first, count = (len(self.batches), len(self.more)) if more else (0, len(self.batches))
        for place in self.team.share(count):
            index = first + place
            run = self._runs[index]
            while not run.dead and (
                self._stops[index] is None or self.order[self._stops[index].name] < self.order[name]  # type: ignore[union-attr]
            ):
                if self.keeper is not None:
                    self.keeper.leave(self._stops[index])
                self._stops[index] = None
                self._stops[index] = self.how.resume(run, self.model.device)
            stop = self._stops[index]
            if stop is not None and stop.name == name and not run.dead:
                yield stop
                if self.keeper is not None:
                    self.keeper.rest(stop)

    def _run(self, batch: Batch) -> None:
        self.model(**{name: value.to(self.model.device) for name, value in batch.items()})

    def _stop(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """What stands for the forward of a block: waits, then runs what is in the block's place by then."""
        index = self._runs.index(getcurrent())
        names = argument_names(native_attention(self.model.get_submodule(self.paths[name])))
        arguments = {**dict(zip(names, args, strict=False)), **kwargs}
        residual = self._entered[index].get(self.layers.get(name, ""))
        if not self.how.precise:
            arguments, residual = _in_float32(arguments), _in_float32(residual)
        place = index if index < len(self.batches) else index - len(self.batches)
        stop = Stop(name, self._all[index], arguments, residual, place=place)
        getcurrent().parent.switch(stop)
        if stop.result is not None:
            return stop.result()
        return call_block(self.model.get_submodule(self.paths[name]), stop)

    def _watch_layers(self) -> None:
        """Keep what comes into each layer that opens with one of the blocks."""
        self._entered: dict[int, dict[str, Tensor]] = defaultdict(dict)
        kinds = {block.name: block.kind for block in find_blocks(self.model)}
        self.layers = {
            name: layer
            for name, path in self.paths.items()
            if kinds[name] != "cross" and (layer := layer_of(self.model, path)) is not None
        }

        def enter(layer: str, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            states = args[0] if args else kwargs.get("hidden_states")
            if isinstance(states, Tensor):
                self._entered[self._runs.index(getcurrent())] = {layer: states}

        self._handles = [
            self.model.get_submodule(layer).register_forward_pre_hook(partial(enter, layer), with_kwargs=True)
            for layer in dict.fromkeys(self.layers.values())
        ]

    def __exit__(self, *_: Any) -> None:
        for run in self._runs:
            if run and not run.dead:
                run.throw()  # ends it where it waits
        for stop in self._stops if self.keeper is not None else ():
            self.keeper.leave(stop)  # type: ignore[union-attr]
        replaced = [self.model.get_submodule(path) for path in self.paths.values()]  # which copy what they replace
        for module in (*self._stopping, *replaced):
            module.__dict__.pop("forward", None)
        for handle in self._handles:
            handle.remove()
        for config in self._cached:
            config.use_cache = True
        torch.set_grad_enabled(self._gradients)


def _in_float32(value: Any) -> Any:
    """Tensors of fewer bits in float32, in nested containers too."""
    if isinstance(value, Tensor):
        return value.float() if value.is_floating_point() else value
    if isinstance(value, dict):
        return {name: _in_float32(one) for name, one in value.items()}
    return type(value)(map(_in_float32, value)) if type(value) in (list, tuple) else value


def layer_of(model: nn.Module, path: str) -> str | None:
    """The innermost member of a list of layers that a module is in, by its name; None where there is none."""
    parts = path.split(".")
    for end in range(len(parts) - 1, 1, -1):
        if isinstance(model.get_submodule(".".join(parts[: end - 1])), nn.ModuleList):
            return ".".join(parts[:end])
    return None


def _configs(model: PreTrainedModel) -> list[Any]:
    """The configs that a model's parts read, each once."""
    found = {
        id(config): config for module in model.modules() if (config := getattr(module, "config", None)) is not None
    }
    return list(found.values())
