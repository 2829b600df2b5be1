"""Self-check of an inflated net: static clips must answer as their frames did in 2D, layer by layer, at every level."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from inflate3d.inflation.errors import InflationError
from inflate3d.inflation.layers import AtRate, ClipStatistics, FoldedLayer
from inflate3d.inflation.mixing import base_name
from inflate3d.inflation.steps import Strides
from inflate3d.inflation.trace import IMAGES, Answer, Trace, signature, tensors_of, watched

_FAILURES = (RuntimeError, ValueError, IndexError, TypeError, AssertionError, AttributeError)
MOST_REPAIRS = 200


class CheckFailure(Exception):
    """The inflated net broke on a static clip; `finished` are the modules that had run by then, in order."""

    def __init__(self, message: str, finished: list[str], *, is_numeric: bool = False) -> None:
        super().__init__(message)
        self.finished, self.is_numeric = finished, is_numeric


def settle_strides(net: nn.Module, strides: Strides, images: Tensor, trace: Trace) -> None:
    """Put the strides in so that static clips of `images` answer as `trace` says; move those that cannot stay.

    Raises InflationError that names the first layer which breaks the invariant.
    """
    strides.apply()
    try:
        return check_static_clips(net, strides, images, trace)
    except CheckFailure as broken:
        first = failure = broken
    if first.is_numeric and images.dtype == torch.float32:
        return _settle_in_double(net, strides, images, trace)
    strides.remove()
    try:
        check_static_clips(net, strides, images, trace)
    except CheckFailure as broken:
        if broken.is_numeric and images.dtype == torch.float32:
            return _settle_in_double(net, strides, images, trace)
        raise InflationError(str(broken)) from broken
    for _ in range(MOST_REPAIRS):
        if not strides.repair(failure.finished):
            break
        strides.apply()
        try:
            return check_static_clips(net, strides, images, trace)
        except CheckFailure as broken:
            failure = broken
    raise InflationError(f"{first}. Without strides along D it holds: plan='slow' or '2d'") from first


def _settle_in_double(net: nn.Module, strides: Strides, images: Tensor, trace: Trace) -> None:
    """Settle in float64, for nets that blow up rounding errors (softmax near its corners) past any fair tolerance.

    The 2D answers are those on one frame, without strides: there every kernel is the sum of its taps, the 2D one.
    """
    strides.remove()
    net.double()
    try:
        exact = Trace({name: replace(record, answers=[]) for name, record in trace.items()})
        with watched(net, lambda *_: None, lambda name, *_args: _record(exact, trace, name, _args[-1])):
            depth: Any = net.plan.min_depth  # type: ignore[union-attr]
            exact.output = net(images.double().unsqueeze(2).expand(-1, -1, depth, -1, -1))
        if tensors_of(exact.output) and tensors_of(exact.output)[0].ndim == 5:
            exact.output = [y[:, :, 0] for y in tensors_of(exact.output)]
        settle_strides(net, strides, images.double(), exact)
    finally:
        net.float()


def _record(exact: Trace, trace: Trace, name: str, output: object) -> None:
    """Add a leaf's answer on the first frame of a static clip, where the 2D trace holds one for this call."""
    if name not in trace or not isinstance(output, Tensor):
        return
    call = len(exact[name].answers)
    if call < len(trace[name].answers):
        shape = trace[name].answers[call].shape
        is_folded = output.shape[1:] == shape[1:] and output.shape[0] % shape[0] == 0
        first = output.unflatten(0, (IMAGES, -1, shape[0] // IMAGES))[:, 0].flatten(0, 1) if is_folded else output
        exact[name].answers.append(Answer(shape, signature(first).clone()))


def check_static_clips(net: nn.Module, strides: Strides, images: Tensor, trace: Trace) -> None:
    """Run `net` on clips that repeat one image each, and compare every leaf, on every frame, with its 2D answer.

    Errors are relative to the layer's largest value. Raises CheckFailure.
    """
    watch = _Watch(net, strides, trace, tolerance(images.dtype))
    plan: Any = net.plan
    # Past half the total stride, so that every step has fewer frames behind it and a branch that misses it shows.
    depth = max(plan.min_depth, strides.total // 2 + 1 if strides.is_on else 1, 3)
    # The other way round than in 2D, so that a layer which mixes rows of the batch shows.
    clips = images.flip(0).unsqueeze(2).expand(-1, -1, depth, -1, -1)
    watch.frames = -(-depth // net.tube)  # type: ignore[operator]
    try:
        with watched(net, watch.enter, watch.leave):
            output = net(clips)
            error = static_error(output, [y.flip(0) for y in tensors_of(trace.output)])
            if not error <= watch.tolerance:
                raise ValueError(f"its answer differs by {error:.2g}, allowed {watch.tolerance:.0e}")
            if strides.holds and net.has_timm_methods and hasattr(net, "forward_intermediates"):
                net.forward_intermediates(clips)  # type: ignore[operator]
    except CheckFailure:
        raise
    except _FAILURES as error:
        message = (
            f"the inflated net fails on a clip of {depth} frames, soon after layer {watch.last!r} "
            f"({_kind(net, watch.last)}): {error}"
        )
        raise CheckFailure(message, watch.finished) from error


class _Watch:
    """Compares what passes by with the trace, and remembers what has run."""

    def __init__(self, net: Any, strides: Strides, trace: Trace, tolerance: float) -> None:
        self.net, self.strides, self.trace, self.tolerance = net, strides, trace, tolerance
        self.calls: dict[str, int] = {}
        self.finished: list[str] = []
        self.last = "(input)"
        self.frames = 1
        modules = net.named_modules()
        # Inside these, frames lie below each other; what they give is compared.
        self.skip = tuple(f"{name}." for name, m in modules if isinstance(m, ClipStatistics))

    def enter(self, name: str, module: Any, inputs: list[Tensor], _caller: str) -> None:
        record = self.trace.get(name)
        if record is None or not inputs or not record.fold:
            return
        frames = inputs[0].shape[0] // (IMAGES * record.fold)
        if isinstance(module, AtRate):
            is_held = frames == self.frames and not record.caller
            module.rate_in = self.strides.rate(record.level_in) if is_held else 1
            frames = -(-frames // module.rate_in)
        if isinstance(module, FoldedLayer) and hasattr(module, "rate"):
            module.rate = self.strides.rate_of(frames, self.frames)

    def leave(self, name: str, module: Any, _inputs: Any, _outputs: Any, output: object) -> None:
        self.last = name
        self.finished.append(name)
        call = self.calls.get(name, 0)
        self.calls[name] = call + 1
        answers = self.trace[name].answers if name in self.trace else []
        if isinstance(output, Tensor) and call < len(answers) and not (self.skip and name.startswith(self.skip)):
            self._compare(name, output, answers[call])

    def _compare(self, name: str, output: Tensor, answer: Answer) -> None:
        rows = answer.shape[0]
        if output.shape[0] == rows and output.shape != answer.shape and self.net.head_layout.time == "space":
            return  # a head's layer before its pool, where frames stand below each other; what is pooled is compared
        if output.shape[0] % rows or output.shape[1:] != answer.shape[1:]:
            raise CheckFailure(
                f"{self._where(name)} gives shape {tuple(output.shape)} on static clips, which no longer folds frames "
                f"into the batch (2D: {tuple(answer.shape)})",
                self.finished,
            )
        if output.is_meta:
            return
        got = signature(output).unflatten(0, (IMAGES, -1, rows // IMAGES))
        error = _relative(got, answer.values.unflatten(0, (IMAGES, 1, rows // IMAGES)).flip(0))
        if not error <= self.tolerance:
            raise CheckFailure(
                f"{self._where(name)} breaks the static-clip invariant: relative error {error:.2g}, allowed "
                f"{self.tolerance:.0e}; the layers before it hold. It mixes frames in a way that inflation does not "
                "know",
                self.finished,
                is_numeric=True,
            )

    def _where(self, name: str) -> str:
        return f"layer {name!r} ({_kind(self.net, name)})"


def static_error(output: Any, output_2d: Any) -> float:
    """Return the largest difference of an answer for static clips from the 2D one, relative to its largest value.

    Both are a tensor, or nested lists and dicts of them: (B, ...) each, or (B, D, ...) or (B, C, D, H, W) for frames.
    Raises ValueError where shapes do not fit.
    """
    return max((_static_error(got, e) for got, e in zip(tensors_of(output), tensors_of(output_2d), strict=True)))


def _static_error(got: Tensor, expected: Tensor) -> float:
    orders = [expected]
    if got.ndim == expected.ndim + 1:
        orders = [expected.unsqueeze(1)]  # rows of tokens, or maps that stay NHWC
        if got.ndim == 5:  # (B, C, D, H, W) of a map that is NCHW or NHWC in 2D
            orders += [expected.unsqueeze(2), expected.movedim(-1, 1).unsqueeze(2)]
        orders = [e.expand_as(got) for e in orders if _spreads(e.shape, got.shape)]
    orders = [e for e in orders if e.shape == got.shape]
    if not orders:
        raise ValueError(f"the net gives shape {tuple(got.shape)} on static clips; in 2D {tuple(expected.shape)}")
    if got.is_meta or not got.is_floating_point():
        return 0.0
    return min(_relative(got, e) for e in orders)


def _spreads(shape: torch.Size, onto: torch.Size) -> bool:
    return all(a in (1, b) for a, b in zip(shape, onto, strict=True))


def _relative(got: Tensor, expected: Tensor) -> float:
    if not got.numel():
        return 0.0
    largest = torch.linalg.vector_norm(expected, math.inf).item()
    return torch.dist(got, expected, math.inf).item() / max(largest, 1e-6)


def tolerance(dtype: torch.dtype) -> float:
    """Return the relative error allowed for a dtype."""
    return {torch.float64: 1e-9, torch.float32: 1e-3}.get(dtype, 0.1)


def _kind(net: nn.Module, name: str) -> str:
    return base_name(dict(net.named_modules()).get(name, net))
