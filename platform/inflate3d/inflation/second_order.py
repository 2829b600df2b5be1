"""Gradients that have gradients: what our autograd Functions give where a graph of the backward is asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def differentiable_gradients(
    function: Callable[..., Tensor], inputs: Sequence[Any], wanted: Sequence[bool], grad: Tensor
) -> tuple[Tensor | None, ...]:
    """Return the gradient of each wanted input of a function, given that of its answer, with a graph of its own.

    For a Function's backward under create_graph: `function` gives the same answer by operations that autograd knows.
    """
    with torch.enable_grad():
        # Fresh views of the inputs: their gradients end here, and a graph that came with an input stays behind it.
        own = [x.view_as(x) if want else x for x, want in zip(inputs, wanted, strict=True)]
        chosen = [x for x, want in zip(own, wanted, strict=True) if want]
        found = iter(torch.autograd.grad(function(*own), chosen, grad, create_graph=True))
    return tuple(next(found) if want else None for want in wanted)
