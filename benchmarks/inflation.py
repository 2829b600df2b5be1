"""Time of forward and backward, ours against timm-3d and against plain Conv3d; of inflating weights; of create_model.

    pip install --no-deps timm-3d==1.0.1    (as in the extra `benchmark`; its own pins are old)
    python benchmarks/inflation.py [--part steps] [--threads 1] [--rounds 5] [--nets resnet18] [--shapes 1x3x64x64x64]

The nets of a row live in one process, have timm-3d's strides and as many parameters, and take turns, round after round;
the median of the rounds' ratios counts, below 1 where ours is faster. One thread is timed in CPU time, which a shared
machine disturbs less, more threads in wall time. `plain` is our own net with every folded convolution run as torch's
conv3d, zero-padded along D.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import inflate3d
import timm
import torch
import torch.nn.functional as F
from inflate3d.inflation import Taps, inflate_kernel
from inflate3d.inflation.convolution import FoldedConv
from torch import Tensor, nn

NETS = "resnet18,resnet50,densenet121,efficientnet_b0,convnext_tiny"
SHAPES = "2x3x16x112x112,1x3x64x64x64,1x3x32x112x112"


def plain(net: nn.Module) -> nn.Module:
    """Return a copy of our net whose folded convolutions are torch's conv3d, zero-padded along D."""
    net = copy.deepcopy(net)
    for module in net.modules():
        if isinstance(module, FoldedConv):
            module._convolve = _PlainConv3d(module)  # type: ignore[method-assign]
    return net


class _PlainConv3d:
    def __init__(self, layer: Any) -> None:
        self.layer = layer

    def __call__(self, x: Tensor, weight: Tensor, padding: Any) -> Tensor:
        layer: Any = self.layer
        frames = layer.frames_of(x)
        x_BCDHW = x.unflatten(0, (-1, frames)).transpose(1, 2)
        kernel, stride = weight.shape[2], layer.depth_stride
        is_tile = kernel == stride > 1 and layer.padding == (0, 0)
        if is_tile and frames % stride:  # else it would drop frames that ours keeps
            x_BCDHW = F.pad(x_BCDHW, (0, 0, 0, 0, 0, -frames % stride))
        options = (
            (stride, *layer.stride),
            (0 if is_tile else kernel // 2, *padding),
            (1, *layer.dilation),
            layer.groups,
        )
        y = F.conv3d(x_BCDHW, weight, layer.bias, *options)[:, :, : -(-frames // stride)]
        return y.transpose(1, 2).flatten(0, 1)


def seconds(call: Callable[[], Any], threads: int) -> float:
    """Time one call: CPU time of one thread, wall time of more."""
    clock = time.process_time if threads == 1 else time.perf_counter
    start = clock()
    call()
    return clock() - start


def in_turns(calls: dict[str, Callable[[], Any]], rounds: int, threads: int) -> dict[str, list[float]]:
    """Time every call once a round, after one round that does not count."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for round_ in range(rounds + 1):
        for name, call in calls.items():
            spent = seconds(call, threads)
            if round_:
                times[name].append(spent)
    return times


def ratio(times: dict[str, list[float]], name: str, base: str) -> str:
    """Return the median of the rounds' ratios."""
    return f"{statistics.median(a / b for a, b in zip(times[name], times[base], strict=True)):.2f}"


def step(net: nn.Module, x: Tensor) -> Callable[[], None]:
    """Return a call that runs forward and backward."""

    def run() -> None:
        net(x).sum().backward()
        for parameter in net.parameters():
            parameter.grad = None

    return run


def compare_steps(names: list[str], shapes: list[tuple[int, ...]], rounds: int, threads: int) -> None:
    """Print a row a net and shape."""
    import timm_3d

    print("| net | input | parameters | ours / timm-3d | ours / plain Conv3d |\n|---|---|---|---|---|", flush=True)
    for name in names:
        theirs = timm_3d.create_model(name, pretrained=False).train()
        ours = inflate3d.create_model(name, plan="isotropic").train()
        same = sum(p.numel() for p in ours.parameters()) / sum(p.numel() for p in theirs.parameters())
        nets = {"ours": ours, "timm-3d": theirs, "plain": plain(ours)}
        for shape in shapes:
            x = torch.randn(shape)
            refused = [key for key, net in nets.items() if not takes(net, x)]
            times = in_turns({k: step(n, x) for k, n in nets.items() if k not in refused}, rounds, threads)
            found = [f"{key} refuses" if key in refused else ratio(times, "ours", key) for key in ("timm-3d", "plain")]
            print(f"| {name} | {'x'.join(map(str, shape))} | {same:.3f} | {found[0]} | {found[1]} |", flush=True)


def takes(net: nn.Module, x: Tensor) -> bool:
    """Whether a net takes clips of a shape; timm-3d's tiles do not fit into few frames."""
    try:
        with torch.no_grad():
            net(x)
    except RuntimeError:
        return False
    return True


def compare_kernels(rounds: int, threads: int) -> None:
    """Print what inflating resnet50's spatial kernels costs, relative to copying the inflated ones."""
    net = timm.create_model("resnet50")
    flat = [m.weight.data for m in net.modules() if isinstance(m, nn.Conv2d) and max(m.kernel_size) > 1]
    cubes = [inflate_kernel(w, w.shape[2], taps=Taps("mean")) for w in flat]
    place = [torch.empty_like(cube) for cube in cubes]
    calls: dict[str, Callable[[], Any]] = {
        "copy into new memory": lambda: [cube.clone() for cube in cubes],
        "copy in place": lambda: [a.copy_(b) for a, b in zip(place, cubes, strict=True)],
    }
    for taps in (Taps("center"), Taps("mean"), Taps("overshoot")):
        calls[taps.name] = lambda taps=taps: [inflate_kernel(w, w.shape[2], taps=taps) for w in flat]
    times = in_turns(calls, 2 * rounds, threads)
    size = sum(cube.numel() for cube in cubes) * 4 / 1e6
    print(f"\n| {size:.0f} MB of kernels | / a copy into new memory | / a copy in place |\n|---|---|---|")
    for name in ("center", "mean", "overshoot"):
        print(f"| {name} | {ratio(times, name, 'copy into new memory')} | {ratio(times, name, 'copy in place')} |")


def compare_creation(names: list[str], rounds: int, threads: int) -> None:
    """Print what create_model costs relative to timm's."""
    print("\n| create_model, random weights | ours / timm |\n|---|---|")
    for name in names:
        calls = {
            "timm": lambda name=name: timm.create_model(name),
            "ours": lambda name=name: inflate3d.create_model(name),
        }
        print(f"| {name} | {ratio(in_turns(calls, rounds, threads), 'ours', 'timm')} |", flush=True)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--nets", default=NETS)
    parser.add_argument("--shapes", default=SHAPES)
    parser.add_argument("--part", choices=["all", "steps", "kernels", "create"], default="all")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(args.threads)
    names, shapes = args.nets.split(","), [tuple(map(int, s.split("x"))) for s in args.shapes.split(",")]
    if args.part in ("all", "steps"):
        compare_steps(names, shapes, args.rounds, args.threads)
    if args.part in ("all", "kernels"):
        compare_kernels(args.rounds, args.threads)
    if args.part in ("all", "create"):
        compare_creation(names, args.rounds, args.threads)


if __name__ == "__main__":
    main()
