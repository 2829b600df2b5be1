"""What is published is the net as it is now, not as it was built: a net made by its spec must agree with it.

A net changes after it was built: another classifier or pooling, another input size, pruned layers, another type.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from inflate3d.errors import InputError
from inflate3d.models.create import build_net
from inflate3d.models.publication.replay import difference
from inflate3d.models.spec import NetSpec
from inflate3d.nn.domain import Domain, convert_norms

_AGREES = 1e-4


def spec_of(model: Any, *, norm: str) -> NetSpec:
    """Return the spec that rebuilds a net as it is now.

    Raises InputError for a net of another class, type or shape than a spec can say; the remedy is named.
    """
    spec: NetSpec | None = getattr(model, "net_spec", None)
    if spec is None:
        raise InputError(f"{type(model).__name__} was not made by create_model; build it there, then publish it")
    if spec.features_only:
        raise InputError("features_only nets lack their last layers; publish the full net")
    odd = {str(p.dtype) for p in model.state_dict().values() if p.is_floating_point() and p.dtype != torch.float32}
    if odd:
        raise InputError(
            f"the net holds {', '.join(sorted(odd))}; weights are published from float32: model.float(). "
            "Half the bytes: precision='float16'"
        )
    spec = replace(spec, num_classes=getattr(model, "num_classes", spec.num_classes))
    fresh = _fresh(spec, norm)
    if (pool := _pool_of(model)) != _pool_of(fresh):
        spec = replace(spec, global_pool=pool)
        fresh = _fresh(spec, norm)
    _compare(model, fresh, spec)
    return spec


def _fresh(spec: NetSpec, norm: str) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        net = build_net(spec, pretrained=False)
        if norm == "group":
            convert_norms(net, "group", Domain())
    return net


def _compare(model: Any, fresh: nn.Module, spec: NetSpec) -> None:
    """InputError if the fresh net, with the weights of `model`, is not the same net."""
    remedy = (
        "The net was changed after it was built. Build it as it is now (create_model with num_classes, global_pool, "
        "img_size...), load the weights, publish that"
    )
    own, other = model.state_dict(), fresh.state_dict()
    shapes = {name: tuple(t.shape) for name, t in own.items()}, {name: tuple(t.shape) for name, t in other.items()}
    if shapes[0] != shapes[1]:
        name = next(n for n in [*shapes[0], *shapes[1]] if shapes[0].get(n) != shapes[1].get(n))
        raise InputError(
            f"{spec.name}: {name} is {shapes[0].get(name, 'absent')}; a net made by its spec has "
            f"{shapes[1].get(name, 'none of that name')}. {remedy}"
        )
    fresh.load_state_dict(own)
    height, width = model.trace_size
    x = torch.randn(1, spec.in_chans, max(8, model.plan.min_depth), height, width, generator=_generator())
    error = difference(_answer(fresh, x), _answer(model, x))
    if not error <= _AGREES:
        raise InputError(f"{spec.name}: a net made by its spec with these weights differs by {error:.2g}. {remedy}")


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@torch.no_grad()
def _answer(net: nn.Module, x: Tensor) -> Tensor:
    mode, threads = net.training, torch.get_num_threads()
    torch.set_num_threads(1)  # as the replay: sums depend on the number of threads
    try:
        answer: Tensor = net.cpu().eval()(x)
    finally:
        torch.set_num_threads(threads)
    net.train(mode)
    return answer


def _pool_of(net: Any) -> str | None:
    """Return how a timm net pools, by timm's word; None where it does not say."""
    for holder in (net, getattr(net, "head", None)):
        pool: Any = getattr(holder, "global_pool", None)
        if isinstance(pool, str):
            return pool
        if hasattr(pool, "pool_type"):
            return str(pool.pool_type)
    return None
