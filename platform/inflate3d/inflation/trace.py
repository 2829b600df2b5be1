"""One 2D forward that records where every module stands: its level of reduction, its caller, its answers.

Legend: images I traced at once (two, so that what follows the batch is told from what does not), rows = I * n, where n
is what else the net folds into its batch there (heads, windows).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

SIGNATURE_SIZE = 4096
IMAGES = 2


class Answer(NamedTuple):
    """What one call of a 2D layer gave: its shape, and a signature of its values, a row an image (times n)."""

    shape: torch.Size
    values: Tensor


@dataclass
class LayerTrace:
    """What a 2D forward of two images showed of the first call of a module.

    caller: the module whose forward called it ("" is the net). level_in, level_out: log2 of how much smaller its maps
    or tokens are than the image, None where that cannot be told. fold: rows an image takes in its input (1 in
    convolutional nets), 0 where they do not follow the batch. squeezed: its input is one pixel a row. width: channels
    of its input, as seen by the module.
    """

    name: str
    caller: str
    level_in: int | None
    level_out: int | None
    fold: int
    squeezed: bool
    width: int
    is_global: bool = False
    calls_attention: bool = False
    answers: list[Answer] = field(default_factory=list)


class Trace(dict[str, LayerTrace]):
    """A LayerTrace for each module that was called, by name, in the order in which they were first called."""

    output: Any = None
    features: Any = None
    """What timm's forward_features gave, where the net's forward called it."""

    def ancestors(self, name: str) -> list[LayerTrace]:
        """Return the modules above one in the tree, from its parent up, as far as they were called."""
        found = []
        while "." in name:
            name = name.rpartition(".")[0]
            if name in self:
                found.append(self[name])
        return found

    def called_by_net(self, name: str) -> str:
        """Return the module that the net's own forward called when it came to `name` (often `name` itself)."""
        while self[name].caller:
            name = self[name].caller
        return name


def trace_net(net: nn.Module, images: Tensor, *, answers: bool, attention: bool = True) -> Trace:
    """Run the 2D `net` on two images (2, C, H, W) and record every module.

    answers: what the leaves gave, too. attention: also which modules call scaled_dot_product_attention.
    """
    levels, trace = _Levels(images.shape[-2:]), Trace()

    def enter(name: str, module: nn.Module, inputs: list[Tensor], caller: str) -> None:
        if name in trace:
            return
        extents = [e for e in (levels.extent(t, module) for t in inputs) if e is not None]
        rows = inputs[0].shape[0] if inputs and inputs[0].ndim > 1 else 0
        trace[name] = LayerTrace(
            name=name,
            caller=caller,
            level_in=min((levels.level(e) for e in extents), default=None),
            level_out=None,
            fold=rows // IMAGES if rows % IMAGES == 0 else 0,
            squeezed=all(max(e) == 1 for e in extents) if extents else bool(inputs) and inputs[0].ndim == 2,
            width=_width(module, inputs),
        )

    def leave(name: str, module: nn.Module, inputs: list[Tensor], outputs: list[Tensor], output: object) -> None:
        record = trace[name]
        if record.level_out is None:
            before = [e for e in (levels.extent(t, module) for t in inputs) if e is not None]
            extents = [(e, t.ndim == 4) for t in outputs if (e := levels.extent(t, module)) is not None]
            above = (before[0], record.level_in) if before and record.level_in is not None else None
            record.level_out = min((levels.level(e, above if is_map else None) for e, is_map in extents), default=None)
            record.is_global = bool(extents) and all(max(e) == 1 for e, _ in extents)
        if answers and _is_leaf(module) and isinstance(output, Tensor) and _is_comparable(output):
            record.answers.append(Answer(output.shape, signature(output).clone()))

    def attend(name: str) -> None:
        trace[name].calls_attention = True

    with watched(net, enter, leave, attend if attention else None), _kept_features(net, trace):
        trace.output = net(images)
    return trace


@contextmanager
def _kept_features(net: Any, trace: Trace) -> Iterator[None]:
    """Keep what the net's own forward_features gives, so that nobody need run it again."""
    if not hasattr(net, "forward_features") or "forward_features" in vars(net):
        yield
        return
    own = net.forward_features

    def forward_features(*args: Any, **kwargs: Any) -> Any:
        trace.features = own(*args, **kwargs)
        return trace.features

    net.forward_features = forward_features
    try:
        yield
    finally:
        del net.forward_features


@contextmanager
def watched(net: nn.Module, enter: Any, leave: Any, attention: Any = None) -> Iterator[list[str]]:
    """Call enter(name, module, inputs, caller) and leave(name, module, inputs, outputs, output) around every module.

    Without gradients and in eval mode. Yields the names of the modules that are running just now, outermost first.
    """
    modes = {module: module.training for module in net.modules()}
    handles, stack = [], [""]
    for name, module in net.named_modules():
        if not name:
            continue

        def before(_m: nn.Module, args: Any, kwargs: Any, name: str = name, module: nn.Module = module) -> None:
            enter(name, module, tensors_of((args, kwargs)), stack[-1])
            stack.append(name)

        def after(_m: nn.Module, args: Any, kwargs: Any, output: Any, name: str = name, module: Any = module) -> None:
            stack.pop()
            leave(name, module, tensors_of((args, kwargs)), tensors_of(output), output)

        handles += [
            module.register_forward_pre_hook(before, with_kwargs=True),
            module.register_forward_hook(after, with_kwargs=True),
        ]
    net.eval()
    try:
        # The mode sees every operation, the hooks' own included, so it comes only where somebody listens.
        listening = _AttentionCalls(lambda: attention(stack[-1])) if attention else nullcontext()
        with torch.no_grad(), listening:
            yield stack
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes.items():
            module.training = mode


class _AttentionCalls(TorchFunctionMode):
    """Tells of every call of scaled_dot_product_attention."""

    def __init__(self, tell: Any) -> None:
        super().__init__()
        self.tell = tell

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            self.tell()
        return func(*args, **(kwargs or {}))


class _Levels:
    """Which level a map of some size lies at; learned as the maps shrink, so that unpadded convolutions count right."""

    def __init__(self, image: Sequence[int]) -> None:
        self.height, self.width = image
        self.known = {self.height: 0}

    def extent(self, x: Tensor, module: nn.Module) -> tuple[int, int] | None:
        """Return (H, W) of a map (NCHW or NHWC) or of tokens (I*n, L, C), None where they cannot be told."""
        if x.shape[0] % IMAGES or x.ndim not in (3, 4):
            return None
        if x.ndim == 3:
            tokens = x.shape[1] * (x.shape[0] // IMAGES)
            height = math.sqrt(tokens * self.height / self.width)
            return (max(1, round(height)), max(1, round(height * self.width / self.height)))
        if isinstance(module, nn.Conv2d) or self._has_aspect(x.shape[2], x.shape[3]):
            return (x.shape[2], x.shape[3])
        return (x.shape[1], x.shape[2]) if self._has_aspect(x.shape[1], x.shape[2]) else None

    def _has_aspect(self, height: int, width: int) -> bool:
        return abs(height - width * self.height / self.width) < 1

    def level(self, extent: tuple[int, int], above: tuple[tuple[int, int], int] | None = None) -> int:
        """Return the level of a map; a size not seen yet is counted from the map `above` that it was made of."""
        height = extent[0]
        if height not in self.known:
            if above is None:
                return max(0, round(math.log2(self.height / height)))
            before, level = above
            self.known[height] = max(0, level + round(math.log2(before[0] / height)))
        return self.known[height]


def tensors_of(value: Any) -> list[Tensor]:
    """Return every tensor in nested lists, tuples and dicts, in order."""
    if isinstance(value, Tensor):
        return [value] if value.ndim else []
    if isinstance(value, dict):
        value = list(value.values())
    return [t for v in value for t in tensors_of(v)] if isinstance(value, list | tuple) else []


def signature(x: Tensor) -> Tensor:
    """Return at most SIGNATURE_SIZE values of each row of x (rows, ...), evenly spaced: enough to compare nets by.

    A view of x where that can be.
    """
    rows = x.detach().flatten(1) if x.ndim > 1 else x.detach().unsqueeze(1)
    return rows[:, :: max(1, rows.shape[1] // SIGNATURE_SIZE)]


def _is_leaf(module: nn.Module) -> bool:
    return not any(True for _ in module.children())


def _is_comparable(output: Tensor) -> bool:
    return output.ndim >= 2 and output.is_floating_point() and output.shape[0] % IMAGES == 0


def _width(module: nn.Module, inputs: list[Tensor]) -> int:
    if not inputs or inputs[0].ndim < 2:
        return 0
    return inputs[0].shape[1 if inputs[0].ndim == 4 and isinstance(module, nn.Conv2d) else -1]
