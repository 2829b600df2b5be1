"""What is published is the net as it is now, not as it was built: a twin that its spec makes must answer as it does.

A net changes after it was built: another classifier or pooling, another input size, pruned layers, another type. The
twin takes its weights; it is what is saved, so the net itself is left as it was.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from inflate3d.errors import InputError
from inflate3d.models.create import build_net
from inflate3d.models.headed import HeadedNet
from inflate3d.models.publication.replay import difference
from inflate3d.models.segmenter import Segmenter
from inflate3d.models.spec import NetSpec
from inflate3d.nn.domain import Domain, convert_norms

_AGREES = 1e-5
_REMEDY = (
    "The net was changed after it was built. Build it as it is now (create_model with num_classes, global_pool, "
    "img_size...), load the weights, publish that"
)


def unwrapped(model: Any) -> Any:
    """Return the net inside what torch and timm put around one: a compiled, distributed or averaged net is the net."""
    while isinstance(model, nn.Module):
        inside = model._modules.get("_orig_mod", model._modules.get("module"))
        if inside is None:
            return model
        model = inside
    return model


def twin_of(model: Any, *, norm: str) -> nn.Module:
    """Return a net that its spec (`net_spec`) makes, with the weights of `model` and its answers, on the CPU.

    Raises InputError for a net of another class, type or shape than a spec can say; the remedy is named.
    """
    spec = _spec_of(model)
    state = _checked_state(model)
    spec = replace(spec, num_classes=getattr(model, "num_classes", spec.num_classes))
    twin: Any = _fresh(spec, norm)
    changes: dict[str, Any] = {}
    if (pool := _pool_of(model)) != _pool_of(twin):
        changes["global_pool"] = pool
    if (size := _size_of(model)) != _size_of(twin):
        changes["timm_kwargs"] = {**spec.timm_kwargs, "img_size": size}
    if changes:
        spec = replace(spec, **changes)
        twin = _fresh(spec, norm)
    _give(twin, state, spec)
    height, width = twin.trace_size
    x = torch.randn(1, spec.in_chans, max(8, twin.plan.min_depth), height, width, generator=_generator())
    error = difference(_answer(twin, x, spec), _answer(model, x, spec))
    if not error <= _AGREES:
        raise InputError(f"{spec.name}: a net made by its spec with these weights differs by {error:.2g}. {_REMEDY}")
    return twin  # type: ignore[no-any-return]


def _spec_of(model: Any) -> NetSpec:
    if isinstance(model, HeadedNet | Segmenter):
        inside = "net" if isinstance(model, HeadedNet) else "encoder"
        raise InputError(
            f"a {type(model).__name__} is published with its run (platform publish RUN --heads); publish alone takes "
            f"the net inside: model.{inside}, or its publication by its name"
        )
    spec: NetSpec | None = getattr(model, "net_spec", None)
    if spec is None:
        raise InputError(f"{type(model).__name__} was not made by create_model; build it there, then publish it")
    if spec.features_only:
        raise InputError("features_only nets lack their last layers; publish the full net")
    return spec


def _checked_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the state_dict of a net: plain, finite float32 numbers on one device. InputError otherwise."""
    state = model.state_dict()
    for name, value in state.items():
        if type(value) is not Tensor or value.layout != torch.strided or value.is_quantized:
            got = type(value).__name__ if type(value) is not Tensor else str(value.layout)
            raise InputError(f"{name} is a {got}; publish the net with plain float32 weights, before it is converted")
    odd = {str(t.dtype) for t in state.values() if t.is_floating_point() and t.dtype != torch.float32}
    if odd:
        raise InputError(
            f"the net holds {', '.join(sorted(odd))}; weights are published from float32: model.float(). "
            "Half the bytes: precision='float16'"
        )
    if len(devices := {str(value.device) for value in state.values()}) > 1 or "meta" in devices:
        raise InputError(
            f"the net lies on {', '.join(sorted(devices))}; publish it from one device that has its weights"
        )
    for name, value in state.items():
        if not torch.isfinite(value).all():
            raise InputError(f"{name} holds numbers that are NaN or infinite; publish an earlier checkpoint")
    return state


def _fresh(spec: NetSpec, norm: str) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        net = build_net(spec, pretrained=False)
        if norm == "group":
            convert_norms(net, "group", Domain())
    return net


def _give(twin: nn.Module, state: dict[str, Tensor], spec: NetSpec) -> None:
    """Load weights; InputError where another name, shape or type shows that the twin is another net."""
    known, other = _described(state), _described(twin.state_dict())
    if known != other:
        name = next(n for n in [*known, *other] if known.get(n) != other.get(n))
        raise InputError(
            f"{spec.name}: {name} is {known.get(name, 'absent')}; a net made by its spec has "
            f"{other.get(name, 'none of that name')}. {_REMEDY}"
        )
    twin.load_state_dict(state)


def _described(state: dict[str, Tensor]) -> dict[str, str]:
    """Shapes by name, with the type where that is not float32."""
    plain = torch.float32
    return {n: f"{tuple(t.shape)}" + ("" if t.dtype == plain else f" {t.dtype}") for n, t in state.items()}


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _answer(net: nn.Module, x: Tensor, spec: NetSpec) -> Tensor:
    with _as_loaded(net), torch.no_grad():
        try:
            answer: Tensor = net(x)
        except (RuntimeError, AssertionError, TypeError) as fault:
            said = (str(fault).strip().splitlines() or [type(fault).__name__])[0][:160]
            raise InputError(
                f"{spec.name}: does not take {tuple(x.shape)}, as it did when built: {said}. {_REMEDY}"
            ) from fault
    return answer


@contextmanager
def _as_loaded(net: nn.Module) -> Iterator[None]:
    """For a while the net is on the CPU, in eval mode and in one thread, as the replay; then as it was before."""
    modes = [(module, module.training) for module in net.modules()]
    device = next((tensor.device for tensor in net.state_dict().values()), torch.device("cpu"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums depend on the number of threads
    try:
        net.cpu().eval()
        yield
    finally:
        torch.set_num_threads(threads)
        net.to(device)
        for module, mode in modes:
            module.training = mode


def _pool_of(net: Any) -> str | None:
    """Return how a timm net pools, by timm's word; None where it does not say."""
    for holder in (net, getattr(net, "head", None)):
        pool: Any = getattr(holder, "global_pool", None)
        if isinstance(pool, str):
            return pool
        if hasattr(pool, "pool_type"):
            return str(pool.pool_type)
    return None


def _size_of(net: Any) -> list[int] | None:
    """Return the frames' (H, W) that a timm net's tokens are made for; None where it does not say."""
    size = getattr(getattr(net, "patch_embed", None), "img_size", None)
    return None if size is None else [int(n) for n in size]
