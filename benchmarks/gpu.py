"""A GPU's answers and times in one command of at most 10 minutes: right first, then steps beside peers, then a fit.

    python benchmarks/gpu.py [--output gpu.json] [--minutes 10] [--device cuda] [--tiny] [--sections steps,fit]
    python benchmarks/gpu.py --counts         operations and saved bytes of a step; needs no GPU (benchmarks/counted.py)

Needs torch, timm, lightning, torchmetrics, safetensors and numpy, and what benchmarks/gpu_wheels.sh gathers for a
machine that reaches no registry; a section whose imports or time are missing is skipped with a line that says so.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from counted import NETS, SHAPES, peers, print_counts
from inflate3d.inflation.convolution import FoldedConv
from inflate3d.inflation.layers import fold_layer, folding
from inflate3d.inflation.replicated import Sizes, convolve_copied, convolve_edges
from torch import Tensor, nn

Row = dict[str, Any]
# name: (channels in and out, groups, kernel along D, kernel, stride along D, stride, frames, map)
LAYERS = {
    "3x3x3": (64, 64, 1, 3, 3, 1, 1, 8, 28),
    "3x3x3, long": (32, 32, 1, 3, 3, 1, 1, 32, 28),
    "3x3x3, strided": (64, 64, 1, 3, 3, 2, 2, 8, 28),
    "7x7x7 stem": (3, 64, 1, 7, 7, 2, 2, 16, 56),
    "one frame": (64, 64, 1, 3, 3, 1, 1, 1, 28),
    "two frames": (64, 64, 1, 3, 3, 1, 1, 2, 28),
    "1x1x1, strided": (64, 128, 1, 1, 1, 2, 2, 8, 28),
    "depthwise 3x3x3": (96, 96, 96, 3, 3, 1, 1, 8, 28),
    "depthwise 5x5x5, strided": (96, 96, 96, 5, 5, 2, 2, 8, 28),
    "depthwise 7x7x7": (96, 96, 96, 7, 7, 1, 1, 4, 14),
    "groups of 4": (64, 64, 16, 3, 3, 1, 1, 8, 28),
}
TOLERANCE = {"float32": 1e-4, "tf32": 4e-3, "bfloat16": 4e-2}  # of the largest value, for answers and gradients


# ------------------------------------------------------------------------------------------------------- correctness


def layer_error(name: str, device: str, precision: str, *, largest_map: int = 56) -> float:
    """Return the largest error of a folded layer's answer and gradients, over the largest value of each.

    Beside the same layer in float64 on the CPU.
    """
    channels, out, groups, depth, kernel, depth_stride, stride, frames, size = LAYERS[name]
    size = min(size, largest_map)
    torch.manual_seed(0)
    conv = nn.Conv2d(channels, out, kernel, stride, kernel // 2, groups=groups)
    conv.weight = nn.Parameter(torch.randn(out, channels // groups, depth, kernel, kernel) / conv.weight[0].numel())
    fold_layer(conv, FoldedConv, depth, depth_stride)
    x = torch.randn(2 * frames, channels, size, size)
    exact = _answer_and_gradients(conv.double(), x.double())
    conv = conv.float().to(device)
    with precision_of(precision, device):
        got = _answer_and_gradients(conv, x.to(device).contiguous(memory_format=torch.channels_last))
    pairs = zip(got, exact, strict=True)
    return max(float((a.double().cpu() - b).abs().max() / b.abs().max().clamp_min(1e-12)) for a, b in pairs)


def _answer_and_gradients(conv: nn.Module, x: Tensor) -> list[Tensor]:
    conv.zero_grad()
    x = x.clone().requires_grad_()
    with folding(2):
        y = conv(x)
    scale = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).view(y.shape).to(y)
    (y * scale).sum().backward()
    return [y.detach(), x.grad, *(p.grad.detach().clone() for p in conv.parameters())]  # type: ignore[union-attr, list-item]


class precision_of:  # used as a function: with precision_of("tf32", "cuda")
    """Compute in float32, tf32 or bfloat16 (autocast) for a while."""

    def __init__(self, name: str, device: str) -> None:
        self.name = name
        self.autocast = torch.autocast(device, torch.bfloat16, enabled=name == "bfloat16")

    def __enter__(self) -> None:
        self.before = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
        torch.backends.cudnn.allow_tf32 = self.name == "tf32"
        torch.set_float32_matmul_precision("high" if self.name == "tf32" else "highest")
        self.autocast.__enter__()

    def __exit__(self, *error: Any) -> None:
        self.autocast.__exit__(*error)
        torch.backends.cudnn.allow_tf32 = self.before[0]
        torch.set_float32_matmul_precision(self.before[1])


def static_clip_error(name: str, device: str) -> float:
    """Return how far an inflated net's answer to one repeated image is from the 2D net's, over the largest value."""
    import inflate3d
    import timm

    torch.manual_seed(0)
    flat = timm.create_model(name).eval()
    net = inflate3d.inflate(flat, example_size=(8, 64, 64), inflation="overshoot", plan="isotropic").eval().to(device)
    image = torch.randn(2, 3, 64, 64)
    with torch.no_grad(), precision_of("float32", device):
        expected, got = flat(image), net(image.to(device).unsqueeze(2).expand(-1, -1, 8, -1, -1)).cpu()
    return float((got - expected).abs().max() / expected.abs().max())


def correctness(args: Any) -> Iterator[Row]:
    """Yield one row a layer and precision, and one a net on static clips; `right` says whether it is."""
    for precision in ("float32",) if args.device == "cpu" else TOLERANCE:
        for name in LAYERS:
            error = layer_error(name, args.device, precision, largest_map=7 if args.tiny else 56)
            yield {"layer": name, "precision": precision, "error": error, "right": error < TOLERANCE[precision]}
    for name in ("resnet18",) if args.tiny else ("resnet18", "efficientnet_b0", "convnext_tiny"):
        error = static_clip_error(name, args.device)
        yield {"net": name, "static clip": True, "error": error, "right": error < TOLERANCE["float32"]}


# -------------------------------------------------------------------------------------------------------------- time


def milliseconds(call: Callable[[], Any], device: str, rounds: int) -> float:
    """Return the median time of a call, after two that do not count."""
    times = []
    for round_ in range(rounds + 2):
        start = time.perf_counter()
        call()
        if device != "cpu":
            torch.cuda.synchronize()
        if round_ > 1:
            times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def ways(args: Any) -> Iterator[Row]:
    """Yield the time of a dense 3x3x3 by a copy and by corrected edges: what ways.CHANNELS_A_FRAME is to be set by."""
    sizes = (
        [(64, 32, 16), (128, 16, 16)] if args.tiny else [(c, d, 28) for c in (64, 128, 256, 512) for d in (4, 8, 16)]
    )
    for channels, frames, side in sizes:
        dtype = torch.float32 if args.device == "cpu" else torch.bfloat16  # which a CPU emulates, minutes long
        x = torch.randn(4 * frames, channels, side, side, device=args.device, dtype=dtype)
        x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
        weight = torch.randn(channels, channels, 3, 3, 3, device=args.device, dtype=dtype)
        weight = weight.contiguous(memory_format=torch.channels_last_3d).requires_grad_()
        row: Row = {"channels": channels, "frames": frames}
        for way in (convolve_copied, convolve_edges):
            step = _way_step(way, x, weight, Sizes(frames, 1, (1, 1), (1, 1), (1, 1), 1))
            row[f"{way.__name__} ms"] = milliseconds(step, args.device, args.rounds)
        yield row


def _way_step(way: Callable[..., Tensor], x: Tensor, weight: Tensor, sizes: Sizes) -> Callable[[], Any]:
    return lambda: torch.autograd.grad(way(x, weight, None, sizes).sum(), (x, weight))


def all_peers(name: str, shape: tuple[int, ...]) -> dict[str, Callable[[], nn.Module]]:
    """Return counted.peers and, where they are importable, torchvision's video nets and MONAI's encoders."""
    found = peers(name, shape)
    try:
        from torchvision.models import video

        if name == "resnet18" and shape[1] == 3:
            found["torchvision r3d_18"] = video.r3d_18
    except ImportError:
        pass
    try:
        from monai.networks import nets

        if name in ("resnet18", "resnet50"):
            found["MONAI"] = lambda: getattr(nets, name)(spatial_dims=3, n_input_channels=shape[1], num_classes=1000)
    except ImportError:
        pass
    return found


def steps(args: Any) -> Iterator[Row]:
    """Yield one row a net, shape, peer and mode (eager, compiled): ms a step, peak MB, kernels, share of peak FLOPS."""
    for shape in [(2, 3, 8, 32, 32)] if args.tiny else SHAPES:
        for name in ("resnet18",) if args.tiny else NETS:
            for peer, make in all_peers(name, shape).items():
                for compiles in (False,) if args.tiny else (False, True):
                    row = {"net": name, "shape": "x".join(map(str, shape)), "peer": peer, "compiled": compiles}
                    try:
                        yield row | measured_step(make, shape, args, compiles=compiles)
                    except Exception as fault:  # a peer that refuses a shape or cannot be compiled ends nothing
                        yield row | {"refused": str(fault).splitlines()[0][:100] if str(fault) else repr(fault)[:100]}


def measured_step(make: Callable[[], nn.Module], shape: tuple[int, ...], args: Any, *, compiles: bool) -> Row:
    """Return what forward and backward in bfloat16 of a net cost, its kernels and input channels-last."""
    from inflate3d.training.device import channels_last

    net = make().train().to(args.device)
    channels_last(net)
    run = torch.compile(net) if compiles else net
    x = torch.randn(shape, device=args.device).to(memory_format=torch.channels_last_3d)

    def step() -> None:
        with torch.autocast(args.device, torch.bfloat16, enabled=args.device != "cpu"):
            y = run(x)
        y.float().sum().backward()
        net.zero_grad(set_to_none=True)

    on_gpu = args.device != "cpu"
    step()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    row: Row = {"ms": milliseconds(step, args.device, args.rounds)}
    if on_gpu:
        row["peak MB"] = torch.cuda.max_memory_allocated() / 1e6
        row["kernels"] = kernels_of(step)
        row["share of peak"] = flops_of(net, x) / (row["ms"] / 1e3) / args.peak_flops
    return row


def kernels_of(step: Callable[[], Any]) -> int:
    """Return how many kernels a step runs on the GPU."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
        step()
        torch.cuda.synchronize()
    return sum(event.device_type == torch.autograd.DeviceType.CUDA for event in found.events())


def flops_of(net: nn.Module, x: Tensor) -> float:
    """Return the operations of forward and backward by torch's own count."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        net(x).sum().backward()
    net.zero_grad(set_to_none=True)
    return float(counter.get_total_flops())


# --------------------------------------------------------------------------------------------------------------- fit


def fit(args: Any) -> Iterator[Row]:
    """Yield ms a step and samples/s of real fits on toy shards, with 1 and with 8 heads: what idle heads cost."""
    from inflate3d.data.shards.writer import build_shards
    from inflate3d.datasets.toy import Toy

    with tempfile.TemporaryDirectory() as folder:
        root, names = Path(folder), [f"toy{i}" for i in range(2 if args.tiny else 8)]
        for name in names:
            toy = Toy(kind="volume_classification", num_train=16, num_val=2, size=16 if args.tiny else 48)
            build_shards(toy, root / name, progress=False)
        for heads in (1, len(names)):
            yield {"heads": heads, **timed_fit(root, names[:heads], args)}


def timed_fit(root: Path, names: list[str], args: Any) -> Row:
    """Return what a fit of the command's own parts costs after its first steps."""
    import lightning.pytorch as pl
    from inflate3d.models import BackboneConfig
    from inflate3d.tasks.volume_classification import VolumeClassification
    from inflate3d.training import DataModule, MultiTaskModule, default_callbacks, trainer_defaults

    batch, count = (2, 6) if args.tiny else (32, 60)
    steps_done: list[float] = []

    class Clock(pl.Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            if args.device != "cpu":
                torch.cuda.synchronize()
            steps_done.append(time.perf_counter())

    data = DataModule(str(root), {n: {"batch_size": batch} for n in names}, num_workers=0 if args.tiny else 8, seed=0)
    backbone = BackboneConfig(name="test_resnet" if args.tiny else "resnet50", stems={"mask": 1})
    module = MultiTaskModule(backbone, {n: VolumeClassification(datasets=[n]) for n in names})
    settings = {**trainer_defaults(), "max_steps": count, "limit_val_batches": 0}
    settings |= {"accelerator": "gpu" if args.device == "cuda" else "cpu", "devices": 1}
    settings |= {"default_root_dir": root / f"run{len(names)}", "callbacks": [*default_callbacks(), Clock()]}
    pl.Trainer(**settings).fit(module, datamodule=data)
    first = count // 3
    seconds = (steps_done[-1] - steps_done[first]) / (len(steps_done) - 1 - first)
    return {"ms a step": 1e3 * seconds, "samples/s": batch / seconds}


# -------------------------------------------------------------------------------------------------------------- main

SECTIONS: dict[str, tuple[Callable[[Any], Iterator[Row]], float]] = {  # and its share of the time
    "correctness": (correctness, 0.15),
    "ways": (ways, 0.1),
    "steps": (steps, 0.55),
    "fit": (fit, 0.2),
}


def run_section(name: str, args: Any) -> list[Row]:
    """Return a section's rows, printed as they come, until its time is over; what was skipped is a row that says so."""
    section, share = SECTIONS[name]
    start, rows = time.monotonic(), []
    budget_s = 60 * args.minutes * share
    try:
        for row in section(args):
            rows.append(row)
            print(name, " ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in row.items()))
            if time.monotonic() - start > budget_s:
                rows.append({"skipped": f"the rest: {budget_s:.0f} s are over"})
                break
    except ImportError as fault:
        rows.append({"skipped": f"not importable here: {fault}"})
    for row in rows:
        if "skipped" in row:
            print(name, "skipped", row["skipped"], flush=True)
    return rows


def main(arguments: list[str] | None = None) -> int:
    """Run the sections; 1 if an answer is not right."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--peak_flops", type=float, default=989e12, help="of the card in bfloat16, dense; H100, H200")
    parser.add_argument("--sections", default=",".join(SECTIONS))
    parser.add_argument("--output", type=Path, default=Path("gpu.json"))
    parser.add_argument("--tiny", action="store_true", help="the smallest of everything: a dry run")
    parser.add_argument("--counts", action="store_true", help="operations and saved bytes alone; needs no GPU")
    args = parser.parse_args(arguments)
    warnings.filterwarnings("ignore")
    if args.counts:
        found: Row = {"counts": print_counts()}
    else:
        if args.device == "cuda" and not torch.cuda.is_available():
            print("error: no CUDA device; a dry run: --device cpu --tiny; counts alone: --counts", file=sys.stderr)
            return 2
        card = torch.cuda.get_device_name() if args.device == "cuda" else args.device
        found = {"device": card, "torch": torch.__version__}
        found |= {name: run_section(name, args) for name in args.sections.split(",")}
    args.output.write_text(json.dumps(found, indent=1))
    print(f"written: {args.output}")
    return int(not all(row.get("right", True) for row in found.get("correctness", [])))


if __name__ == "__main__":
    sys.exit(main())
