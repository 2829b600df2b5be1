"""One 2D forward that records where every layer stands: its level of reduction and what is folded into its batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

SIGNATURE_SIZE = 4096


@dataclass(frozen=True)
class LayerTrace:
    """What a 2D forward of ONE image showed of a layer with 4-D input and output.

    level_in, level_out: log2 of how much smaller H is than the image's, rounded. fold_factor: heads or windows that the
    net folds into the batch there (1 in convolutional nets). in_attention: an ancestor is an attention block.
    """

    level_in: int
    level_out: int
    fold_factor: int
    in_attention: bool


def trace_levels(net: nn.Module, image: Tensor) -> dict[str, LayerTrace]:
    """Run `net` on one image (1, C, H, W) and return a record for each childless module, by name, in call order."""
    ancestors = {name: type(module).__name__ for name, module in net.named_modules()}
    traces: dict[str, LayerTrace] = {}

    def record(name: str, inputs: tuple[object, ...], output: object) -> None:
        x = inputs[0] if inputs else None
        if name in traces or not (isinstance(x, Tensor) and isinstance(output, Tensor) and x.ndim == output.ndim == 4):
            return
        size = image.shape[-2]
        traces[name] = LayerTrace(
            level_in=_level(size, x.shape[-2]),
            level_out=_level(size, output.shape[-2]),
            fold_factor=x.shape[0],
            in_attention=any("att" in ancestors[a].lower() for a in _ancestors(name)),
        )

    with hooked_leaves(net, record):
        net(image)
    return traces


@contextmanager
def hooked_leaves(net: nn.Module, record: Callable[[str, tuple[object, ...], object], None]) -> Iterator[None]:
    """Call record(name, inputs, output) after each childless module of `net`, without gradients and in eval mode."""
    modes = {module: module.training for module in net.modules()}
    handles = []
    for name, module in net.named_modules():
        if not any(True for _ in module.children()):

            def hook(_module: nn.Module, inputs: tuple[object, ...], output: object, name: str = name) -> None:
                record(name, inputs, output)

            handles.append(module.register_forward_hook(hook))
    net.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes.items():
            module.training = mode


def signature(x: Tensor) -> Tensor:
    """Return at most SIGNATURE_SIZE values of each row of x (rows, ...), evenly spaced: enough to compare nets by."""
    rows = x.detach().flatten(1) if x.ndim > 1 else x.detach().unsqueeze(1)
    return rows[:, :: max(1, rows.shape[1] // SIGNATURE_SIZE)].float().clone()


def _level(image_size: int, size: int) -> int:
    return max(0, round(math.log2(image_size / max(size, 1))))


def _ancestors(name: str) -> Iterator[str]:
    while "." in name:
        name = name.rpartition(".")[0]
        yield name
