"""The optimiser's parameter groups and its learning rate schedule."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import Any

from torch import nn


def parameter_groups(module: nn.Module, *, no_weight_decay: Collection[str] = ()) -> list[dict[str, Any]]:
    """Return two groups: parameters that the optimiser's own weight decay acts on, and those with none.

    timm's rule: vectors (norms), biases and what `no_weight_decay` names do not decay. Frozen parameters are
    in neither group.
    """
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            decays = parameter.ndim > 1 and not name.endswith(".bias") and name not in no_weight_decay
            groups[decays].append(parameter)
    return [g for g in ({"params": groups[True]}, {"params": groups[False], "weight_decay": 0.0}) if g["params"]]


def warmup_cosine(*, warmup_steps: int, max_steps: int, final_fraction: float = 0.0) -> Callable[[int], float]:
    """Return the learning rate's factor after `step` optimiser steps: linear from near 0 to 1, then a half cosine.

    The first step already moves (factor 1 / (warmup_steps + 1)), the last one ends just above `final_fraction`.
    """

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        done = min((step - warmup_steps) / max(max_steps - warmup_steps, 1), 1.0)
        return final_fraction + (1 - final_fraction) * 0.5 * (1 + math.cos(math.pi * done))

    return factor
