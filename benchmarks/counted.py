"""Counts of a step without a device: operations that launch kernels, bytes saved for backward; ours and peers.

Everything runs on the meta device, where folded layers take their GPU ways. torch's meta convolutions know no
channels-last for five axes; here they give what cuDNN gives, so that copies are counted where a GPU makes them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import inflate3d
import torch
from inflation import plain
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode

NETS = (
    *("resnet18", "resnet50", "convnext_tiny", "efficientnet_b0", "tf_efficientnet_lite0"),
    *("vit_small_patch16_224", "swin_tiny_patch4_window7_224"),
)
SHAPES = ((8, 3, 16, 224, 224), (2, 1, 128, 128, 128), (32, 1, 48, 48, 48))
_FREE = ("aten::empty", "aten::new_empty", "aten::_unsafe_view", "aten::detach")
_CONVOLUTIONS = {torch.ops.aten.convolution.default: 0, torch.ops.aten.convolution_backward.default: 1}


class Launches(TorchDispatchMode):
    """Counts what would launch a kernel: every operation that is neither a view nor an allocation."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation, and count it."""
        output = function(*args, **(kwargs or {}))
        if function in _CONVOLUTIONS:
            first = _CONVOLUTIONS[function]
            if any(_is_channels_last(x) for x in args[first : first + 2]):
                output = _channels_last(output)
        is_view = function.is_view or any(r.alias_info and not r.alias_info.is_write for r in function._schema.returns)
        if not is_view and not function._schema.name.startswith(_FREE):
            self.operations[function._schema.name] += 1
        return output


def _is_channels_last(x: Tensor) -> bool:
    return x.ndim == 5 and torch._prims_common.suggest_memory_format(x) == torch.channels_last_3d


def _channels_last(output: Any) -> Any:
    if isinstance(output, tuple | list):
        return tuple(map(_channels_last, output))
    if output is None or output.ndim != 5 or output.device.type != "meta":
        return output
    return torch.empty_like(output, memory_format=torch.channels_last_3d)


def forward_saving(net: nn.Module, x: Tensor) -> tuple[Tensor, int]:
    """Return a net's answer and the bytes that it saves for backward: whole storages, once each, but its weights."""
    own = {t.untyped_storage()._cdata for t in (*net.parameters(), *net.buffers())}
    saved: dict[int, Tensor] = {}

    def keep(t: Tensor) -> Tensor:
        saved[t.untyped_storage()._cdata] = t
        return t

    with saved_tensors_hooks(keep, lambda t: t):
        y = net(x)
    return y, sum(t.untyped_storage().nbytes() for place, t in saved.items() if place not in own)


def step_counts(net: nn.Module, shape: tuple[int, ...]) -> tuple[int, int]:
    """Return (operations of forward and backward, bytes saved in between) of a net on the meta device."""
    for parameter in net.parameters():
        parameter.grad = None
    x = torch.empty(shape, device="meta").to(memory_format=torch.channels_last_3d)
    with Launches() as launches:
        y, saved = forward_saving(net, x)
        y.sum().backward()
    return launches.operations.total(), saved


def peers(name: str, shape: tuple[int, ...]) -> dict[str, Callable[[], nn.Module]]:
    """Return how to make our net and its peers for inputs of a shape (B, C, D, H, W); None where a peer lacks it."""
    sized = {"img_size": shape[-2:]} if name.startswith(("vit", "swin")) else {}

    def ours() -> nn.Module:
        return inflate3d.create_model(name, plan="isotropic", in_chans=shape[1], **sized)

    found = {"ours": ours, "plain conv3d": lambda: plain(ours())}
    try:
        import timm_3d
    except ImportError:
        return found
    if name in timm_3d.list_models():
        found["timm_3d"] = lambda: timm_3d.create_model(name, pretrained=False, in_chans=shape[1], **sized)
    return found


def counted(name: str, shape: tuple[int, ...]) -> dict[str, tuple[int, int]]:
    """Return (operations, saved bytes) of our net and of each peer that takes the shape, kernels channels-last."""
    found = {}
    for peer, make in peers(name, shape).items():
        net = make().train().to("meta")
        for parameter in net.parameters():
            if parameter.ndim == 5:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last_3d)
        try:
            found[peer] = step_counts(net, shape)
        except RuntimeError as fault:  # a peer whose strides leave no frame
            if peer == "ours":
                raise
            print(f"{name} {shape}: {peer} refuses: {str(fault).splitlines()[0][:80]}", flush=True)
    return found


def print_counts(names: tuple[str, ...] = NETS, shapes: tuple[tuple[int, ...], ...] = SHAPES) -> list[dict[str, Any]]:
    """Print one row a net and shape, and return them."""
    rows: list[dict[str, Any]] = []
    print("| net | input | peer | operations | ours / peer | saved MB | ours / peer |\n|---|---|---|---|---|---|---|")
    for name in names:
        for shape in shapes:
            values = counted(name, shape)
            for peer, (operations, saved) in values.items():
                ratios = [a / b for a, b in zip(values["ours"], (operations, saved), strict=True)]
                cells = (name, "x".join(map(str, shape)), peer, operations, f"{ratios[0]:.2f}")
                print("|", " | ".join(map(str, (*cells, round(saved / 1e6), f"{ratios[1]:.3f}"))), "|", flush=True)
                rows.append({"net": name, "shape": shape, "peer": peer, "operations": operations, "saved": saved})
    return rows
