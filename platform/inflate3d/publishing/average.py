"""The weighted average of nets of one kind: between a run's start and its end, or over several runs.

Wortsman et al., WiSE-FT (arXiv:2109.01903) and model soups (arXiv:2203.05482).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from inflate3d.publishing.contents import Contents


def averaged(members: Sequence[Contents], shares: Sequence[float]) -> Contents:
    """Return the average of all tensors: weights, running statistics, the other domains' too, and heads.

    shares: one a member, with the sum 1. What is said of the net is the last member's. Names and shapes must agree.
    """
    last = members[-1]
    net = copy.deepcopy(last.net)
    net.load_state_dict(averaged_tensors([m.net.state_dict() for m in members], shares))
    return replace(
        last,
        net=net,
        extra_tensors=averaged_tensors([m.extra_tensors for m in members], shares),
        head_tensors=averaged_tensors([m.head_tensors for m in members], shares),
    )


def averaged_tensors(states: Sequence[Mapping[str, Tensor]], shares: Sequence[float]) -> dict[str, Tensor]:
    """Return the weighted mean of tensors of the same names and shapes, summed in float64 and rounded once.

    So one member, equal members and shares of 0 are exact. Whole numbers (counts of batches) are the largest.
    """
    return {name: _mean([state[name] for state in states], shares) for name in states[-1]}


def _mean(tensors: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    if not tensors[0].is_floating_point():
        return tensors[0] if len(tensors) == 1 else _largest(tensors)
    terms = [share * tensor.double() for tensor, share in zip(tensors, shares, strict=True) if share]
    return sum(terms[1:], start=terms[0]).to(tensors[0].dtype)


def _largest(tensors: Sequence[Tensor]) -> Tensor:
    largest = tensors[0]
    for tensor in tensors[1:]:
        largest = largest.maximum(tensor)
    return largest
