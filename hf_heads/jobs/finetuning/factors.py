"""The shared factors of a converted model: their rate in training, and freezing them."""

from __future__ import annotations

import math
from typing import Any, cast

from torch import nn
from transformers import PreTrainedModel, Trainer

from hf_heads.core.errors import HeadsError
from hf_heads.modeling.blocks import inertia_by_name

SHARE = 0.1


def shared_factors(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    """The parameters that several heads of a block share, by name; none in a native model.

    They are what `HeadsAttention.shared` names: U, V and the mixing of collaborative heads, the shared projections
    and the embeddings of head embeddings, the shared queries and values of merged heads. Low rank and pruning
    keep heads separate, and have none.

    Raises:
        HeadsError: no model of transformers.
    """
    if not isinstance(model, PreTrainedModel):
        raise HeadsError(f"expected a model of transformers, not {type(model).__name__}")
    return {name: model.get_parameter(name) for name in inertia_by_name(model)}


def parameter_groups(
    model: PreTrainedModel, lr: float, *, weight_decay: float = 0.0, share: float = SHARE
) -> list[dict[str, Any]]:
    """Groups for an optimizer of `torch.optim` in which the factors that heads share learn at a rate of their own.

    A conversion stores these factors larger than they act (`inertia`), so that any optimizer moves them with care. Here
    the rate is said outright: `share` is relative to the factors as they act, whatever the size that is stored.

    `Trainer(..., optimizers=(torch.optim.AdamW(parameter_groups(model, 5e-5)), None))` trains with them; the Trainer's
    schedule scales every group's rate. Every parameter that is to be trained is in exactly one group.

    Args:
        model: any model of transformers; a native one gives the groups that the Trainer makes by itself.
        lr: the rate of all but the shared factors.
        weight_decay: of all but biases and norms, which the Trainer leaves out as well.
        share: the shared factors' rate as a share of `lr`, in units of their size as they act.

    Raises:
        HeadsError: a rate that is no positive number, a decay or share below zero, or no model of transformers.
    """
    for name, value, least in (("lr", lr, "above 0"), ("weight_decay", weight_decay, ""), ("share", share, "")):
        fits = isinstance(value, int | float) and math.isfinite(value) and (value > 0 or (value == 0 and not least))
        if not fits:
            raise HeadsError(f"{name} is {value!r}, expected a number {least or 'of 0 or more'}")
    inertias = inertia_by_name(model) if shared_factors(model) else {}
    # It looks at nothing of a Trainer but its class.
    decayed = set(Trainer.get_decay_parameter_names(cast(Any, None), model))
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            rate = lr * share * inertias[name] if name in inertias else lr
            groups.setdefault((rate, name in decayed), []).append(parameter)
    return [
        {"params": chosen, "lr": rate, "weight_decay": weight_decay if decays else 0.0}
        for (rate, decays), chosen in groups.items()
    ]


def freeze_factors(model: PreTrainedModel, frozen: bool = True) -> list[str]:
    """Keep the factors that heads share as they are while the rest is trained, or let them go again.

    Sets `requires_grad`, which no checkpoint keeps: call it again after loading. An optimizer that exists already is
    not told.

    Args:
        model: any model of transformers; a native one has no such factors, and is left as it is.
        frozen: False trains them again.

    Returns:
        The names of the parameters in question.

    Raises:
        HeadsError: no model of transformers.
    """
    factors = shared_factors(model)
    for parameter in factors.values():
        parameter.requires_grad_(not frozen)
    return list(factors)
