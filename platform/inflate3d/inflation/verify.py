"""Self-check of an inflated net: a static clip must answer as its frame did in 2D, layer by layer."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from inflate3d.inflation.trace import hooked_leaves, signature


class InflationError(RuntimeError):
    """The inflated net does not answer as the 2D net on a static clip; it names the first layer that differs."""


class Answer(NamedTuple):
    """What one call of a 2D layer gave: its shape, and a signature of its values, a row an image."""

    shape: torch.Size
    values: Tensor


def record_2d(net: nn.Module, image: Tensor) -> dict[str, list[Answer]]:
    """Return a signature of each leaf's output on one image; one entry a call."""
    outputs: dict[str, list[Answer]] = {}

    def record(name: str, _inputs: tuple[object, ...], output: object) -> None:
        if isinstance(output, Tensor) and output.ndim >= 2 and output.is_floating_point():
            outputs.setdefault(name, []).append(Answer(output.shape, signature(output)))

    with hooked_leaves(net, record):
        net(image)
    return outputs


def check_static_clip(
    net: nn.Module, image: Tensor, outputs_2d: dict[str, list[Answer]], *, depth: int, tol: float
) -> None:
    """Run `net` on a clip that repeats `image` `depth` times and compare every leaf, on every frame, with `outputs_2d`.

    Errors are relative to the layer's largest value. Raises InflationError that names the first layer past `tol`.
    """
    calls: dict[str, int] = {}
    is_space = getattr(net, "head_over_time", "") == "space"
    last = "(input)"

    def compare(name: str, _inputs: tuple[object, ...], output: object) -> None:
        nonlocal last
        last = name
        call = calls.get(name, 0)
        calls[name] = call + 1
        if not isinstance(output, Tensor) or call >= len(outputs_2d.get(name, ())):
            return
        shape_2d, expected = outputs_2d[name][call]
        got = signature(output)
        rows = expected.shape[0]
        if is_space and output.shape[0] == rows and output.shape != shape_2d:
            return  # a head's layer before its pool, where frames stand below each other; what is pooled is compared
        if got.shape[0] % rows or got.shape[1] != expected.shape[1]:
            raise InflationError(
                f"layer {name!r} ({_kind(net, name)}) gives shape {tuple(output.shape)} on a static clip, which no "
                f"longer folds frames into the batch (2D: {rows} rows)"
            )
        difference = (got.unflatten(0, (-1, rows)) - expected).abs().amax()
        scale = expected.abs().amax().clamp_min(1e-6)
        error = (difference / scale).item()
        if not error <= tol:
            raise InflationError(
                f"layer {name!r} ({_kind(net, name)}) breaks the static-clip invariant: relative error {error:.2g}, "
                f"allowed {tol:.0e}; the layers before it hold. It mixes frames in a way that inflation does not know"
            )

    clip = image.unsqueeze(2).expand(-1, -1, depth, -1, -1)
    try:
        with hooked_leaves(net, compare):
            net(clip)
    except InflationError:
        raise
    except (RuntimeError, ValueError, IndexError, TypeError, AssertionError) as error:
        raise InflationError(
            f"the inflated net fails on a clip of {depth} frames, soon after layer {last!r} "
            f"({_kind(net, last)}): {error}"
        ) from error


def tolerance(dtype: torch.dtype) -> float:
    """Return the relative error allowed for a dtype."""
    return {torch.float64: 1e-9, torch.float32: 1e-3}.get(dtype, 0.1)


def _kind(net: nn.Module, name: str) -> str:
    return type(dict(net.named_modules()).get(name, net)).__name__
