"""An optimizer goes on with a model some of whose parameters are others now."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from torch import nn
from transformers import PreTrainedModel, Trainer

from hf_heads.attention.hosts.blocks import find_blocks
from hf_heads.core.errors import HeadsError


def renew_parameters(optimizer: Any, model: PreTrainedModel, before: Mapping[str, nn.Parameter]) -> None:
    """Hand an optimizer a model's new parameters, and take from it those that are gone.

    A new parameter enters the group of the one that had its name; else the group that held those of its block with the
    same kind of weight decay as the Trainer gives them, else any group of its block. Where a block was not trained, its
    new parameters are frozen. Groups then list their parameters in the order of the model's, as an optimizer that is
    made for the model anew would, so that a state that is saved can be loaded into one. What the optimizer knows of
    parameters that stay is kept; it knows nothing of new ones.

    Args:
        optimizer: of torch, or accelerate's around one.
        model: as it is now.
        before: its parameters by name, as they were.

    Raises:
        HeadsError: the optimizer does not hold the model's trained parameters, so that it cannot be handed new ones.
    """
    groups: list[dict[str, Any]] = optimizer.param_groups
    place = {id(parameter): index for index, group in enumerate(groups) for parameter in group["params"]}
    if any(parameter.requires_grad and id(parameter) not in place for parameter in before.values()):
        raise HeadsError(
            f"{type(getattr(optimizer, 'optimizer', optimizer)).__name__} does not hold all parameters that are "
            "trained, so that it cannot be handed new ones: convert between two runs instead"
        )
    now = dict(model.named_parameters())
    known, kept = ({id(parameter) for parameter in some.values()} for some in (before, now))
    for name, index in _places(
        model, before, place, [name for name, one in now.items() if id(one) not in known]
    ).items():
        if index is None:
            now[name].requires_grad_(False)
        else:
            groups[index]["params"].append(now[name])
    order = {id(parameter): index for index, parameter in enumerate(now.values())}
    for group in groups:
        gone = [one for one in group["params"] if id(one) in known and id(one) not in kept]
        for parameter in gone:
            optimizer.state.pop(parameter, None)
        staying = [one for one in group["params"] if all(one is not other for other in gone)]
        group["params"] = sorted(staying, key=lambda one: order.get(id(one), len(order)))


def _places(
    model: PreTrainedModel, before: Mapping[str, nn.Parameter], place: Mapping[int, int], new: list[str]
) -> dict[str, int | None]:
    """The index of the group that each new parameter enters; None for those that stay frozen."""
    decayed = set(Trainer.get_decay_parameter_names(cast(Any, None), model))
    blocks = [(f"{block.path}.", f"{block.output_path}.") for block in find_blocks(model)]
    found: dict[str, int | None] = {}
    for name in new:
        if name in before:
            found[name] = place.get(id(before[name]))
            continue
        inside = next(block for block in blocks if name.startswith(block))
        of_block = {old: place[id(one)] for old, one in before.items() if old.startswith(inside) and id(one) in place}
        alike = [index for old, index in of_block.items() if ("bias" not in old) == (name in decayed)]
        found[name] = next(iter([*alike, *of_block.values()]), None)
    return found
